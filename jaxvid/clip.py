# SPDX-License-Identifier: Apache-2.0
"""A finished video in memory: what a pipeline returns, to be saved, shown and looked over."""

from __future__ import annotations

import base64
import html
import os
import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvid.types import InputError, a_path

LARGEST_INLINE = 64 << 20  # bytes of a video that is embedded in a notebook


class Clip:
    """Frames and where they came from.

    Attributes:
      frames: uint8 [T, H, W, 3], sRGB.
      fps: frames per second.
      latents: float32 [T', h, w, C] or None, the latents that the frames were decoded from (of unit variance).
      recipe: what made it (prompt or story, seed, steps, version, ...), plain data.
    """

    def __init__(self, frames, fps: float, latents=None, recipe: Mapping[str, Any] | None = None):
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
            raise InputError(
                f"a Clip holds uint8 [T, H, W, 3], not {frames.dtype} {list(frames.shape)}; round pixels to 0..255 first"
            )
        if not (np.isfinite(fps) and fps > 0):
            raise InputError(f"fps={fps} is not a positive number")
        self.frames, self.fps, self.latents, self.recipe = frames, float(fps), latents, dict(recipe or {})

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps

    def __len__(self) -> int:
        return len(self.frames)

    def __repr__(self) -> str:
        count, height, width, _ = self.frames.shape
        said = self.recipe.get("prompt") or " | ".join(text for _, text in self.recipe.get("story", ()))
        said = f", {said[:57] + '...' if len(said) > 60 else said!r}" if said else ""
        seed = f", seed {self.recipe['seed']}" if "seed" in self.recipe else ""
        return f"Clip({count} frames, {self.seconds:.2f} s at {self.fps:g} fps, {width}x{height}{said}{seed})"

    def save(self, path) -> pathlib.Path:
        """Writes .mp4 (H.264), .gif or .webp, aside and then renamed. Returns the path. Raises `InputError`."""
        from jaxvid.io.video_file import save_video

        path = a_path(path)
        save_video(path, self.frames, self.fps, self.recipe)
        return path

    def show(self):
        """The clip as a playing, embedded H.264 video: the last expression of a notebook cell."""
        try:
            from IPython.display import HTML
        except ImportError:
            raise InputError(
                "show() needs a notebook (IPython is not installed); use save('clip.mp4')"
            ) from None
        return HTML(self._repr_html_())

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            data = self.save(pathlib.Path(folder) / "clip.mp4").read_bytes()
        if len(data) > LARGEST_INLINE:
            return f"<code>{html.escape(repr(self))}: too large to embed; save it</code>"
        _, height, width, _ = self.frames.shape
        scale = max(1, round(256 / max(height, width)))
        style = f"width:{width * scale}px;image-rendering:{'pixelated' if scale > 1 else 'auto'}"
        return (
            f'<video controls loop autoplay muted playsinline title="{html.escape(repr(self), quote=True)}" style="{style}" '
            f'src="data:video/mp4;base64,{base64.b64encode(data).decode()}"></video>'
        )

    def contact_sheet(
        self, path, *, every: float | None = None, columns: int = 10, tile: int = 128, captions: bool = True
    ):
        """A picture of frames at equal distances, with their times and, above each row, what was asked for then.

        Args:
          path: .png, .jpg or .webp to write.
          every: seconds between tiles; by default so that there are at most 30.
          columns: tiles in a row.
          tile: width of a tile in pixels; small frames are enlarged in whole steps.
          captions: whether the story's sentences are written above the rows they speak about.

        Returns the path.
        """
        import imageio.v3

        path = a_path(path)
        if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise InputError(f"{path}: a contact sheet is saved as .png, .jpg or .webp")
        if columns < 1 or tile < 1 or (every is not None and not every > 0):
            raise InputError(
                f"columns={columns}, tile={tile}, every={every}: give at least one column, tiles of a pixel and a positive"
                " distance"
            )
        every = max(1.0 / self.fps, self.seconds / 30 if every is None else every)
        times = np.arange(0, self.seconds - 1e-9, every)
        # The middle of each stretch: the first frame after a cut tells least about it.
        at = [min(len(self) - 1, int((time + every / 2) * self.fps)) for time in times]
        sheet = _sheet(
            self.frames[at],
            [i / self.fps for i in at],
            self._story() if captions else (),
            min(columns, len(at)),
            tile,
        )
        with aside(path) as part:
            imageio.v3.imwrite(part, sheet, plugin="pillow", extension=path.suffix.lower())
        return path

    def _story(self):
        if self.recipe.get("story"):
            return tuple((float(at), str(text)) for at, text in self.recipe["story"])
        return ((0.0, str(self.recipe["prompt"])),) if self.recipe.get("prompt") else ()


class aside:
    """``with aside(path) as part:`` write ``part``; it becomes ``path`` only when the block ends well."""

    def __init__(self, path):
        self.path = pathlib.Path(path)

    def __enter__(self) -> pathlib.Path:
        try:
            handle, name = tempfile.mkstemp(
                prefix=f".{self.path.name}.", suffix=".part", dir=self.path.parent
            )
        except OSError as error:
            raise _unwritable(self.path, error) from None
        os.close(handle)
        self.part = pathlib.Path(name)
        return self.part

    def __exit__(self, kind, *_):
        if kind is not None:
            self.part.unlink(missing_ok=True)
            return
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(self.part, 0o666 & ~mask)  # mkstemp made it private; the result is an ordinary file
        try:
            os.replace(self.part, self.path)
        except OSError as error:
            self.part.unlink(missing_ok=True)
            raise _unwritable(self.path, error) from None


def _unwritable(path, error):
    from jaxvid.io.video_file import unwritable

    return unwritable(path, error)


def _sheet(frames, times, story, columns, tile):
    """The contact sheet as uint8 [H, W, 3]."""
    from PIL import Image, ImageDraw, ImageFont

    _, height, width, _ = frames.shape
    scale = max(1, tile // width)
    if width > tile:
        tile_width, tile_height = tile, max(1, round(height * tile / width))
    else:
        tile_width, tile_height = width * scale, height * scale
    gap, font = 4, ImageFont.load_default(12)
    rows = -(-len(frames) // columns)
    line = 16
    lines = [
        _row_lines(times[r * columns : (r + 1) * columns], story, columns * (tile_width + gap), font)
        for r in range(rows)
    ]
    tops, total = [], gap
    for row in lines:
        total += line * len(row)
        tops.append(total)
        total += tile_height + line + gap
    sheet = Image.new("RGB", (gap + columns * (tile_width + gap), total), (24, 24, 27))
    draw = ImageDraw.Draw(sheet)
    digits = 1 if len(times) < 2 or times[1] - times[0] >= 0.1 else 2
    for i, frame in enumerate(frames):
        x, y = gap + (i % columns) * (tile_width + gap), tops[i // columns]
        resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
        sheet.paste(Image.fromarray(frame).resize((tile_width, tile_height), resample), (x, y))
        draw.text((x, y + tile_height), f"{times[i]:.{digits}f} s", fill=(160, 160, 170), font=font)
    for row, top in zip(lines, tops, strict=True):
        for n, text in enumerate(row):
            draw.text((gap, top - line * (len(row) - n)), text, fill=(235, 235, 240), font=font)
    return np.asarray(sheet)


def _row_lines(times, story, width, font):
    """What the story says during a row of tiles: a line per sentence, cut to the sheet's width."""
    lines = []
    for number, (at, text) in enumerate(story):
        end = story[number + 1][0] if number + 1 < len(story) else float("inf")
        if any(at <= time < end for time in times):
            said = f"{at:g} s: {text}"
            while font.getlength(said) > width and len(said) > 8:
                said = said[:-5] + "..."
            lines.append(said)
    return lines
