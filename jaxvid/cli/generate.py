# SPDX-License-Identifier: Apache-2.0
"""Makes a video from a sentence or a story and writes it while it is made."""

from __future__ import annotations

import pathlib
import re

from jaxvid.cli import main
from jaxvid.cli.plan_topology import parse_mesh
from jaxvid.cli.progress import Progress
from jaxvid.cli.record import check_writable, outputs, record, spare
from jaxvid.types import InputError, did_you_mean


def arguments(parser):
    add = parser.add_argument
    add("prompt", nargs="?", help="what the video shows; beside a story, until the story begins")
    add(
        "--story",
        metavar="FILE",
        help="YAML: a list of {at: seconds, prompt: text}; what begins with [ is the list itself",
    )
    add("--seconds", type=float, help="length of the video (default: the checkpoint's, a few seconds)")
    add(
        "--out",
        default="out.mp4",
        help=".mp4, .gif or .webp (default: out.mp4); with --num, out-0.mp4, out-1.mp4, ...",
    )
    add("--image", metavar="FIRST.png", help="the first frame")
    add("--last-image", metavar="LAST.png", help="the last frame")
    add(
        "--image-at",
        nargs=2,
        action="append",
        default=[],
        metavar=("SECONDS", "IMAGE.png"),
        help="a frame in between; may be repeated",
    )
    add("--video", metavar="CLIP.mp4", help="a video to go on from; --seconds is the length of the whole")
    add("--negative", metavar="TEXT", help="what it should not look like")
    add("--seed", type=int, default=0, help="the same seed makes the same video (default: 0)")
    add("--num", type=int, default=1, help="how many videos (seeds SEED, SEED+1, ...)")
    add("--steps", type=int, help="of sampling")
    add("--guidance", type=float, help="how strongly the text is followed; 1 is plain")
    add("--solver", help="euler, heun, dpmpp_2m, unipc, ancestral or renoise")
    add(
        "--method",
        help="oneshot, rollout (chunk by chunk, in memory that does not grow), ...: see jaxvid methods",
    )
    add(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="an option of the method; may be repeated",
    )
    add(
        "--guidance-interval",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="noise levels between which to guide",
    )
    add("--guidance-kind", help="cfg, apg or zero")
    add(
        "--cache",
        type=float,
        metavar="CHANGE",
        help="skip network calls while the video changes by less (0.1 to 0.3)",
    )
    add("--fade", type=float, metavar="SECONDS", help="how long a change from one caption to the next takes")
    add("--strength", type=float, help="make --video anew from this noise level on, in (0, 1)")
    add("--mask", metavar="MASK.png", help="bright where --video is to be made anew")
    add(
        "--checkpoint",
        metavar="DIR",
        help="a bundle, a run, or a shipped model's name (default: the first shipped one that can follow the method)",
    )
    add("--dtype", help="float32 or bfloat16")
    add(
        "--mesh",
        metavar="data=2,sequence=4,...",
        help="share the work among devices: rows (data), weights (fsdp, tensor), frames (sequence)",
    )
    add("--fps", type=float, help="frames per second, one of those that the checkpoint serves")
    add("--size", help="N or HEIGHTxWIDTH, one of those that the checkpoint serves")
    add(
        "--contact-sheet",
        metavar="FILE.png",
        help="also a picture of frames with their times (of the first video)",
    )


def run(options) -> None:
    """Checks everything, makes the video, and prints its path on the last line of standard output."""
    from jaxvid.request import MOST_VIDEOS

    size = parse_size(options.size)
    given = [options.story, options.image, options.last_image, options.video, options.mask]
    given += [path for _, path in options.image_at]
    spare(given, outputs(options.out, min(max(1, options.num), MOST_VIDEOS)), "--out")
    if options.contact_sheet:
        check_sheet(options.out, options.contact_sheet)
        spare(given, [options.contact_sheet], "--contact-sheet")
    sizes = parse_mesh(options.mesh)
    progress = Progress()
    story = None
    if options.story is not None:
        from jaxvid.story import load_story

        story = load_story(options.story)
        if options.prompt is not None and story and isinstance(story[0], dict) and story[0].get("at") == 0:
            progress.note("the story begins at 0 s, so PROMPT is not used")

    from jaxvid.pipeline import SHIPPED, Pipeline
    from jaxvid.sharding import make_mesh
    from jaxvid.traits import shipped_for

    main.use_compilation_cache()
    # -1: what the other axes leave
    mesh = make_mesh(**{"data": -1, **sizes}) if sizes else None
    checkpoint = shipped_for(options.method) if options.checkpoint is None else options.checkpoint
    pipe = Pipeline.load(checkpoint, mesh=mesh)
    if checkpoint not in (None, options.checkpoint, SHIPPED):
        progress.note(f"with the shipped model {checkpoint.name}")
    names = (
        "image",
        "last_image",
        "video",
        "negative",
        "seed",
        "num",
        "steps",
        "guidance",
        "solver",
        "method",
        "dtype",
        "fps",
        "guidance_interval",
        "guidance_kind",
        "cache",
        "strength",
        "fade",
        "mask",
    )
    asked = {**parse_set(options.set, options.method), **{name: getattr(options, name) for name in names}}
    if options.image or options.last_image or options.video or options.image_at:
        progress.note("encoding what is given (compiling the encoder first)")
    asked["images"] = [(_seconds(at), path) for at, path in options.image_at]
    ready = pipe.prepare(options.prompt, story=story, seconds=options.seconds, size=size, **asked)
    request = ready.request
    if request.options or options.method:
        said = ", ".join(f"{name} {value}" for name, value in request.options)
        progress.note(f"method {request.method}{': ' + said if said else ''}")
    paths = outputs(options.out, request.batch)
    several = f"{request.batch} videos of " if request.batch > 1 else ""
    progress.note(
        f"{several}{request.frames} frames of {request.height}x{request.width} at {request.fps:g} fps, {request.steps} steps"
        f" of {request.solver}, guidance {request.guidance:g}, seed {', '.join(map(str, request.seeds))}, {request.dtype}"
    )
    record(pipe, ready, paths, progress)
    if options.contact_sheet:
        sheet(paths[0], request.recipe(0), options.contact_sheet)
    print(*paths, sep="\n")


def parse_set(pairs: list[str], method: str | None = None) -> dict[str, str]:
    """{'window': '16'} from ['window=16']; what the values mean is the method's to say."""
    from jaxvid.sampling.methods.table import METHODS

    asked = [METHODS[method]] if method in METHODS else METHODS.values()
    known, made = sorted({name for entry in asked for name in entry.options}), {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip().replace("-", "_")
        if not equals:
            raise InputError(f"--set {pair[:40]!r}: give NAME=VALUE, such as --set window=16")
        if name not in known:
            whose = (
                f"method {method!r} has no such option"
                if method in METHODS
                else "no method has such an option"
            )
            near = did_you_mean(name, known) or f"; there are {', '.join(known) or 'none'}"
            raise InputError(f"--set {pair[:40]!r}: {whose}{near}")
        made[name] = value.strip()
    return made


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"--image-at {text[:40]!r}: give the time in seconds, then the image") from None


def parse_size(text: str | None):
    """(height, width) from '64' or '64x96'; None from None."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,9})(?:x(\d{1,9}))?", text.strip().lower())
    if not found:
        raise InputError(f"--size {text[:40]!r} is not a size; give N or HEIGHTxWIDTH, such as 64 or 64x96")
    return int(found[1]), int(found[2] or found[1])


def check_sheet(video: str, path: str) -> None:
    """Raises `InputError` where `sheet` would fail, before there is a video."""
    if not path.lower().endswith((".png", ".jpg", ".webp")):
        raise InputError(f"--contact-sheet {path} ends in none of .png, .jpg, .webp; name the file so")
    if not video.lower().endswith(".mp4"):
        raise InputError(f"a contact sheet is made from an .mp4, not from {video}; use --out FILE.mp4")
    if pathlib.Path(path).is_dir():
        raise InputError(f"--contact-sheet {path} is a directory; name a file in it")
    check_writable(pathlib.Path(path))


def sheet(video, recipe, path) -> None:
    """The contact sheet of a finished file: what is in it, not what was meant to be."""
    from jaxvid.clip import Clip
    from jaxvid.data.decode import read_video

    frames, fps = read_video(video)
    Clip(frames, fps, recipe=recipe).contact_sheet(path)
