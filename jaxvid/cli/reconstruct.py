# SPDX-License-Identifier: Apache-2.0
"""Sends a video through the autoencoder and back, writes the result and measures what was lost."""

from __future__ import annotations

import numpy as np

from jaxvid.cli import main
from jaxvid.cli.generate import parse_size
from jaxvid.cli.progress import Progress
from jaxvid.cli.record import Writers, outputs, spare


def arguments(parser):
    parser.add_argument("file", metavar="FILE.mp4", help="the video")
    parser.add_argument(
        "--out", default="reconstruction.mp4", help=".mp4, .gif or .webp (default: reconstruction.mp4)"
    )
    parser.add_argument(
        "--checkpoint", metavar="DIR", help="a bundle or a training run (default: the shipped model)"
    )
    parser.add_argument(
        "--size", help="N or HEIGHTxWIDTH to resize and crop to (default: the checkpoint's first)"
    )
    parser.add_argument("--fps", type=float, help="frames per second (default: the checkpoint's first)")
    parser.add_argument("--seconds", type=float, help="how much of the video (default: all)")
    parser.add_argument(
        "--side-by-side", action="store_true", help="the original on the left, the result on the right"
    )


def run(options) -> None:
    """Prints PSNR and SSIM, and the path on the last line of standard output."""
    paths, size = outputs(options.out, 1), parse_size(options.size)
    spare([options.file], paths, "--out")

    from jaxvid.data.decode import read_video
    from jaxvid.engine import Decoder
    from jaxvid.pipeline import Pipeline
    from jaxvid.request import number
    from jaxvid.stages import CHUNK

    seconds = None if options.seconds is None else number(options.seconds, "seconds", above=0)
    fps = None if options.fps is None else number(options.fps, "fps", above=0)
    main.use_compilation_cache()
    pipe, progress = Pipeline.load(options.checkpoint), Progress()
    fps = fps or float(pipe.serves["fps"][0])
    size = size or tuple(pipe.serves["sizes"][0])
    pipe.engine.vae.check_size(*size)
    frames, _ = read_video(
        options.file, fps=fps, size=size, frames=None if seconds is None else max(1, round(seconds * fps))
    )
    decoder, scores = Decoder(pipe.engine, "float32"), []
    shown = (size[0], size[1] * (2 if options.side_by_side else 1))
    with Writers(paths, fps, shown, [{"reconstruction of": str(options.file)}]) as writers:
        progress.update("codec", 0, len(frames), "frames", "compiling")
        done = 0
        for latents, true in pipe.engine.encode([frames], "float32"):
            latents = np.concatenate([latents, np.repeat(latents[-1:], CHUNK - len(latents), 0)])
            made = decoder(latents[None])[0, : len(true)]
            scores.append(_quality(true, made))
            writers.append(0, np.concatenate([true, made], 2) if options.side_by_side else made)
            done += len(true)
            progress.update("codec", done, len(frames), "frames")
    progress.close()
    psnr, ssim = np.concatenate(scores, 1)
    print(
        f"PSNR {psnr.mean():.2f} dB (worst frame {psnr.min():.2f}), SSIM {ssim.mean():.4f} (worst {ssim.min():.4f})"
    )
    print(f"{len(frames)} frames of {size[0]}x{size[1]} at {fps:g} fps")
    print(*paths)


def _quality(true, made) -> np.ndarray:
    """[2, T]: PSNR and SSIM of every frame."""
    import jax.numpy as jnp

    from jaxvid.ops.quality import psnr, ssim

    x, y = (jnp.asarray(frames, jnp.float32) / 127.5 - 1 for frames in (true, made))
    return np.stack([np.asarray(psnr(x, y)), np.asarray(ssim(x, y))])
