# SPDX-License-Identifier: Apache-2.0
"""Reading videos with PyAV: by timestamps, upright, and with distrust.

A file is opened by us, recognised by its first bytes, and given to FFmpeg as an open file with one container
and no protocol allowed, so that a playlist under another name cannot make it open anything else. Sizes are
checked before and while decoding. Time counts from the video's own start; the frame at a time is the last one
shown at or before it, so files of variable rate come out even. Every failure is an InputError of one line
that names the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import stat
import time
from collections.abc import Iterator

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import ColorRange, Colorspace, Interpolation

from jaxvid.data.images import fit
from jaxvid.types import InputError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi"
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mjpeg", "prores", "ffv1", "png")
SLACK = 0.0006  # seconds; Matroska rounds times to milliseconds
EXACT = Interpolation.BILINEAR | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a video may ask of this machine."""

    pixels: int = 4096 * 2304  # of one frame
    side: int = 8192
    seconds: float = 7200.0  # of the video
    bytes: int = 2 << 30  # of decoded frames returned by one call
    wall: float = 120.0  # seconds spent in one call


@dataclasses.dataclass(frozen=True)
class Info:
    """What a video is. Sizes are as shown: upright, with square pixels."""

    path: str
    height: int
    width: int
    fps: float  # average
    seconds: float
    codec: str
    pixel_format: str
    rotation: int  # degrees counterclockwise that make it upright
    aspect: float  # of one stored pixel as shown, its width over its height
    declared: float  # seconds that the file itself promises, 0 when it does not

    def frames(self, fps: float | None = None) -> int:
        """How many frames it has at a rate (its own when None): one for every time before its end."""
        return max(1, math.ceil(self.seconds * (fps or self.fps) - 1e-3))


def probe(path: str | os.PathLike, limits: Limits = Limits()) -> Info:
    """Size, rate, length and kind of a video; decodes its first frame to be sure that there is one."""
    with _opened(path, limits) as video:
        first = next(_shown(video, 0.0, limits), None)
        if first is None:
            raise InputError(f"{path} holds no frames; it is empty or truncated")
        return _info(video, first[1], limits)


def read_video(
    path: str | os.PathLike,
    *,
    fps: float | None = None,
    start: float = 0.0,
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    limits: Limits = Limits(),
) -> tuple[np.ndarray, float]:
    """Frames uint8 ``[T, H, W, 3]`` of a video at times `start + k / fps` seconds, and the rate.

    fps: None keeps the video's own average rate. frames: how many, at most; None reads to the end. size:
    (height, width) to resize and centre-crop to; None keeps the size as shown. Fewer than `frames` come back
    where the video ends. InputError when the file is missing, no video, damaged inside what was asked for, or
    beyond `limits`.
    """
    if fps is not None and not 0 < fps <= 1000:
        raise InputError(f"fps={fps} is not a frame rate; give a number above 0 and up to 1000")
    if start < 0 or (frames is not None and frames < 1):
        raise InputError(f"start={start}, frames={frames}: give a start of 0 or more and at least one frame")
    if size is not None and not (min(size) > 0 and size[0] * size[1] <= limits.pixels):
        raise InputError(
            f"size={size[0]}x{size[1]} (height x width) was asked for; give one of 1 to {limits.pixels} pixels"
        )
    with _opened(path, limits) as video:
        return _sampled(video, fps, start, frames, size, limits)


def _sampled(video: _Video, fps, start, frames, size, limits) -> tuple[np.ndarray, float]:
    taken: list[np.ndarray] = []
    held = info = rate = pixels = None  # `pixels` are those of the held frame, once they are wanted
    end, room = 0.0, limits.bytes

    def hold_until(sec: float) -> None:
        """Take the held frame for every wanted time before `sec`."""
        nonlocal pixels, room
        while len(taken) != frames and start + len(taken) / rate < sec - SLACK:
            pixels = _pixels(video, held, info, size) if pixels is None else pixels
            room -= pixels.nbytes
            if room < 0:
                raise InputError(
                    f"{video.path}: the frames asked for are more than {limits.bytes >> 20} MiB; "
                    "ask for fewer, smaller or at a lower fps"
                )
            taken.append(pixels)

    for sec, frame in _shown(video, start, limits):
        if info is None:
            info = _info(video, frame, limits)
            rate = fps or info.fps
        else:
            hold_until(sec)
        if len(taken) == frames:
            break
        held, pixels = frame, None
        end = sec + float((frame.duration or 0) * video.stream.time_base or 1 / info.fps)
    if info is None:
        raise InputError(
            f"{video.path} has no frames at {start:g} s or later; it is shorter, empty or truncated"
        )
    if len(taken) != frames:
        # The declared length may exceed the frames a little; more than 2 % and two frames of it is damage.
        if end < info.declared - max(0.02 * info.declared, 2 / info.fps):
            raise InputError(
                f"{video.path} is truncated: it ends after {end:.2f} of {info.declared:.2f} s; "
                "get the whole file, or go on without it"
            )
        hold_until(end)
    if not taken:
        raise InputError(f"{video.path} is {end:.2f} s long; start={start:g} is not before its end")
    return np.stack(taken), float(rate)


@dataclasses.dataclass
class _Video:
    path: str
    container: av.container.InputContainer
    stream: av.VideoStream


@contextlib.contextmanager
def _opened(path: str | os.PathLike, limits: Limits) -> Iterator[_Video]:
    """The best video stream of a file, its header checked; errors of FFmpeg inside the block become ours."""
    path = os.fspath(path)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block us
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise InputError(f"cannot open {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path} is not a regular file; give an mp4, mov, mkv, webm or avi")
    with open(descriptor, "rb") as file:
        kind = _container(file.read(16))
        file.seek(0)
        if kind is None:
            raise InputError(
                f"{path} is not a video (mp4, mov, mkv, webm, avi) whatever its name says; give another file"
            )
        options = {"format_whitelist": CONTAINERS, "protocol_whitelist": "none"}
        try:
            with av.open(file, "r", format=kind, container_options=options) as container:
                yield _Video(path, container, _stream(path, container, limits))
        except (av.error.FFmpegError, EOFError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise InputError(
                f"{path} is truncated or damaged ({why}); get it again, or go on without it"
            ) from error


def _container(head: bytes) -> str | None:
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip"):
        return "mov"
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return "matroska"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "avi"
    return None


def _stream(path: str, container, limits: Limits):
    streams = [
        stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        raise InputError(f"{path} has no video stream; give another file")
    best = max(streams, key=lambda stream: stream.width * stream.height)
    codec = best.codec_context.codec.canonical_name
    if codec not in CODECS:
        raise InputError(f"{path} is coded as {codec}, which is not read here; convert it to H.264")
    _check_size(path, best.width, best.height, limits)
    best.thread_type = "AUTO"
    return best


def _check_size(path: str, width: int, height: int, limits: Limits) -> None:
    if not (0 < width <= limits.side and 0 < height <= limits.side and width * height <= limits.pixels):
        raise InputError(
            f"{path} has frames of {width} x {height}; at most {limits.pixels} pixels are read, make it smaller"
        )


def _info(video: _Video, frame, limits: Limits) -> Info:
    stream, container = video.stream, video.container
    unit, origin = float(stream.time_base), stream.start_time or 0
    fps = float(stream.average_rate or stream.guessed_rate or 0) or 25.0
    if stream.duration:
        declared = stream.duration * unit
    elif "DURATION" in stream.metadata:  # Matroska's: 00:00:05.000000000
        parts = stream.metadata["DURATION"].split(":")
        declared = sum(float(part) * 60**place for place, part in enumerate(reversed(parts)))
    else:
        declared = 0.0  # a container's own length may be that of its sound
    seconds = declared
    if len(stream.index_entries):
        seconds = max(seconds, (stream.index_entries[-1].timestamp - origin) * unit + 1 / fps)
    if not declared:
        seconds = max(seconds, (container.duration or 0) / 1e6)
    if seconds > limits.seconds:
        raise InputError(
            f"{video.path} is {seconds:.0f} s long, more than the {limits.seconds:.0f} allowed; cut it"
        )
    rotation = round(frame.rotation)
    if rotation % 90:
        raise InputError(f"{video.path} is turned by {rotation} degrees; only quarter turns are read")
    aspect = float(stream.sample_aspect_ratio or 1)
    aspect = aspect if 0.1 <= aspect <= 10 else 1.0
    height, width = frame.height, frame.width
    if rotation % 180:
        height, width, aspect = width, height, 1 / aspect
    return Info(
        path=video.path,
        height=height,
        width=max(1, round(width * aspect)),
        fps=fps,
        seconds=seconds,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=frame.format.name,
        rotation=rotation % 360,
        aspect=aspect,
        declared=declared,
    )


def _shown(video: _Video, start: float, limits: Limits) -> Iterator[tuple[float, av.VideoFrame]]:
    """`(sec, frame)` in the order shown, from the frame that is on at `start` (or an earlier one) on."""
    unit, origin = float(video.stream.time_base), video.stream.start_time or 0
    deadline = time.monotonic() + limits.wall
    if start > 0:
        video.container.seek(origin + int(start / unit), stream=video.stream)
    latest, size, first = -math.inf, None, True
    frames = video.container.decode(video.stream)
    while True:
        frame = next(frames, None)
        if frame is None and not first:
            return
        if frame is not None and frame.pts is None:
            raise InputError(f"{video.path} has no timestamps; convert it to mp4")
        sec = math.inf if frame is None else (frame.pts - origin) * unit
        if first and start > 0 and sec > start + SLACK:
            # The index led behind the place, or there is none: go from the beginning.
            video.container.seek(origin, stream=video.stream)
            frames, start = video.container.decode(video.stream), 0.0
            continue
        if frame is None:
            return
        first = False
        if time.monotonic() > deadline:
            raise InputError(
                f"{video.path} took more than {limits.wall:.0f} s to decode; cut it, or go on without it"
            )
        _check_size(video.path, frame.width, frame.height, limits)
        if size not in (None, (frame.width, frame.height)):
            raise InputError(f"{video.path} changes its size on the way; convert it to one size")
        size = frame.width, frame.height
        if sec > latest:
            latest = sec
            yield sec, frame


# H.273's codes of a matrix -> the scaler's
MATRIX = {1: 1, 4: 4, 5: 5, 6: 5, 7: 7, 9: 9, 10: 9}


def _pixels(video: _Video, frame, info: Info, size: tuple[int, int] | None) -> np.ndarray:
    """One frame as shown, uint8 ``[H, W, 3]``."""
    if frame.is_corrupt:
        raise InputError(
            f"{video.path} is damaged inside what was asked for; get it again, or go on without it"
        )
    options = {}
    if not frame.format.is_rgb:
        # Without a tag the usual guess: standard definition is BT.601, high definition BT.709, both limited range.
        guess = Colorspace.ITU709 if frame.height >= 720 else Colorspace.ITU601
        full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
        options = {
            "src_colorspace": MATRIX.get(int(frame.colorspace), int(guess)),
            "src_color_range": ColorRange.JPEG if full else ColorRange.MPEG,
            "dst_color_range": ColorRange.JPEG,
        }
    alpha = any(component.is_alpha for component in frame.format.components)
    shown = frame.reformat(format="rgba" if alpha else "rgb24", interpolation=EXACT, **options).to_ndarray()
    if alpha:  # on black
        shown = (shown[..., :3] * (shown[..., 3:] / 255) + 0.5).astype(np.uint8)
    shown = np.ascontiguousarray(np.rot90(shown, info.rotation // 90))
    return fit(shown, *(size or (info.height, info.width)), aspect=info.aspect)
