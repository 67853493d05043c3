# SPDX-License-Identifier: Apache-2.0
"""`python colab/strip.py NOTEBOOK...`: notebooks are kept without outputs, counters and the machine's metadata.

Leaves with 1 when a file was changed, as pre-commit expects.
"""

import json
import os
import pathlib
import sys

KEPT = ("kernelspec", "language_info", "colab")


def strip(text: str) -> str:
    """The notebook's JSON, as it is kept in the repository."""
    book = json.loads(text)
    book["metadata"] = {key: value for key, value in book["metadata"].items() if key in KEPT}
    book["metadata"]["language_info"] = {"name": "python"}
    for cell in book["cells"]:
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key == "tags"}
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(paths: list[str]) -> int:
    changed = 0
    for path in map(pathlib.Path, paths):
        before = path.read_text(encoding="utf-8")
        after = strip(before)
        if after != before:
            aside = path.with_suffix(".part")
            aside.write_text(after, encoding="utf-8")
            os.replace(aside, path)
            print(f"stripped {path}")
            changed = 1
    return changed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
