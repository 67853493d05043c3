# SPDX-License-Identifier: Apache-2.0
"""Kernels in Pallas, one per file, each with the reason for which it would refuse a shape.

Nothing here imports JaxVid, so that the folder can be lifted out; only `jaxvid.ops` imports it. Every op has a plain
JAX form that serves as the oracle, and the library is complete without a kernel. `README.md` says what was checked how.
"""
