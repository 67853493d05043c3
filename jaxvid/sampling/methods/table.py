# SPDX-License-Identifier: Apache-2.0
"""The methods by name: what each needs of a model, what it costs, and where it comes from.

Traits of a model are 'bidirectional' or 'causal', 'temporal attention' (which can be edited), 'attention memory' (a queue of
keys and values), 'long memory' (the same, with a coarse past), 'state memory' (a scan's state) and 'few-step weights' (a
student's). Costs: S steps, W the window, O its overlap, F latent frames.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from jaxvid.sampling.methods import chunks, queues, stretched
from jaxvid.sampling.methods.method import Entry, Method, Setting, check_options
from jaxvid.types import InputError, did_you_mean

METHODS: dict[str, Entry] = {
    "oneshot": Entry(chunks.oneshot, (), "grows", "S / F on F", (), "Ho et al., arXiv 2204.03458"),
    "rollout": Entry(
        chunks.rollout, (), "constant", "S / (W - O)", (), "Liu et al. (FVDM), arXiv 2410.03160"
    ),
    "skyreels": Entry(
        chunks.skyreels,
        (),
        "constant",
        "S / (W - O); more with ar_step",
        (),
        "Chen et al. (SkyReels-V2), arXiv 2504.13074",
    ),
    "history": Entry(
        chunks.history,
        (),
        "constant",
        "2 S / (W - O); 3 S fractional",
        (),
        "Song et al. (DFoT), arXiv 2502.06764",
    ),
    "keyframes": Entry(
        chunks.keyframes,
        ("bidirectional",),
        "grows",
        "2 S / F on F",
        ("rollout",),
        "Song et al. (DFoT), arXiv 2502.06764",
    ),
    "fifo": Entry(
        queues.fifo,
        (),
        "constant",
        "2 S / W",
        (),
        "Kim et al. (FIFO-Diffusion), arXiv 2405.11473; coherent: Chen et al. (Ouroboros), arXiv 2501.09019",
    ),
    "sliding": Entry(
        queues.sliding,
        (),
        "constant",
        "ar_step / block on W",
        (),
        "Sun et al. (AR-Diffusion), arXiv 2503.07418",
    ),
    "genl": Entry(
        stretched.genl,
        (),
        "grows",
        "2 S / W",
        (),
        "Wang et al. (Gen-L-Video), arXiv 2305.18264",
    ),
    "blend": Entry(
        stretched.blend,
        (),
        "grows",
        "1.5 S / W",
        (),
        "Henschel et al. (StreamingT2V), arXiv 2403.14773",
    ),
    "freenoise": Entry(
        stretched.freenoise,
        ("temporal attention",),
        "grows",
        "S / F on F",
        ("genl", "rollout"),
        "Qiu et al. (FreeNoise), arXiv 2310.15169",
    ),
    "freelong": Entry(
        stretched.freelong,
        ("temporal attention",),
        "grows",
        "S / F on F",
        ("genl", "rollout"),
        "Lu et al. (FreeLong), arXiv 2407.19918",
    ),
    "vstar": Entry(
        stretched.vstar,
        ("temporal attention",),
        "grows",
        "S / F on F",
        ("oneshot",),
        "Li et al. (VSTAR), arXiv 2403.13501",
    ),
    "causal-kv": Entry(
        chunks.remembered,
        ("causal", "attention memory"),
        "constant",
        "(S + 1) / W",
        ("mamba-state", "rollout"),
        "Gao et al. (Ca2-VDM), arXiv 2411.16375",
    ),
    "far": Entry(
        chunks.far,
        ("causal", "long memory"),
        "constant",
        "(S + 1) / W",
        ("causal-kv", "mamba-state", "rollout"),
        "Gu et al. (FAR), arXiv 2503.19325",
    ),
    "mamba-state": Entry(
        chunks.remembered,
        ("causal", "state memory"),
        "constant",
        "(S + 1) / W",
        ("causal-kv", "rollout"),
        "Dao & Gu (Mamba-2), arXiv 2405.21060",
    ),
    "student": Entry(
        chunks.student,
        ("few-step weights",),
        "constant",
        "S / (W - O), S = 4",
        ("causal-kv", "mamba-state", "rollout"),
        "Huang et al. (Self Forcing), arXiv 2506.08009; Yin et al. (CausVid), arXiv 2412.07772",
        solver="renoise",
    ),
}


def check_method(name: str, options: Mapping[str, Any], traits: Collection[str]) -> dict[str, Any]:
    """The options of a method that a model with these traits can follow. Raises `InputError` with the reason, and with the
    nearest method that works."""
    if name not in METHODS:
        near = did_you_mean(name, METHODS) or f"; choose one of {', '.join(METHODS)}"
        raise InputError(f"method={name!r} is unknown{near}")
    entry = METHODS[name]
    lacking = [need for need in entry.needs if need not in traits]
    if lacking:
        works = [other for other in entry.nearest if not set(METHODS[other].needs) - set(traits)]
        advice = f"; the nearest that works is {works[0]!r}" if works else ""
        raise InputError(
            f"method {name!r} needs {model_with(entry.needs)}, and this is {model_with(traits)}{advice}"
        )
    return check_options(name, entry, options)


def model_with(traits: Collection[str]) -> str:
    """Traits in words, such as 'a causal model with state memory'."""
    kinds = ("bidirectional", "causal")
    first = " ".join(["a", *(kind for kind in kinds if kind in traits), "model"])
    rest = " and ".join(sorted(set(traits) - set(kinds)))
    return f"{first} with {rest}" if rest else first


def make(name: str, setting: Setting, options: Mapping[str, Any] | None = None) -> Method:
    """The method's values for a setting; options as from `check_method`."""
    return METHODS[name].make(setting, **(options or {}))
