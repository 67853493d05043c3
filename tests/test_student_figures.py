# SPDX-License-Identifier: Apache-2.0
"""The report of experiments/e006_student on figures that are known."""

from experiments.e006_student.run import report
from jaxvid.eval.shapes_accuracy import ATTRIBUTES, summarise


def found(right, sampling, all_):
    counts = dict.fromkeys(ATTRIBUTES, (right, 20))
    return {"accuracy": {"seen pairs": summarise(counts)}, "rows": 4, "sampling": sampling, "in all": all_}


def test_what_is_kept_and_gained():
    text = report(found(20, 6.0, 8.0), found(19, 1.0, 4.0))
    assert "keeps 95.0 % of its teacher's accuracy" in text
    assert "Sampling is 6.0 times faster, a video in all 2.0 times." in text
    assert "| student | 4 | 1.000 | 4.000 |" in text and text.count("| 95.0 |") >= 3
