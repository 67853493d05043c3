# SPDX-License-Identifier: Apache-2.0
"""Sources of video: random access, deterministic, with content keys; batches and a cache of latents around them."""
