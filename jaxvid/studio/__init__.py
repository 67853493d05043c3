# SPDX-License-Identifier: Apache-2.0
"""A page in the browser, served on this machine: stories, live progress, and the videos made so far."""
