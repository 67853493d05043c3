# SPDX-License-Identifier: Apache-2.0
"""How right the shapes model is, by attribute."""
