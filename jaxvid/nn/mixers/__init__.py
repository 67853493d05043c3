# SPDX-License-Identifier: Apache-2.0
"""One file, one way to move information between tokens.

The contract: ``mixer(x[B,T,H,W,D], memory) -> (x, memory)``; a field or property ``causal``; and
``init_memory(batch, grid, width)``, None for mixers that remember nothing. For causal mixers the past
ignores the future and chunks equal the whole.
"""
