# SPDX-License-Identifier: Apache-2.0
"""A few-step student beside its teacher: reader accuracy and time, on the same prompts and seeds in one run.

python -m experiments.e006_student.run --student DIR [--teacher DIR] [--clips 8] [--seconds 4] [--out FILE]
"""

import argparse
import json
import time

from experiments.e003_shapes_accuracy.run import BATCH, generated, sources
from jaxvid.data.clips import ClipShape
from jaxvid.eval.shapes_accuracy import ATTRIBUTES, summarise
from jaxvid.pipeline import Pipeline


def timed(pipe: Pipeline, prompt: str, seconds: float, repeats: int = 3) -> dict:
    """Wall times in s of one video alone, compiled before: sampling, and all of it; the least of several."""
    best = {"sampling": float("inf"), "in all": float("inf")}
    pipe(prompt, seconds=seconds)
    for seed in range(repeats):
        sampling, begun = 0.0, time.perf_counter()
        last = begun
        for event in pipe.stream(prompt, seconds=seconds, seed=seed):
            now = time.perf_counter()
            # the time up to an event is that of what it tells of
            sampling += now - last if event.stage == "sample" else 0.0
            last = now
        best["sampling"] = min(best["sampling"], sampling)
        best["in all"] = min(best["in all"], time.perf_counter() - begun)
    return {**best, "rows": pipe.engine.asked, "steps": pipe.defaults.get("steps")}


def measure(checkpoint, clips: int, seconds: float) -> dict:
    """Accuracy on seen and held-out pairs, and times."""
    pipe, shape = Pipeline.load(checkpoint), ClipShape(round(seconds * 16), 64, 64, 16.0)
    found = {
        name: generated(pipe, source, shape, seconds) for name, source in sources(clips, (1.0, 0.0)).items()
    }
    times = timed(pipe, "a large red star spins on a black background", seconds)
    return {"accuracy": {name: summarise(counts) for name, counts in found.items()}, **times}


def report(teacher: dict, student: dict) -> str:
    """Both as a table, and what the student keeps and gains."""
    lines = [f"| | {' | '.join(ATTRIBUTES)} | all | 95 % interval |", "|---" * (len(ATTRIBUTES) + 3) + "|"]
    for who, found in (("teacher", teacher), ("student", student)):
        for name, row in found["accuracy"].items():
            cells = [f"{100 * row[a]['accuracy']:.1f}" for a in (*ATTRIBUTES, "all")]
            interval = f"{100 * row['all']['low']:.1f} to {100 * row['all']['high']:.1f}"
            lines.append(f"| {who}, {name} | {' | '.join(cells)} | {interval} |")
    lines += ["", "| | rows | sampling, s | in all, s |", "|---|---|---|---|"]
    for who, found in (("teacher", teacher), ("student", student)):
        lines.append(f"| {who} | {found['rows']} | {found['sampling']:.3f} | {found['in all']:.3f} |")
    for name in teacher["accuracy"]:
        kept = student["accuracy"][name]["all"]["accuracy"] / teacher["accuracy"][name]["all"]["accuracy"]
        lines.append(f"\n{name}: the student keeps {100 * kept:.1f} % of its teacher's accuracy.")
    faster = [teacher[part] / student[part] for part in ("sampling", "in all")]
    return "\n".join(
        [*lines, f"\nSampling is {faster[0]:.1f} times faster, a video in all {faster[1]:.1f} times."]
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", required=True, help="a bundle or a run")
    parser.add_argument("--teacher", help="a bundle or a run (default: the shipped model)")
    parser.add_argument("--clips", type=int, default=BATCH, help="of each kind")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", help="a JSON file for the figures")
    options = parser.parse_args()
    found = {
        who: measure(getattr(options, who), options.clips, options.seconds) for who in ("teacher", "student")
    }
    print(report(**found))
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
