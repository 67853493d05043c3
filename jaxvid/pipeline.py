# SPDX-License-Identifier: Apache-2.0
"""From a sentence to a video: the one object that most users need.

    pipe = Pipeline.load()                                     # the shipped model, a bundle, or a training run's directory
    video = pipe("a large red star spins on a black background", seconds=4, seed=0)
    video.save("star.mp4")

A run goes through the stages encode (of given frames), text, sample and decode. One shot denoises all latent frames of a
video together; a roll-out goes chunk by chunk, each seeing the end of the one before, in memory that does not grow.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxvid import stages
from jaxvid.clip import Clip
from jaxvid.config import SAFE, build
from jaxvid.data.collate import frame_times, padded_spans, spans_of
from jaxvid.engine import Decoder, Engine
from jaxvid.io.bundle import SPEC, VAE, check_spec, is_bundle, load_bundle, read_json, save_bundle
from jaxvid.io.weights import load_weights
from jaxvid.request import Request, make_request, read_clip, read_picture
from jaxvid.types import InputError

SHIPPED = pathlib.Path(__file__).parent / "assets" / "shapes"


@dataclasses.dataclass(frozen=True)
class Event:
    """One step of a run.

    stage    'encode', 'text', 'sample' or 'decode'
    done     how far the stage is, of ``total`` ``unit``; ``note`` is 'compiling' when a wait is to be expected
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


@dataclasses.dataclass(frozen=True)
class Run:
    """What was asked for, checked and encoded: ready to be made by `Pipeline.events`."""

    request: Request
    given: Given


class Pipeline:
    """A text-to-video model, its autoencoder and its process, ready to be called.

    Attributes:
      spec: plain data, as in a bundle's pipeline.json.
      serves: sizes, rates and the greatest length that may be asked for. defaults: what a call takes when not told.
    """

    def __init__(self, spec: Mapping[str, Any], params, variables, card: str = ""):
        self.spec, self.card, self._kept = dict(spec), card, []
        self.serves, self.defaults = dict(spec["serves"]), dict(spec["defaults"])
        self.text_length = int(spec["text_length"])
        model, vae, process = (build(spec[part], SAFE) for part in ("model", "vae", "process"))
        self.engine = Engine(model, vae, process, params, variables, self.text_length)

    # Coming and going

    @classmethod
    def load(cls, path=None) -> Pipeline:
        """The shipped model (no argument), a bundle's directory, or a training run's. Raises `InputError`."""
        if path is None and not is_bundle(SHIPPED):
            raise InputError(
                f"no model is installed ({SHIPPED} is missing); give the directory of a bundle or a run"
            )
        path = pathlib.Path(SHIPPED if path is None else path)
        if not path.exists():
            raise InputError(
                f"checkpoint {path} does not exist; give the directory of a bundle or a training run"
            )
        if not path.is_dir():
            raise InputError(f"checkpoint {path} is a file; give the directory of a bundle or a training run")
        if is_bundle(path):
            card = path / "README.md"
            return cls(*load_bundle(path), card=card.read_text(encoding="utf-8") if card.is_file() else "")
        if (path / "config.json").is_file():
            return cls(*_load_run(path))
        raise InputError(
            f"{path} is neither a bundle (pipeline.json) nor a training run (config.json); check the path"
        )

    def save(self, path, *, dtype: str | None = None, card: str | None = None) -> pathlib.Path:
        """Writes a bundle: a directory that `load` reads anywhere. ``dtype='bfloat16'`` halves it."""
        params, variables = self.engine.params, self.engine.variables
        return save_bundle(
            path, self.spec, params, variables, dtype=dtype, card=self.card if card is None else card
        )

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.engine.params)) / 1e6
        sizes = ", ".join(f"{height}x{width}" for height, width in self.serves["sizes"])
        rates = ", ".join(f"{fps:g}" for fps in self.serves["fps"])
        return f"Pipeline({count:.1f} M parameters; sizes {sizes}; {rates} frames per second)"

    @property
    def compilations(self) -> dict[str, int]:
        """How often each stage was compiled so far; a second call of the same shape adds nothing."""
        return dict(self.engine.executables.counts)

    @property
    def seconds(self) -> dict[str, dict[str, float]]:
        """Per stage: what compiling took in all, and what a unit (row, latent frame) takes once compiled."""
        compiling, steady = self.engine.executables.seconds, self.engine.steady
        return {
            stage: {"compile": took, "steady": steady.get(stage, float("nan"))}
            for stage, took in compiling.items()
        }

    @property
    def latents(self):
        """Those of the last run, float32 [B, F, h, w, C] as far as it came, or None: a failing writer loses nothing."""
        return np.concatenate(self._kept, 1) if self._kept else None

    # Making videos

    def __call__(self, prompt=None, **options) -> Clip | list[Clip]:
        """A clip for a prompt or a story; a list of clips for a list of prompts or ``num`` > 1. Options as in `stream`."""
        run = self.prepare(prompt, **options)
        request = run.request
        frames = np.empty((request.batch, request.frames, request.height, request.width, 3), np.uint8)
        at = 0
        for event in self.events(run):
            if event.frames is not None:
                new = event.frames[None] if request.single else event.frames
                frames[:, at : at + new.shape[1]] = new
                at += new.shape[1]
        latents = self.latents
        clips = [Clip(frames[i], request.fps, latents[i], request.recipe(i)) for i in range(request.batch)]
        return clips[0] if request.single else clips

    def stream(
        self,
        prompt=None,
        *,
        story=None,
        seconds: float | None = None,
        fps: float | None = None,
        size=None,
        seed=0,
        num: int = 1,
        steps: int | None = None,
        guidance: float | None = None,
        negative: str | None = None,
        image=None,
        last_image=None,
        video=None,
        solver: str | None = None,
        method: str | None = None,
        dtype: str | None = None,
    ) -> Iterator[Event]:
        """The same as calling, as an iterator of `Event`; decoded frames come as they are made and are not kept.

        Everything is checked before the first event. ``close()`` the iterator to cancel the run.

        Args:
          prompt: a sentence, or a list of them for a batch. Beside a story it speaks until the story begins.
          story: ``[(seconds, sentence), ...]``, from 0 on, in order.
          seconds: length of the result, which has exactly ``round(seconds * fps)`` frames, a given ``video`` included.
          fps, size: of those that the checkpoint serves; size is ``(height, width)`` or one number for both.
          seed: 0 .. 2**32-1, one number (seed, seed + 1, ... for further videos) or one per video.
          num: how many videos per prompt.
          steps, solver: of sampling. guidance: 1 is none.
          negative: what it should not look like; takes the place of the learned null text.
          image: path, PIL image or uint8 [H, W, 3]: the first frame. last_image: the last one.
          video: path, `Clip` or uint8 [T, H, W, 3]: the result begins with it and goes on from its last frames.
          method: 'oneshot', or 'rollout' for memory that does not grow with the length.
          dtype: that the networks compute in, 'float32' or 'bfloat16'.

        Raises `InputError`; `FloatingPointError` when numbers run out of range, naming the step.
        """
        options = {k: v for k, v in locals().items() if k not in ("self", "prompt")}
        return self.events(self.prepare(prompt, **options))

    def decode(self, latents, frames: int | None = None, fps: float | None = None, recipe=None) -> Clip:
        """A clip from kept latents, float32 [F, h, w, C]; ``frames`` cuts it. Raises `InputError`."""
        latents = self.engine.check_latents(latents)
        made = [event.frames for event in self.stream_decode(latents, frames)]
        return Clip(np.concatenate(made), fps or self.serves["fps"][0], latents, recipe)

    def stream_decode(self, latents, frames: int | None = None) -> Iterator[Event]:
        """`decode` as an iterator of events with frames."""
        latents = self.engine.check_latents(latents)
        total = stages.frames_of(len(latents), self.engine.vae.time_factor)
        total = total if frames is None else min(frames, total)
        pieces = (_padded(latents[None, i : i + stages.CHUNK]) for i in range(0, len(latents), stages.CHUNK))
        decoder, at = Decoder(self.engine, "float32"), 0
        for piece in pieces:
            new = decoder(piece)[0, : total - at]
            at += len(new)
            yield Event("decode", at, total, "frames", frames=new)

    def encode(self, frames) -> np.ndarray:
        """Latents float32 [F, h, w, C] of uint8 frames [T, H, W, 3]; a last incomplete group repeats its last frame."""
        return np.concatenate([latents for latents, _ in self.engine.encode([np.asarray(frames)], "float32")])

    def prepare(
        self, prompt=None, *, image=None, last_image=None, video=None, seed=0, num=1, **options
    ) -> Run:
        """Checks all that was asked for, as in `stream`, and encodes what is given. Raises `InputError`."""
        names = (
            "story",
            "seconds",
            "fps",
            "size",
            "steps",
            "guidance",
            "negative",
            "solver",
            "method",
            "dtype",
        )
        if unknown := sorted(set(options) - set(names)):
            raise TypeError(f"a pipeline has no option {', '.join(unknown)}; it has {', '.join(names)}")
        request = make_request(
            prompt,
            seed=seed,
            num=num,
            **{name: options.get(name) for name in names},
            serves=self.serves,
            defaults=self.defaults,
            text_length=self.text_length,
            solvers=stages.SOLVERS,
        )
        size = request.height, request.width
        if video is not None and image is not None:
            raise InputError("an image (first frame) and a video to extend cannot be combined; leave one out")
        video = None if video is None else read_clip(video, request.fps, size)
        if video is not None and len(video) >= request.frames:
            raise InputError(
                f"the video has {len(video) / request.fps:g} s already and seconds counts the whole result;"
                f" ask for more than that"
            )
        image = None if image is None else read_picture(image, size)
        last_image = None if last_image is None else read_picture(last_image, size)
        if image is not None and last_image is not None and request.frames < 2:
            raise InputError("a first and a last image need at least two frames; ask for more seconds")
        return Run(request, self._given(request, image, last_image, video))

    def _given(self, request: Request, image, last_image, video) -> Given:
        """Encodes what is given. A picture becomes a still clip, whose first latent is that of a first frame (which stands
        alone) and whose last one is that of a frame in the middle of things."""
        n, context = self.engine.vae.time_factor, 0
        before = 0 if video is None else len(video)
        if before:
            most = int(self.serves.get("context", 2 * stages.CHUNK))
            context = min(most, (before - 1) // n + 1)
        first = before - stages.frames_of(context, n) if before else 0
        count = self.engine.vae.latent_frames(request.frames - first)
        _, *shape = self.engine.vae.latent_shape(1, request.height, request.width)
        latents, mask = np.zeros((count, *shape), np.float32), np.zeros(count, bool)
        if before:
            latents[:context], mask[:context] = self._encoded(video[first:], request.dtype)[:context], True
        still = stages.frames_of(stages.CHUNK, n)
        if image is not None:
            latents[0], mask[0] = self._encoded(np.repeat(image[None], still, 0), request.dtype)[0], True
        if last_image is not None:
            still_clip = np.repeat(last_image[None], still, 0)
            latents[-1], mask[-1] = self._encoded(still_clip, request.dtype)[-1], True
        if mask.all():
            raise InputError("every frame is given and nothing is left to make; ask for more seconds")
        return Given(latents, mask, first, video)

    def _encoded(self, frames, dtype):
        return np.concatenate([latents for latents, _ in self.engine.encode([frames], dtype)])

    def events(self, run: Run) -> Iterator[Event]:
        """The run itself, event by event. Frames are handed out and forgotten; latents are kept."""
        request, given = run.request, run.given
        self._kept = []
        at = 0 if given.before is None else len(given.before)
        if at:
            before = np.broadcast_to(given.before, (request.batch, *given.before.shape))
            yield Event("decode", at, request.frames, "frames", frames=_answer(request, before))
        texts = list(dict.fromkeys(text for story in request.stories for _, text in story))
        texts += [] if request.negative is None else [request.negative]
        yield Event("text", 0, len(texts), "sentences", "" if self.compilations.get("text") else "compiling")
        count = len(given.mask)
        padded = -(-count // stages.CHUNK) * stages.CHUNK
        window, overlap = self.engine.window(request, padded, *self._windows())
        padded = window + -(-(padded - window) // (window - overlap)) * (window - overlap)
        told = self._told(request, given, texts, padded)
        yield Event("text", len(texts), len(texts), "sentences")

        latents = np.pad(given.latents, [(0, padded - count)] + [(0, 0)] * 3)
        mask = np.pad(given.mask, (0, padded - count))
        decoder, place = Decoder(self.engine, request.dtype), 0
        for done, total, note, new in self.engine.sample(request, told, latents, mask, window, overlap):
            if new is None:
                yield Event("sample", done, total, "steps", note)
                continue
            self._kept.append(new[:, : count - place])
            for i in range(0, min(new.shape[1], count - place), stages.CHUNK):
                piece = new[:, i : i + stages.CHUNK]
                if not decoder.ready(piece):
                    yield Event("decode", at, request.frames, "frames", "compiling")
                # frames of the given video are there already
                skip = max(0, at - given.first - decoder.frames)
                frames = decoder(piece)[:, skip : skip + request.frames - at]
                at += frames.shape[1]
                yield Event("decode", at, request.frames, "frames", frames=_answer(request, frames))
            place += new.shape[1]

    def _windows(self) -> tuple[int, int]:
        """Of a roll-out: latent frames that are denoised together, and how many of them are the past."""
        return int(self.serves.get("window", 4 * stages.CHUNK)), int(self.serves.get("overlap", stages.CHUNK))

    def _told(self, request: Request, given: Given, texts: list[str], padded: int) -> dict[str, Any]:
        """What the model is told: `text`, `text_mask` [B, S, L, ...], `span` [B, F], and `null` if there is a negative."""
        text, mask = self.engine.text(texts, request.dtype)
        most = padded_spans(max(map(len, request.stories)), SPANS)
        times = given.first + frame_times(padded, self.engine.vae.time_factor)
        rows = [[texts.index(said) for _, said in story] for story in request.stories]
        rows = np.asarray([row + [row[-1]] * (most - len(row)) for row in rows])
        spans = [[(round(at * request.fps), said) for at, said in story] for story in request.stories]
        span = np.stack([spans_of(captions, times) for captions in spans])
        null = None
        if request.negative is not None:
            null = np.full_like(rows, len(texts) - 1)
            null = {"text": text[null], "text_mask": mask[null]}
        return {"text": text[rows], "text_mask": mask[rows], "span": span, "null": null}


def _load_run(path: pathlib.Path):
    """``(spec, params, variables)`` of a training run: the average of its last stage that makes videos."""
    from jaxvid.io.checkpoint import load_ema

    config = read_json(path / "config.json")
    order = [str(name) for name in config.get("order") or ()]
    stages_ = [name for name in order if (path / name / SPEC).is_file()]
    if not stages_:
        raise InputError(
            f"{path} has no stage that makes videos yet (none of {', '.join(order) or 'no stages'}); train on"
        )
    name = stages_[-1]
    spec = check_spec(read_json(path / name / SPEC), path / name / SPEC)
    return spec, load_ema(path, name)["params"], load_weights(path / "codec" / VAE)


SPANS = (1, 2, 4, 8, 16)  # buckets of the number of captions


def _answer(request: Request, frames):
    """Frames [B, n, ...] as they were asked for: one video alone has no batch."""
    return frames[0] if request.single else frames


def _padded(latents):
    """Latents [B, n <= 8, ...] repeated to the piece that the decoder is compiled for."""
    short = stages.CHUNK - latents.shape[1]
    return np.concatenate([latents, np.repeat(latents[:, -1:], short, 1)], 1) if short else latents
