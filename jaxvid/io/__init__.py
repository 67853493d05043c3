# SPDX-License-Identifier: Apache-2.0
"""Doors to the world: video files, weights, checkpoints, bundles."""
