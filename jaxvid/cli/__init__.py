# SPDX-License-Identifier: Apache-2.0
"""The command line: `jaxvid COMMAND`, one file per command."""
