# SPDX-License-Identifier: Apache-2.0
"""`jaxvid methods`, and `--method` with its options."""

from jaxvid.io.video_file import read_metadata
from jaxvid.sampling.methods.table import METHODS


def test_every_method_is_listed_with_its_needs_and_paper(jaxvid, bundle):
    done = jaxvid("methods", "--checkpoint", bundle)
    assert done.code == 0, done.err
    for name, entry in METHODS.items():
        line = next(line for line in done.out.splitlines() if line.split()[:1] == [name])
        assert entry.memory in line and entry.reference in done.out
        assert ("not with this checkpoint" in line) == bool(set(entry.needs) - {"bidirectional"})


def test_options_of_a_method_are_read_kept_and_checked(generate, tmp_path):
    done = generate(
        "a red star", "--method", "fifo", "--set", "window=2", "--set", "ahead=false", "--out", "x.mp4"
    )
    assert done.code == 0, done.err
    assert "method fifo: ahead False, window 2" in done.err
    recipe = read_metadata(tmp_path / "x.mp4")
    assert (recipe["method"], recipe["options"]) == ("fifo", {"ahead": False, "window": 2})
    for wrong, said in (
        (("--method", "fifo", "--set", "stride=2"), "method 'fifo' has no such option"),
        (("--set", "colour=2"), "no method has such an option"),
        (("--method", "causal-kv"), "nearest that works is 'rollout'"),
        (("--method", "freenoise"), "nearest that works is 'genl'"),
    ):
        done = generate("a red star", *wrong)
        assert done.code == 2 and said in done.err
