# SPDX-License-Identifier: Apache-2.0
"""Every way to generate, as a short pure function from a `Setting` to values of the loop's primitives: see `table`."""
