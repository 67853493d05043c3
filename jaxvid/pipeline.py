# SPDX-License-Identifier: Apache-2.0
"""From a sentence to a video: the one object that most users need.

    pipe = Pipeline.load()                                     # the shipped model, a bundle, or a training run's directory
    video = pipe("a large yellow circle slides up and down", seconds=4, seed=0)
    video.save("circle.mp4")

What a run does is in `jaxvid.run`.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvid import stages
from jaxvid.clip import Clip
from jaxvid.config import SAFE, build
from jaxvid.engine import Decoder, Engine
from jaxvid.io.bundle import SPEC, VAE, check_spec, is_bundle, load_bundle, read_json, save_bundle
from jaxvid.io.weights import load_weights
from jaxvid.pixels import read_clip, read_images, read_mask, read_picture
from jaxvid.recipe import fingerprint, given_files, path_text
from jaxvid.request import make_request
from jaxvid.run import Event, Run, encode_given, encode_source, events, padded
from jaxvid.sampling.methods.table import METHODS
from jaxvid.traits import ASSETS, FIRST, shipped, traits_of
from jaxvid.types import InputError, a_path, did_you_mean

OPTIONS = ("story", "seconds", "fps", "size", "steps", "guidance", "negative", "solver", "method", "dtype")
OPTIONS += ("guidance_interval", "guidance_kind", "cache", "strength", "fade")
SHIPPED = ASSETS / FIRST


class Pipeline:
    """A text-to-video model, its autoencoder and its process, ready to be called.

    Attributes:
      spec: plain data, as in a bundle's pipeline.json.
      serves: sizes, rates and the greatest length that may be asked for. defaults: what a call takes when not told.
      source: what `load` was given, or a shipped model's name; None for a model that was never loaded.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        params,
        variables,
        card: str = "",
        folder=None,
        mesh: Mesh | None = None,
        source: str | None = None,
    ):
        self.spec, self.card, self.folder, self._kept = dict(spec), card, folder, []
        self.source, self._fingerprint = source, None
        self.serves, self.defaults = dict(spec["serves"]), dict(spec["defaults"])
        for name in ("window", "overlap", "context"):  # a training config may write these among the defaults
            if name in self.defaults:
                self.serves.setdefault(name, self.defaults.pop(name))
        self.text_length = int(spec["text_length"])
        model, vae, process = (build(spec[part], SAFE) for part in ("model", "vae", "process"))
        more = {}
        if spec.get("tokenizer"):
            from jaxvid.data.tokens import load_tokenizer

            more["tokenize"] = load_tokenizer(pathlib.Path(folder or ".", "tokenizer"))
        keep = "imported" in spec
        self.engine = Engine(
            model, vae, process, params, variables, self.text_length, keep=keep, mesh=mesh, **more
        )

    # Coming and going

    @classmethod
    def load(cls, path=None, *, mesh: Mesh | None = None) -> Pipeline:
        """The shipped model (no argument), another shipped one by name, a bundle's directory, or a training run's.

        Raises `InputError`.

        mesh: of `jaxvid.sharding.make_mesh`, the devices that make a video together (None: one). The same request gives
        the same video on any mesh, up to the rounding of sums in another order.
        """
        if path is None and not is_bundle(SHIPPED):
            raise InputError(
                f"no model is installed ({SHIPPED} is missing); give the directory of a bundle or a run"
            )
        asked = path
        path = pathlib.Path(SHIPPED if path is None else a_path(path, "checkpoint"))
        if not path.exists() or asked == "":
            names = {one.name: one for one in shipped()}
            if str(path) not in names:
                near = did_you_mean(str(path), names, 0.8) or (
                    f"; give the directory of a bundle or a training run, or a shipped model's name: {', '.join(names)}"
                )
                raise InputError(f"checkpoint {str(asked)!r} does not exist{near}")
            path = names[str(path)]
        if not path.is_dir():
            raise InputError(f"checkpoint {path} is a file; give the directory of a bundle or a training run")
        if is_bundle(path):
            card = path / "README.md"
            card = card.read_text(encoding="utf-8") if card.is_file() else ""
            source = path.name if path.parent == ASSETS else str(path)
            return cls(*load_bundle(path), card=card, folder=path, mesh=mesh, source=source)
        if (path / "config.json").is_file():
            tuned = sorted(path.glob(f"*/bundle/{SPEC}"))  # what a run leaves that tuned an imported bundle
            if tuned:
                return cls.load(tuned[-1].parent, mesh=mesh)
            return cls(*_load_run(path), mesh=mesh, source=str(path))
        if (pathlib.Path(path) / "parts.json").is_file():
            raise InputError(
                f"{path} holds single networks and no pipeline; import a folder that has the transformer, the"
                " autoencoder, the text encoder and the tokenizer"
            )
        raise InputError(
            f"{path} is neither a bundle (pipeline.json) nor a training run (config.json); check the path"
        )

    def save(
        self, path, *, dtype: str | None = None, card: str | None = None, vae_in: str | None = None
    ) -> pathlib.Path:
        """Writes a bundle: a directory that `load` reads anywhere. ``dtype='bfloat16'`` halves it.

        vae_in: name of a bundle in the same folder that has the same autoencoder, which is then not written again.
        """
        params, variables = self.engine.params, self.engine.variables
        card = self.card if card is None else card
        own = [] if self.folder is None else sorted(pathlib.Path(self.folder).glob("LICEN[CS]E*"))
        own += [pathlib.Path(self.folder, "tokenizer")] if self.spec.get("tokenizer") else []
        return save_bundle(
            path, self.spec, params, variables, dtype=dtype, card=card, beside=own, vae_in=vae_in
        )

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.engine.params)) / 1e6
        sizes = ", ".join(f"{height}x{width}" for height, width in self.serves["sizes"])
        rates = ", ".join(f"{fps:g}" for fps in self.serves["fps"])
        return f"Pipeline({count:.1f} M parameters; sizes {sizes}; {rates} frames per second)"

    @property
    def traits(self) -> frozenset[str]:
        """What a method may ask of the model, see `jaxvid.sampling.methods.table`."""
        return traits_of(self.engine.model, self.serves)

    @property
    def fingerprint(self) -> str:
        """What tells this checkpoint from others, by what it computes (`jaxvid.recipe.fingerprint`)."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.spec, self.engine.params, self.engine.variables)
        return self._fingerprint

    def recipe(self, run: Run, number: int = 0) -> dict[str, Any]:
        """Everything that is needed to make video ``number`` of a run again, as plain data: the request, what was given
        to it, the checkpoint and where it was made. `jaxvid recipe` makes a command of it."""
        recipe = run.request.recipe(number) | ({"given": dict(run.files)} if run.files else {})
        source = None if self.source is None else path_text(self.source)
        recipe["checkpoint"] = {"path": source, "fingerprint": self.fingerprint}
        recipe["made_on"] = {"jax": jax.__version__, "device": jax.devices()[0].platform}
        if run.request.batch > 1:
            recipe["beside"] = run.request.batch - 1
        if self.engine.mesh is not None:
            shape = self.engine.mesh.shape
            recipe["mesh"] = ",".join(f"{axis}={size}" for axis, size in shape.items())
        return recipe

    @property
    def compilations(self) -> dict[str, int]:
        """How often each stage was compiled so far; a second call of the same shape adds nothing."""
        return dict(self.engine.executables.counts)

    @property
    def seconds(self) -> dict[str, dict[str, float]]:
        """What compiling each stage took in all, and what a unit (row, latent frame) takes once compiled."""
        compiling, steady = self.engine.executables.seconds, self.engine.steady
        return {
            stage: {"compile": took, "steady": steady.get(stage, float("nan"))}
            for stage, took in compiling.items()
        }

    @property
    def latents(self):
        """Those of the last run, float32 [B, F, h, w, C] as far as it came, or None. A failing writer loses nothing."""
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
        clips = [Clip(frames[i], request.fps, latents[i], self.recipe(run, i)) for i in range(request.batch)]
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
        images=None,
        video=None,
        solver: str | None = None,
        method: str | None = None,
        dtype: str | None = None,
        guidance_interval=None,
        guidance_kind: str | None = None,
        cache: float | None = None,
        strength: float | None = None,
        fade: float | None = None,
        mask=None,
        **more,
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
          images: [(seconds, image), ...], frames at any time.
          video: path, `Clip` or uint8 [T, H, W, 3]: the result begins with it and goes on from its last frames.
          method: 'oneshot', 'rollout' for memory that does not grow with the length, or another one of
            `jaxvid.sampling.methods.table` (`jaxvid methods` lists them); its own options are further keywords.
          dtype: that the networks compute in, 'float32' or 'bfloat16'.
          guidance_interval: (low, high), noise levels between which there is guidance; outside of it half the work is saved.
          guidance_kind: 'cfg', 'apg' (projected, against over-saturation) or 'zero' (CFG-Zero*).
          cache: reuse the network's last answer while its input changes by less than this in all (0.1 to 0.3 is usual).
          strength: in (0, 1), make the given ``video`` anew from this noise level on instead of going on from its end.
          fade: seconds that a change from one caption to the next takes (default 0), half of them before it is due.
          mask: bool [H, W] or [T, H, W], True where the given ``video`` is to be made anew; the rest of its latents stays.

        Raises `InputError`; `FloatingPointError` when numbers run out of range, naming the step.
        """
        options = {k: v for k, v in locals().items() if k not in ("self", "prompt", "more")}
        return self.events(self.prepare(prompt, **options, **more))

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
        pieces = (padded(latents[None, i : i + stages.CHUNK]) for i in range(0, len(latents), stages.CHUNK))
        decoder, at = Decoder(self.engine, "float32"), 0
        for piece in pieces:
            new = decoder(piece)[0, : total - at]
            at += len(new)
            yield Event("decode", at, total, "frames", frames=new)

    def encode(self, frames) -> np.ndarray:
        """Latents float32 [F, h, w, C] of uint8 frames [T, H, W, 3]; a last incomplete group repeats its last frame."""
        return np.concatenate([latents for latents, _ in self.engine.encode([np.asarray(frames)], "float32")])

    def prepare(
        self,
        prompt=None,
        *,
        image=None,
        last_image=None,
        images=None,
        video=None,
        mask=None,
        seed=0,
        num=1,
        **options,
    ) -> Run:
        """Checks all that was asked for, as in `stream`, and encodes what is given. Raises `InputError`."""
        methods = {name for entry in METHODS.values() for name in entry.options}
        if unknown := sorted(set(options) - set(OPTIONS) - methods):
            known = [*OPTIONS, "image", "last_image", "images", "video", "mask", "seed", "num"]
            hint = did_you_mean(unknown[0], known) or f"; it has {', '.join(known)}"
            raise TypeError(f"a pipeline has no option {', '.join(unknown)}{hint}")
        request = make_request(
            prompt,
            seed=seed,
            num=num,
            **{name: options.get(name) for name in OPTIONS},
            serves=self.serves,
            defaults=self.defaults,
            text_length=int(self.spec.get("text_bytes", self.text_length)),
            solvers=stages.SOLVERS,
            traits=self.traits,
            options={name: value for name, value in options.items() if name not in OPTIONS},
        )
        size = request.height, request.width
        files = given_files(images, image=image, last_image=last_image, video=video, mask=mask)
        if request.strength < 1 or mask is not None:
            if video is None or image is not None or last_image is not None or images:
                raise InputError("strength and mask make a video anew: give a video, and no images")
            video = read_clip(video, request.fps, size)
            frames = len(video) if options.get("seconds") is None else request.frames
            if frames > len(video):
                raise InputError(
                    f"seconds asks for {frames} frames and the video has {len(video)}; ask for less, or leave it out"
                )
            request = dataclasses.replace(request, frames=frames)
            mask = None if mask is None else read_mask(mask, len(video), size)
            return Run(request, encode_source(self.engine, request, video, mask), files)
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
        images = read_images(images, request.frames, request.fps, size)
        if images and video is not None:
            raise InputError("images at times and a video to extend cannot be combined; leave one out")
        given = encode_given(self.engine, self.serves, request, image, last_image, video, images)
        return Run(request, given, files)

    def events(self, run: Run) -> Iterator[Event]:
        """The run itself, event by event. Frames are handed out and forgotten; latents are kept."""
        self._kept = []
        return events(self.engine, run, self.serves, self._kept)


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
    params = load_ema(path, name)["params"]
    part = spec.pop("part", None)  # of networks that were trained together, the one that makes videos
    return spec, params if part is None else params[part], load_weights(path / "codec" / VAE)
