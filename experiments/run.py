# SPDX-License-Identifier: Apache-2.0
"""The launcher: python -m experiments.run --config=configs/NAME.py --workdir=DIR [--config.x=y] [--dry_run]"""

import sys

from jaxvid.cli.main import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
