# SPDX-License-Identifier: Apache-2.0
"""Writing videos: mp4 frame by frame, gif and webp whole. (Reading them is `jaxvid.data.decode`.)

An mp4 is H.264, yuv420p, limited range and tagged BT.709, so that every player shows the same colours; its
index stands in front. A file appears under its name only when it is complete: it is written aside and
renamed.
"""

from __future__ import annotations

import contextlib
import errno
import fractions
import json
import os
import pathlib
import uuid
from collections.abc import Mapping
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image, UnidentifiedImageError

from jaxvid.types import InputError

BT709 = 1  # the code of H.273 for primaries, transfer and matrix alike
# Without this flag the conversion's own error on solid colours is larger than the encoder's.
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND


def _aside(path: str | os.PathLike, suffixes: tuple[str, ...]) -> tuple[pathlib.Path, pathlib.Path]:
    """The target, and a new empty file beside it; refuses a target that could not be written."""
    path = pathlib.Path(path)
    if path.suffix.lower() not in suffixes:
        raise InputError(f"cannot write {path}: its name ends in none of {', '.join(suffixes)}; rename it")
    if os.path.isdir(path):
        raise InputError(f"cannot write {path}: it is a directory; give the name of a file")
    aside = path.with_name(f".{path.stem[:64]}.{uuid.uuid4().hex}.part")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(path)  # says when the name itself is impossible
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise unwritable(path, error) from error
    return path, aside


def unwritable(path: str | os.PathLike, error: Exception) -> InputError:
    """What is to be said and done when a file cannot be written."""
    code = getattr(error, "errno", None)
    there = os.path.isdir(os.path.dirname(os.path.abspath(path)))
    remedy = {
        errno.ENOENT: "choose another place" if there else "make its directory first",
        errno.ENOTDIR: "give a path inside a directory",
        errno.ENOSPC: "free some space",
    }.get(code, "choose another place")
    return InputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}; {remedy}")


def _rate(fps: float) -> fractions.Fraction:
    if not 0 < fps <= 1000:
        raise InputError(f"fps={fps} is not a frame rate; give a number above 0 and up to 1000")
    return fractions.Fraction(fps).limit_denominator(1001)


class VideoWriter:
    """An mp4 that grows by appended frames and appears under its name when it is closed.

        with VideoWriter('out.mp4', fps=16, height=64, width=64, metadata={'seed': 0}) as writer:
            writer.append(frames)  # uint8 [n, H, W, 3], as often as wanted

    Exactly the appended frames are in the file, at exactly this size. `metadata` (JSON-able) is kept in the
    comment tag; `read_metadata` gives it back. Leaving the block by an exception removes the unfinished file.
    InputError when the place is not writable, the size is odd (the chroma planes of yuv420p have half of it)
    or nothing was appended.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        fps: float,
        height: int,
        width: int,
        metadata: Mapping[str, Any] | None = None,
        *,
        crf: int = 16,
        preset: str = "medium",
    ):
        rate = _rate(fps)
        if height < 2 or width < 2 or height % 2 or width % 2:
            even = tuple(max(2, 2 * round(side / 2)) for side in (height, width))
            raise InputError(
                f"cannot write {height}x{width} (height x width): H.264 with yuv420p needs even sizes; "
                f"use {even[0]}x{even[1]}"
            )
        comment = json.dumps(dict(metadata or {}), sort_keys=True, ensure_ascii=False)
        self.height, self.width, self.frames = height, width, 0
        self.path, self.aside = _aside(path, (".mp4",))
        self.container = None
        try:
            self.container = av.open(
                os.path.abspath(self.aside), "w", format="mp4", options={"movflags": "+faststart"}
            )
            self.container.metadata["comment"] = comment
            self.stream = self.container.add_stream("libx264", rate=rate)
            self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
            self.stream.options = {"crf": str(crf), "preset": preset}
            self.stream.time_base = self.stream.codec_context.time_base = 1 / rate
            context = self.stream.codec_context
            context.color_primaries = context.color_trc = context.colorspace = BT709
            context.color_range = ColorRange.MPEG
        except BaseException:
            self.discard()
            raise

    def append(self, frames) -> None:
        """Add frames, uint8 ``[n, H, W, 3]``."""
        frames = np.asarray(frames)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (self.height, self.width, 3):
            raise InputError(
                f"frames of {frames.dtype} {frames.shape} were appended to a video of uint8 "
                f"[n, {self.height}, {self.width}, 3]"
            )
        if self.container is None:
            raise InputError(f"{self.path} is closed; frames cannot be appended any more")
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24").reformat(
                format="yuv420p",
                src_colorspace=Colorspace.ITU709,
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=EXACT,
            )
            frame.pts, frame.time_base = self.frames, self.stream.codec_context.time_base
            self._mux(frame)
            self.frames += 1

    def _mux(self, frame) -> None:
        try:
            self.container.mux(self.stream.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Finish the file and give it its name."""
        if self.container is None:
            return
        try:
            if not self.frames:
                raise InputError(f"no frames were given for {self.path}; nothing was written")
            self._mux(None)
            container, self.container = self.container, None
            try:
                container.close()
                os.replace(self.aside, self.path)
            except (av.error.FFmpegError, OSError) as error:
                raise unwritable(self.path, error) from error
        finally:
            self.discard()

    def discard(self) -> None:
        """Give up: remove what is unfinished."""
        container, self.container = self.container, None
        try:
            if container is not None:
                container.close()
        except (av.error.FFmpegError, OSError):
            pass  # a file without frames, or on a full disk, cannot be finished; it goes away all the same
        finally:
            self.aside.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            self.close()
        else:
            self.discard()


def save_video(
    path: str | os.PathLike, frames, fps: float, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write a whole clip, uint8 ``[T, H, W, 3]``, as .mp4, .gif or .webp, whichever the name says."""
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise InputError(f"cannot write frames of {frames.dtype} {frames.shape}; wanted uint8 [T, H, W, 3]")
    if pathlib.Path(path).suffix.lower() == ".mp4":
        with VideoWriter(path, fps, *frames.shape[1:3], metadata) as writer:
            writer.append(frames)
    else:
        _save_animation(path, frames, fps, metadata)


def _save_animation(path, frames: np.ndarray, fps: float, metadata: Mapping[str, Any] | None) -> None:
    rate = _rate(fps)
    path, aside = _aside(path, (".mp4", ".gif", ".webp"))
    gif = path.suffix.lower() == ".gif"
    # A gif counts hundredths of a second, a webp thousandths: round the times, not the durations, so as not to drift.
    unit = 10 if gif else 1
    times = [round(n * 1000 / rate / unit) * unit for n in range(len(frames) + 1)]
    comment = json.dumps(dict(metadata or {}), sort_keys=True)
    options: dict[str, Any] = (
        {"comment": comment.encode()} if gif else {"xmp": comment.encode(), "quality": 90}
    )
    images = [Image.fromarray(frame) for frame in frames]
    try:
        with open(aside, "wb") as file:
            images[0].save(
                file,
                format="GIF" if gif else "WEBP",
                save_all=True,
                append_images=images[1:],
                duration=[later - sooner for sooner, later in zip(times, times[1:], strict=False)],
                loop=0,
                **options,
            )
        os.replace(aside, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """What a writer of this file kept in an .mp4, .gif or .webp; empty for files that are not ours."""
    path = pathlib.Path(path)
    try:
        with open(path, "rb") as file:
            comment = _comment(file)
    except UnidentifiedImageError:
        raise InputError(f"{path} is neither an mp4 nor a gif nor a webp, whatever its name") from None
    except (OSError, av.error.FFmpegError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {path}: {why}; check the path") from error
    try:
        found = json.loads(comment)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _comment(file) -> str:
    head = file.read(12)
    file.seek(0)
    if head[4:8] == b"ftyp":
        # Only this container, and no further files through it, whatever the bytes say.
        options: dict[str, Any] = {"container_options": {"protocol_whitelist": "none"}}
        if int(av.__version__.partition(".")[0]) < 19:  # later ones do not ask
            options["metadata_errors"] = "replace"
        with av.open(file, "r", format="mov", **options) as container:
            return container.metadata.get("comment", "")
    with Image.open(file, formats=("GIF", "WEBP")) as image:
        comment = image.info.get("comment") or image.info.get("xmp") or b""
    return comment.decode("utf-8", errors="replace")
