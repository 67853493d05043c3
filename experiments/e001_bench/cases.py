# SPDX-License-Identifier: Apache-2.0
"""The work to be raced, as plain numbers, the inputs of it, and what is right: numpy only, for both frameworks.

Letters: B batch, L tokens, H heads, K head width, T Y X a grid, G groups, N state.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

PASSES = ("forward", "both")  # both: forward and backward


@dataclasses.dataclass(frozen=True)
class Case:
    """One piece of work. ``shape`` is kind-specific, ``more`` too."""

    name: str
    kind: str  # attention | windows | scan | conv | block | sampler | decode
    shape: tuple[int, ...]
    dtype: str = "float32"
    more: tuple[Any, ...] = ()

    @property
    def small(self) -> Case:
        """The twin on which results are checked."""
        least = {
            "attention": lambda b, n, h, k: (b, min(n, 384), min(h, 2), k),
            "windows": lambda b, t, y, x, h, k: (
                1,
                *(min(n, 2 * w) for n, w in zip((t, y, x), self.more[0], strict=True)),
                2,
                k,
            ),
            "scan": lambda b, n, h, p, s: (1, min(n, 320), min(h, 2), p, s),
            "conv": lambda b, t, h, w, c: (1, min(t, 3), min(h, 8), min(w, 8), c),
        }
        return dataclasses.replace(self, shape=least[self.kind](*self.shape))

    @property
    def flops(self) -> float | None:
        """Of a forward pass; a multiply-add is two. Backward counts 2.5 times as much for attention, twice for others."""
        if self.kind == "attention":
            b, n, h, k = self.shape
            return 4.0 * b * h * k * self.pairs(n)
        if self.kind == "windows":
            b, t, y, x, h, k = self.shape
            return 4.0 * b * t * y * x * h * k * math.prod(self.more[0])  # as if no border cut a window off
        if self.kind == "conv":
            b, t, h, w, c = self.shape
            return 2.0 * b * t * h * w * 27 * c * c
        return None

    def pairs(self, n: int) -> float:
        """Of query and key that see each other."""
        mask, reach = self.more or ("full", 0)
        if mask == "full":
            return n * n
        if mask == "causal":
            return n * (n + 1) / 2
        reach = min(reach, n - 1)
        return n * (2 * reach + 1) - reach * (reach + 1)


def cases(leg: str) -> list[Case]:
    """Of the leg ``cpu`` or ``gpu``."""
    if leg == "cpu":
        return [
            Case("attention full", "attention", (1, 2048, 4, 64), more=("full", 0)),
            Case("attention causal", "attention", (1, 2048, 4, 64), more=("causal", 0)),
            Case("attention band 128", "attention", (1, 4096, 4, 64), more=("band", 128)),
            Case("windows 8x4x4", "windows", (1, 32, 16, 16, 6, 32), more=((8, 4, 4), (4, 2, 2))),
            Case("scan", "scan", (1, 4096, 8, 64, 64)),
            Case("conv 3x3x3, 16 channels", "conv", (1, 8, 64, 64, 16)),
            Case("conv 3x3x3, 64 channels", "conv", (1, 8, 32, 32, 64)),
            *(
                Case(f"{label} block, {frames} frames", "block", (1, frames, 8, 8), more=(name, 192))
                for frames in (32, 64, 128)
                for label, name in (("LinGen", "lingen"), ("DiT", "dit"))
            ),
            Case("decode", "decode", (1, 8, 8, 8)),
        ]
    made = []
    for k in (128, 64):
        for n in (16384, 32768, 65536):
            for mask, reach in (("full", 0), ("causal", 0), ("band", 1024)):
                name = f"attention {mask}{f' {reach}' if reach else ''}, {n // 1024}k, d {k}"
                made.append(Case(name, "attention", (1, n, 24, k), "bfloat16", (mask, reach)))
    for shift in ((0, 0, 0), (2, 2, 0), (2, 2, 4)):
        name = f"windows 4x4x8, 139k tokens{f', shifted by {shift}' if any(shift) else ''}"
        made.append(Case(name, "windows", (1, 136, 32, 32, 20, 128), "bfloat16", more=((4, 4, 8), shift)))
    made.append(Case("scan, 131k tokens", "scan", (1, 131072, 80, 64, 128), "bfloat16"))
    for seconds in (17, 34, 68):
        shape = (1, 2 * seconds, 64, 64)
        made.append(Case(f"LinGen block, {seconds} s", "block", shape, "bfloat16", ("lingen", 2560)))
        made.append(Case(f"DiT block, {seconds} s", "block", shape, "bfloat16", ("dit", 2560)))
    made.append(Case("sampler step, LinGen-4B, 17 s", "sampler", (1, 40, 64, 64), "bfloat16"))
    made.append(Case("decode, 8 latent frames of 512x512", "decode", (1, 8, 64, 64), "bfloat16"))
    return made


def shapes(case: Case) -> list[tuple[int, ...]]:
    """Of what `inputs` draws."""
    if case.kind in ("attention", "windows"):
        return [case.shape] * 4
    if case.kind == "conv":
        channels = case.shape[-1]
        return [case.shape, (3, 3, 3, channels, channels), case.shape]
    b, n, h, p, s = case.shape
    return [(b, n, h, p), (b, n, h), (h,), (b, n, 1, s), (b, n, 1, s), (b, n, h, p)]


def inputs(case: Case, seed: int = 0) -> list[np.ndarray]:
    """float32 arrays, the last one being the gradient of the (first) result."""
    rng = np.random.default_rng(seed)
    made = [rng.standard_normal(shape, dtype=np.float32) for shape in shapes(case)]
    if case.kind == "conv":
        made[1] /= np.float32(np.sqrt(27 * case.shape[-1]))
    if case.kind == "scan":  # steps of about 0.02, decays of about -1
        made[1], made[2] = np.log1p(np.exp(made[1] - 4)), -np.exp(made[2])
    return made


def right(case: Case, arrays: list[np.ndarray]) -> np.ndarray:
    """The forward pass in float64."""
    arrays = [a.astype(np.float64) for a in arrays]
    if case.kind == "scan":
        x, dt, decay, b, c, _ = arrays
        state, out = np.zeros((*x.shape[:1], *x.shape[2:], b.shape[-1])), np.empty_like(x)
        for i in range(x.shape[1]):
            state *= np.exp(dt[:, i] * decay)[..., None, None]
            state += (dt[:, i, :, None] * x[:, i])[..., None] * b[:, i, :, None]
            out[:, i] = np.einsum("bhpn,bn->bhp", state, c[:, i, 0])
        return out
    if case.kind == "conv":
        x, kernel, _ = arrays
        t, h, w = x.shape[1:4]
        x = np.pad(x, ((0, 0), (2, 0), (1, 1), (1, 1), (0, 0)))
        places = np.ndindex(3, 3, 3)
        return sum(x[:, i : i + t, j : j + h, k : k + w] @ kernel[i, j, k] for i, j, k in places)
    q, k, v, _ = (a.reshape(a.shape[0], -1, *a.shape[-2:]) for a in arrays)
    scores = np.einsum("blhk,bmhk->bhlm", q, k) * q.shape[-1] ** -0.5
    scores = np.where(allowed(case, q.shape[1]), scores, -np.inf)
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("bhlm,bmhk->blhk", p / p.sum(-1, keepdims=True), v).reshape(arrays[0].shape)


def allowed(case: Case, n: int) -> np.ndarray:
    """bool [n, n]."""
    if case.kind == "windows":
        labels = []
        for size, w, s in zip(case.shape[1:4], *case.more, strict=True):
            place = np.arange(size)
            labels.append((place - s) % size // w * 2 + (place < s))
        ids = np.stack(np.meshgrid(*labels, indexing="ij"), -1).reshape(-1, 3)
        return (ids[:, None] == ids[None]).all(-1)
    ahead = np.arange(n)[None] - np.arange(n)[:, None]
    mask, reach = case.more
    return {"full": ahead > -n, "causal": ahead <= 0, "band": np.abs(ahead) <= reach}[mask]


def apart(got: np.ndarray, want: np.ndarray) -> float:
    """The largest difference, over the largest number."""
    return float(np.abs(np.asarray(got, np.float64) - want).max() / np.abs(want).max())


TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
