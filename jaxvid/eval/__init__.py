# SPDX-License-Identifier: Apache-2.0
"""Measures: arithmetic counted, messages read off compiled programs, and how much of a caption is right."""
