# SPDX-License-Identifier: Apache-2.0
"""One run: from what was asked, and checked, to frames, as a stream of events.

A run goes through the stages encode (of given frames, when it is prepared), text, sample and decode. One shot denoises all
latent frames of a video together; a roll-out goes window by window, each seeing the end of the one before, in memory that
does not grow; for the other methods see `jaxvid.sampling.methods`. Frames are decoded as soon as their latents are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxvid import stages
from jaxvid.data.collate import frame_times, padded_spans
from jaxvid.engine import Decoder, Engine
from jaxvid.request import Request
from jaxvid.sampling.fade import fade, spans_for
from jaxvid.sampling.methods.method import Method, Setting
from jaxvid.sampling.methods.table import make
from jaxvid.types import InputError

SPANS = (1, 2, 4, 8, 16, 32, 64)  # buckets of the number of captions


@dataclasses.dataclass(frozen=True)
class Event:
    """One step of a run.

    stage    'encode', 'text', 'sample' or 'decode'
    done     how far the stage is, of ``total`` ``unit``, which are calls of the network in 'sample'; ``note`` is 'compiling'
             when a wait is to be expected
    frames   decoded frames, uint8 [n, H, W, 3], or [B, n, H, W, 3] where a list of videos was asked for; else None
    """

    stage: str
    done: int
    total: int
    unit: str
    note: str = ""
    frames: Any = None


@dataclasses.dataclass(frozen=True)
class Given:
    """What a run need not make: clean latents (and which), and the video that comes before the new frames."""

    latents: Any  # float32 [F, h, w, C], zeros where not given
    mask: Any  # bool [F]
    first: int = 0  # place in the result of the frame that the first latent stands for
    before: Any = None  # uint8 [n, H, W, 3], the video to extend
    beside: Any = None  # float32 [F, h, w, N], what tells a network that asks for it of a first image
    image: Any = None  # float32 [L, E], features of that image
    source: Any = None  # float32 [F, h, w, C], a video to make anew
    keep: Any = None  # bool [F, h, w], parts of it that stay


@dataclasses.dataclass(frozen=True)
class Run:
    """What was asked for, checked and encoded: ready to be made by `Pipeline.events`.

    files   where what is given came from, as `jaxvid.recipe.given_files` tells it
    """

    request: Request
    given: Given
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def encode_given(
    engine: Engine, serves: Mapping[str, Any], request: Request, image, last_image, video, images=()
) -> Given:
    """Encodes what is given. A picture becomes a still clip, whose first latent is that of a first frame (which stands
    alone) and whose last one is that of a frame in the middle of things. ``images`` are pairs (frame, picture)."""
    if engine.beside:
        return _told_beside(engine, request, image, last_image, video)
    n, context = engine.vae.time_factor, 0
    before = 0 if video is None else len(video)
    if before:
        most = int(serves.get("context", 2 * stages.CHUNK))
        context = min(most, (before - 1) // n + 1)
    first = before - stages.frames_of(context, n) if before else 0
    count = engine.vae.latent_frames(request.frames - first)
    _, *shape = engine.vae.latent_shape(1, request.height, request.width)
    latents, mask = np.zeros((count, *shape), np.float32), np.zeros(count, bool)
    if before:
        latents[:context], mask[:context] = _encoded(engine, video[first:], request.dtype)[:context], True
    still = stages.frames_of(stages.CHUNK, n)
    if image is not None:
        latents[0], mask[0] = _encoded(engine, np.repeat(image[None], still, 0), request.dtype)[0], True
    places = [(-(-frame // n), picture) for frame, picture in images]
    for place, picture in places + ([] if last_image is None else [(count - 1, last_image)]):
        made = _encoded(engine, np.repeat(picture[None], still, 0), request.dtype)
        latents[place], mask[place] = made[-1 if place else 0], True
    if mask.all():
        raise InputError("every frame is given and nothing is left to make; ask for more seconds")
    return Given(latents, mask, first, video)


def _told_beside(engine: Engine, request: Request, image, last_image, video) -> Given:
    """What a network is told of its first image in channels beside the latents: where it is known (a channel per frame
    that a latent stands for), and the latents of a video that begins with it and is grey from then on."""
    if image is None or last_image is not None or video is not None:
        raise InputError(
            "this checkpoint makes videos from a first image: give image, and no last_image or video"
        )
    if request.method != "oneshot":
        raise InputError("this checkpoint sees its first image in every window; use method='oneshot'")
    grey = np.full((request.frames, *image.shape), 127.5, np.float32)
    grey[0] = image
    latents = _encoded(engine, grey, request.dtype)
    known = np.zeros((*latents.shape[:3], engine.beside - latents.shape[-1]), np.float32)
    known[0] = 1
    features = engine.image(image, request.dtype) if engine.image_side else None
    nothing = np.zeros_like(latents), np.zeros(len(latents), bool)
    return Given(*nothing, beside=np.concatenate([known, latents], -1), image=features)


def encode_source(engine: Engine, request: Request, video, anew) -> Given:
    """Encodes a video that is to be made anew, as long as the request: all of it, or where ``anew`` bool [T, H, W] says so.

    A place of the latents stays when no pixel that it stands for is to be made anew.
    """
    n = engine.vae.time_factor
    count = engine.vae.latent_frames(request.frames)
    source = _encoded(engine, video[: request.frames], request.dtype)[:count]
    keep = None
    if anew is not None:
        late = stages.frames_of(count, n) - request.frames
        anew = np.concatenate(
            [anew[: request.frames], np.repeat(anew[request.frames - 1 : request.frames], late, 0)]
        )
        _, h, w, _ = source.shape
        cells = anew.reshape(len(anew), h, anew.shape[1] // h, w, anew.shape[2] // w).any((2, 4))
        keep = ~np.concatenate([cells[:1], cells[1:].reshape(count - 1, n, h, w).any(1)])
    return Given(np.zeros_like(source), np.zeros(count, bool), source=source, keep=keep)


def _encoded(engine, frames, dtype):
    return np.concatenate([latents for latents, _ in engine.encode([frames], dtype)])


def events(engine: Engine, run: Run, serves: Mapping[str, Any], kept: list) -> Iterator[Event]:
    """The run itself, event by event. Frames are handed out and forgotten; latents are appended to ``kept``."""
    request, given = run.request, run.given
    at = 0 if given.before is None else len(given.before)
    if at:
        before = np.broadcast_to(given.before, (request.batch, *given.before.shape))
        yield Event("decode", at, request.frames, "frames", frames=_answer(request, before))
    texts = list(dict.fromkeys(text for story in request.stories for _, text in story))
    texts += [] if request.negative is None else [request.negative]
    count = len(given.mask)
    method = method_of(engine, serves, request, count)  # which may refuse, before anything is computed
    yield Event("text", 0, len(texts), "sentences", "" if engine.executables.counts["text"] else "compiling")
    told = _told(engine, request, given, texts, method.frames)
    yield Event("text", len(texts), len(texts), "sentences")

    more = method.frames - count
    latents, mask = np.pad(given.latents, [(0, more)] + [(0, 0)] * 3), np.pad(given.mask, (0, more))
    anew = {
        "source": None if given.source is None else np.pad(given.source, [(0, more)] + [(0, 0)] * 3, "edge"),
        "keep": None if given.keep is None else np.pad(given.keep, [(0, more)] + [(0, 0)] * 2),
    }
    decoder, place = Decoder(engine, request.dtype), 0
    for done, total, note, new in engine.sample(request, method, told, latents, mask, **anew):
        if new is None:
            yield Event("sample", done, total, "calls", note)
            continue
        kept.append(new[:, : count - place])
        for i in range(0, min(new.shape[1], count - place), stages.CHUNK):
            piece = padded(new[:, i : i + stages.CHUNK])
            if not decoder.ready(piece):
                yield Event("decode", at, request.frames, "frames", "compiling")
            # frames of the given video are there already
            skip = max(0, at - given.first - decoder.frames)
            frames = decoder(piece)[:, skip : skip + request.frames - at]
            at += frames.shape[1]
            new_ones = _answer(request, frames) if frames.size else None
            yield Event("decode", at, request.frames, "frames", frames=new_ones)
        place += new.shape[1]


def method_of(engine: Engine, serves: Mapping[str, Any], request: Request, count: int) -> Method:
    """The values of a request's method for a video of ``count`` latent frames."""
    # weights from elsewhere know no frames beyond the last
    multiple = int(serves.get("multiple", stages.CHUNK))
    whole = -(-count // multiple) * multiple
    window, overlap = windows_of(serves)
    setting = Setting(whole, request.steps, window, overlap, engine.model_is_causal)
    method = make(request.method, setting, dict(request.options))
    shown = method.window if method.windows is None else method.windows.length
    if shown % engine.block and (method.remembers or shown > engine.block):
        raise InputError(
            f"method {request.method!r} shows the model {shown} latent frames at a time, and this one works in blocks of"
            f" {engine.block}; use windows of whole blocks"
        )
    return method


def windows_of(serves: Mapping[str, Any]) -> tuple[int, int]:
    """Of a roll-out: latent frames that are denoised together, and how many of them are the past."""
    window, overlap = int(serves.get("window", 4 * stages.CHUNK)), int(serves.get("overlap", stages.CHUNK))
    if window % stages.CHUNK or overlap % stages.CHUNK or not 0 <= overlap < window:
        raise InputError(
            f"this checkpoint serves windows of {window} latent frames with an overlap of {overlap}; both must be"
            f" multiples of {stages.CHUNK}, the second the smaller one"
        )
    return window, overlap


def _told(engine: Engine, request: Request, given: Given, texts: list[str], frames: int) -> dict[str, Any]:
    """What the model is told: `text`, `text_mask` [B, S, L, ...], `span` [B, F], which caption is the `last` [B], and
    `null` if there is a negative."""
    text, mask = engine.text(texts, request.dtype)
    most = padded_spans(max(spans_for(len(story), request.fade) for story in request.stories), SPANS)
    times = given.first + frame_times(frames, engine.vae.time_factor)
    rows = []
    for story in request.stories:
        said = [texts.index(one) for _, one in story]
        starts = [at * request.fps if request.fade else round(at * request.fps) for at, _ in story]
        row, heard, span = fade(text[said], mask[said], starts, times, request.fade * request.fps)
        more = [(0, most - len(row)), (0, 0)]
        rows.append((np.pad(row, [*more, (0, 0)], "edge"), np.pad(heard, more, "edge"), span))
    said, heard, span = (np.stack(part) for part in zip(*rows, strict=True))
    null = None
    if request.negative is not None:
        one = {"text": text[len(texts) - 1], "text_mask": mask[len(texts) - 1]}
        shape = said.shape[:2]
        null = {name: np.broadcast_to(a, (*shape, *a.shape)).copy() for name, a in one.items()}
    more = {
        name: value for name, value in (("beside", given.beside), ("image", given.image)) if value is not None
    }
    if "beside" in more:
        more["beside"] = np.pad(more["beside"], [(0, frames - len(given.mask))] + [(0, 0)] * 3)
    more = {name: np.repeat(value[None], request.batch, 0) for name, value in more.items()}
    last = np.asarray([len(story) - 1 for story in request.stories], np.int32)
    return {"text": said, "text_mask": heard, "span": span, "last": last, "null": null, "more": more}


def _answer(request: Request, frames):
    """Frames [B, n, ...] as they were asked for: one video alone has no batch."""
    return frames[0] if request.single else frames


def padded(latents):
    """Latents [B, n <= 8, ...] repeated to the piece that the decoder is compiled for."""
    short = stages.CHUNK - latents.shape[1]
    return np.concatenate([latents, np.repeat(latents[:, -1:], short, 1)], 1) if short else latents
