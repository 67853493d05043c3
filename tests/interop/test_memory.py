# SPDX-License-Identifier: Apache-2.0
"""A transformer of real size is imported in little memory: arrays pass one by one."""

import json
import pathlib
import struct

import pytest

from jaxvid.io.wan_keys import foreign_keys, foreign_shape
from tests.interop.test_keys import REAL, table_of


def sparse_weights(path: pathlib.Path) -> int:
    """A file of Wan 2.1 1.3B's keys and shapes in bfloat16, zeros that take no room on disk; its bytes."""
    part, node, *_ = REAL["1.3B"]
    leaves, shapes = table_of(part, node)
    header, at = {}, 0
    for leaf in leaves:
        shape = foreign_shape(leaf, shapes[leaf.name])
        size = 2
        for n in shape:
            size *= n
        for key in foreign_keys(leaf, shapes[leaf.name]):
            header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    return at


@pytest.mark.slow
def test_importing_1_3b_needs_little_memory(tmp_path, run_python):
    """Anonymous memory (what is not a page of a file) stays below 4 GB, parameters included: they are never held."""
    (tmp_path / "source").mkdir()
    assert sparse_weights(tmp_path / "source" / "model.safetensors") == 2 * 1_418_996_800
    code = f"""
import threading, time
from jaxvid.cli import main
most, done = 0, False
def watch():
    global most
    while not done:
        for line in open('/proc/self/status'):
            if line.startswith('RssAnon'):
                most = max(most, int(line.split()[1]))
        time.sleep(0.02)
thread = threading.Thread(target=watch); thread.start()
start = time.time()
main.dispatch(['import', {str(tmp_path / "source")!r}, '--to', {str(tmp_path / "to")!r}])
done = True; thread.join()
print(most / 1e6, time.time() - start)
"""
    gigabytes, seconds = map(float, run_python(code, timeout=900).splitlines()[-1].split())
    print(
        f"at most {gigabytes:.2f} GB of memory beside the pages of files, {seconds:.0f} s"
    )  # pytest -rP shows it
    assert gigabytes < 4
