# SPDX-License-Identifier: Apache-2.0
"""The process tower: noise levels, what networks predict, losses and guidance."""
