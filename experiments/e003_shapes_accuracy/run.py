# SPDX-License-Identifier: Apache-2.0
"""Fresh prompts through the model, and fresh clips through its autoencoder, read by the exact reader.

python -m experiments.e003_shapes_accuracy.run [--checkpoint DIR] [--clips N] [--seconds S] [--out FILE]
"""

import argparse
import json
import sys
import time

import numpy as np

from jaxvid.data.clips import ClipShape
from jaxvid.data.shapes import ShapesSource
from jaxvid.eval.shapes_accuracy import ATTRIBUTES, add, score, summarise
from jaxvid.pipeline import Pipeline

BATCH = 8


def sources(clips, objects):
    """Prompts that no training saw as clips: seen pairs from another world (seed 101), and held-out pairs."""
    one = dict(size=clips, objects=objects, events=0.0, paraphrase=False)
    return {
        "seen pairs": ShapesSource(split="train", seed=101, **one),
        "held-out pairs": ShapesSource(split="heldout", seed=102, **one),
    }


def generated(pipe, source, shape, seconds):
    """What the reader makes of a video for each of the source's captions."""
    texts = [source.clip(i, shape).captions[0][1] for i in range(len(source))]
    counts = []
    for first in range(0, len(texts), BATCH):
        some = texts[first : first + BATCH]
        filled = some + some[-1:] * (BATCH - len(some))  # one shape, one compilation
        videos = pipe(filled, seconds=seconds, seed=list(range(1000 + first, 1000 + first + BATCH)))
        counts += [
            score(video.frames, video.fps, [(0, text)]) for video, text in zip(videos, some, strict=False)
        ]
        print(f"{first + len(some)} of {len(texts)}", file=sys.stderr, flush=True)
    return add(counts)


def round_trip(pipe, source, shape):
    """What the reader makes of clips that went through the autoencoder, and their mean PSNR in dB."""
    counts, quality = [], []
    for i in range(len(source)):
        clip = source.clip(i, shape)
        video = pipe.decode(pipe.encode(clip.x), frames=shape.frames, fps=shape.fps)
        counts.append(score(video.frames, shape.fps, clip.captions))
        error = (video.frames.astype(np.float32) - clip.x.astype(np.float32)) / 127.5
        quality.append(10 * np.log10(4 / np.mean(error**2)))
    return add(counts), float(np.mean(quality))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", help="a bundle or a run (default: the shipped model)")
    parser.add_argument("--clips", type=int, default=24, help="of each kind")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--out", help="a JSON file for the figures")
    options = parser.parse_args()

    pipe, begun = Pipeline.load(options.checkpoint), time.monotonic()
    shape = ClipShape(round(options.seconds * 16), 64, 64, 16.0)
    found = {}
    for name, source in sources(options.clips, (1.0, 0.0)).items():
        found[f"{name}, one object"] = generated(pipe, source, shape, options.seconds)
    both = ShapesSource(split="all", seed=103, size=2 * options.clips, events=0.0, paraphrase=False)
    found["autoencoder alone"], quality = round_trip(pipe, both, shape)

    rows = {name: summarise(counts) for name, counts in found.items()}
    print(
        f"| {options.clips} clips of {options.seconds:g} s each | {' | '.join(ATTRIBUTES)} | all | 95 % interval |"
    )
    print("|---" * (len(ATTRIBUTES) + 3) + "|")
    for name, row in rows.items():
        cells = [f"{100 * row[a]['accuracy']:.1f}" for a in (*ATTRIBUTES, "all")]
        print(
            f"| {name} | {' | '.join(cells)} | {100 * row['all']['low']:.1f} to {100 * row['all']['high']:.1f} |"
        )
    print(f"\nAutoencoder: {quality:.2f} dB PSNR. {time.monotonic() - begun:.0f} s in all.")
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump({"psnr": quality, **rows}, file, indent=1)


if __name__ == "__main__":
    main()
