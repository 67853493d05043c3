# SPDX-License-Identifier: Apache-2.0
"""``python -m jaxvid`` is ``jaxvid``."""

from jaxvid.cli.main import main

if __name__ == "__main__":
    main()
