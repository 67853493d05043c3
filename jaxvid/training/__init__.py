# SPDX-License-Identifier: Apache-2.0
"""Tasks, losses, the step and the loop."""
