# SPDX-License-Identifier: Apache-2.0
"""The figures of experiments/e002_long_video on videos that are known."""

import numpy as np

from experiments.e002_long_video.run import drift, jump, table


def test_jumps_at_borders():
    ramp = np.broadcast_to(np.arange(41, dtype=np.uint8)[:, None, None, None], (41, 4, 4, 3)).copy()
    assert jump(ramp, 8, 13) == 1.0
    ramp[13:] += 10
    ramp[21:] += 10
    ramp[29:] += 10
    ramp[37:] += 10
    assert jump(ramp, 8, 13) == 11.0
    assert np.isnan(jump(ramp[:5], 8, 13))


def test_drift_counts_seconds_that_look_otherwise():
    look = lambda colour: {"objects": [{"shape": "star", "colour": colour}]}
    assert drift([look("red")] * 4) == 0
    assert drift([look("red"), look("blue"), look("red"), {"objects": []}]) == 2 / 3
    assert drift([look("red")]) == 0


def test_the_table_has_a_line_for_each_method():
    row = {"method": "fifo", "thirds": [1, 0.5, 0.25], "drift": 0.1, "jump": 1.5, "rows": 70}
    lines = table([row | {"seconds per second": 2.0, "peak GiB": 1.25}]).splitlines()
    assert lines[2] == "| fifo | 100.0 | 50.0 | 25.0 | 0.10 | 1.50 | 70 | 2.00 | 1.25 |"
