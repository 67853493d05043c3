# SPDX-License-Identifier: Apache-2.0
"""`import jaxvid` is instant, touches no device and drags in nothing heavy."""

import json
import subprocess
import sys

import pytest

import jaxvid

CODE = """
import json, sys, time
start = time.perf_counter()
import jaxvid
took = time.perf_counter() - start
heavy = [n for n in ('jax', 'jaxlib', 'flax', 'numpy', 'tensorflow', 'torch', 'av', 'PIL', 'grain') if n in sys.modules]
print(json.dumps({'took': took, 'heavy': heavy, 'names': dir(jaxvid), 'version': jaxvid.__version__}))
"""

PIPELINE = """
import json, sys
import jaxvid
jaxvid.Pipeline, jaxvid.Clip
from jax._src import xla_bridge
print(json.dumps({'devices': len(xla_bridge._backends), 'tensorflow': 'tensorflow' in sys.modules}))
"""


def last_json(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_import_is_instant_and_light():
    facts = last_json(CODE)
    assert facts["took"] < 1.0
    assert facts["heavy"] == []
    assert {"Pipeline", "Clip", "InputError", "Video"} <= set(facts["names"])
    assert facts["version"] == jaxvid.__version__


def test_the_public_names_touch_no_device_and_import_no_tensorflow():
    facts = last_json(PIPELINE)
    assert facts == {"devices": 0, "tensorflow": False}


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Pipelin.*it has.*Pipeline"):
        jaxvid.Pipelin  # noqa: B018


def test_every_public_name_is_found():
    for name in jaxvid.__all__:
        assert getattr(jaxvid, name) is not None
