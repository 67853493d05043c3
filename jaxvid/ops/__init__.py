# SPDX-License-Identifier: Apache-2.0
"""Array functions: plain JAX first, kernels behind the same signatures."""
