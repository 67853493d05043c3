# SPDX-License-Identifier: Apache-2.0
"""Whole networks: a stack between an input and an output."""
