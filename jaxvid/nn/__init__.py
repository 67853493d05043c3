# SPDX-License-Identifier: Apache-2.0
"""Linen modules: layers, positions, patches, mixers, and the stack that repeats them."""
