# SPDX-License-Identifier: Apache-2.0
"""Whole networks: the autoencoder, the backbone, the text encoder."""
