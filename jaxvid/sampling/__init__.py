# SPDX-License-Identifier: Apache-2.0
"""From a denoiser to a video: plans of noise levels, solvers, the one loop, and roll-outs."""
