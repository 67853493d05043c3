# SPDX-License-Identifier: Apache-2.0
"""The selective state space scan of Mamba-2 (state space duality), in time linear in the length.

Letters of this file: B batch, L tokens, H heads, P head width, G groups of heads that share B and C, N state size.
For one head, with its scalar A < 0 and the group's vectors B_t, C_t:

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T          [P, N]
    y_t = h_t C_t + D x_t                               [P]

`reference` is this recurrence. `chunked` cuts the sequence in chunks of Q tokens; inside a chunk the scan is a
lower-triangular matrix product, between chunks only the state travels. With cs the cumulative sum of dt A inside the
chunk:

    y_i = sum_{j <= i} (C_i . B_j) exp(cs_i - cs_j) dt_j x_j + exp(cs_i) h C_i
    h   <- exp(cs_last) h + sum_j exp(cs_last - cs_j) dt_j x_j B_j^T

Numerics that are easy to lose: sums of decays stay inside a chunk (a global float32 sum is off by 1e-3 after 1e5
tokens); exponents are differences, clamped to <= 0 and masked *before* exp (else gradients are NaN); states, decays
and sums are in at least float32; padding has dt = 0, which keeps the state as it is.

Ref: Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvid.ops.per_device import per_device
from jaxvid.ops.pick import kernel_interprets, pick, platform

# Tokens of a chunk, and chunks that one step of the outer scan works on at once. Memory is linear in both. Two CPU
# cores like what fits in cache; accelerators like few large steps.
CHUNK = {"cpu": 16, "default": 64}
CHUNKS_PER_STEP = {"cpu": 1, "default": 8}


def ssd(
    x: Float[Array, "B L H P"],
    dt: Float[Array, "B L H"],
    A: Float[Array, "H"],
    B: Float[Array, "B L G N"],
    C: Float[Array, "B L G N"],
    D: Float[Array, "H"] | Float[Array, "H P"] | None = None,
    *,
    initial_state: Float[Array, "B H P N"] | None = None,
    chunk: int | None = None,
    implementation: str | None = None,
) -> tuple[Float[Array, "B L H P"], Float[Array, "B H P N"]]:
    """Scan ``x`` and return what comes out and the state that is left.

    x [B, L, H, P]; dt [B, L, H], positive (after softplus; 0 skips a token); A [H], negative; B and C [B, L, G, N]
    where G divides H; D [H] or [H, P]; initial_state [B, H, P, N], None for zeros. ``chunk`` changes speed and
    rounding, not meaning; L need not be a multiple of it; None chooses by platform.
    implementation: ``reference | chunked | mosaic_gpu | mosaic_tpu``; None chooses by platform.

    Returns y [B, L, H, P] in x's dtype and the final state [B, H, P, N] in ``promote_types(x.dtype, float32)``.
    Gradients flow through both and through initial_state. Raises ValueError on shapes that do not fit.
    """
    _check(x, dt, A, B, C, D, initial_state, chunk)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    batch, _, heads, width = x.shape
    if initial_state is None:
        state = jnp.zeros((batch, heads, width, B.shape[-1]), dtype)
    else:
        state = initial_state.astype(dtype)
    serve = pick("ssd", IMPLEMENTATIONS, ORDER, implementation)
    y, state = serve(x, dt, A, B, C, state, chunk=chunk, dtype=dtype)
    if D is not None:
        y = y + x.astype(dtype) * D.astype(dtype).reshape(1, 1, heads, -1)
    return y.astype(x.dtype), state


def reference(x, dt, A, B, C, state, *, chunk, dtype):
    """The recurrence, token by token: the oracle."""
    del chunk
    per_head = x.shape[2] // B.shape[2]
    A = A.astype(dtype)[None]

    def token(h, now):
        x, dt, B, C = (v.astype(dtype) for v in now)
        B, C = (jnp.repeat(v, per_head, axis=1) for v in (B, C))  # [B, H, N]
        h = jnp.exp(dt * A)[..., None, None] * h + (dt[..., None] * x)[..., None] * B[:, :, None, :]
        return h, jnp.einsum("bhpn,bhn->bhp", h, C)

    state, y = jax.lax.scan(token, state, tuple(jnp.moveaxis(v, 1, 0) for v in (x, dt, B, C)))
    return jnp.moveaxis(y, 0, 1), state


def chunked(x, dt, A, B, C, state, *, chunk, dtype):
    """Matrix products inside chunks, a scan between them; the backward pass recomputes a step's insides."""
    batch, length, heads, width = x.shape
    groups = B.shape[2]
    if (
        chunk is None
    ):  # of even size, and what is little more than a chunk is one: no state has to travel then
        chunk = _by_platform(CHUNK)
        chunk = length if length <= 2 * chunk else -(-length // round(length / chunk))
    chunk = max(1, min(chunk, length))
    per_step = max(1, min(_by_platform(CHUNKS_PER_STEP), -(-length // chunk)))
    steps = -(-length // (chunk * per_step))
    missing = steps * chunk * per_step - length

    def cut(v):
        """[B, L, ...] -> [steps, B, per_step, chunk, ...]; padded dt is 0, so padding leaves the state alone."""
        v = jnp.pad(v, ((0, 0), (0, missing), *[(0, 0)] * (v.ndim - 2)))
        return jnp.moveaxis(v.reshape(batch, steps, per_step, chunk, *v.shape[2:]), 1, 0)

    A = A.astype(dtype).reshape(1, 1, 1, groups, -1)

    def grouped(v):
        return v.reshape(*v.shape[:2], groups, heads // groups, *v.shape[3:])

    lower = jnp.tril(jnp.ones((1, 1, 1, 1, chunk, chunk), bool))

    def step(h, now):
        # s chunks, i j tokens of a chunk, g groups, r heads of a group
        x, dt, B, C = (v.astype(dtype) for v in now)
        a = jnp.moveaxis(dt * A, 2, -1)  # [b, s, g, r, j]
        cs = jnp.cumsum(a, axis=-1)
        x = x * dt[..., None]
        rise = cs[..., :, None] - cs[..., None, :]
        decay = jnp.exp(jnp.where(lower, _at_most_zero(rise), -jnp.inf))
        scores = jnp.einsum("bsign,bsjgn->bsgij", C, B)
        y = jnp.einsum("bsgrij,bsjgrp->bsigrp", scores[:, :, :, None] * decay, x)

        last = cs[..., -1:]
        left = jnp.moveaxis(jnp.exp(_at_most_zero(last - cs)), -1, 2)  # [b, s, j, g, r]
        added = jnp.einsum("bsjgrp,bsjgn->bsgrpn", x * left[..., None], B)
        keep = jnp.exp(last)[..., None]  # [b, s, g, r, 1, 1]
        entering = []
        for s in range(per_step):
            entering.append(h)
            h = keep[:, s] * h + added[:, s]
        reached = jnp.einsum("bsign,bsgrpn->bsigrp", C, jnp.stack(entering, 1))
        y = y + reached * jnp.moveaxis(jnp.exp(cs), -1, 2)[..., None]
        return h, y

    state = state.reshape(batch, groups, heads // groups, width, -1)
    parts = cut(grouped(x)), cut(grouped(dt)), cut(B), cut(C)
    if steps == per_step == 1:
        state, y = step(state, tuple(part[0] for part in parts))
        y = y[None]
    else:
        state, y = jax.lax.scan(jax.checkpoint(step), state, parts)
    y = jnp.moveaxis(y, 0, 1).reshape(batch, -1, heads, width)[:, :length]
    return y, state.reshape(batch, heads, width, -1)


def _by_platform(table):
    return table.get(platform(), table["default"])


def _at_most_zero(v):
    """min(v, 0) whose derivative at 0 is 1: tokens with dt = 0 sit exactly there, jnp.minimum would halve it."""
    return jnp.where(v > 0, 0, v)


def mosaic_tpu(x, dt, A, B, C, state, *, chunk, dtype):
    """The kernel of `pallas_kernels.ssd_tpu`; its chunks are multiples of 128 tokens."""
    from pallas_kernels import ssd_tpu

    interpret = kernel_interprets("tpu")
    sizes = ssd_tpu.Tiles() if chunk is None else ssd_tpu.Tiles(chunk=chunk)
    scan = functools.partial(ssd_tpu.ssd, sizes=sizes, interpret=interpret)
    return per_device(scan, (x, dt, A, B, C, state), *_words(B))


def mosaic_gpu(x, dt, A, B, C, state, *, chunk, dtype):
    """The kernel of `pallas_kernels.ssd_gpu`; its chunks have 128 tokens."""
    interpret = kernel_interprets("gpu", "9.0")
    if chunk not in (None, 128):
        raise NotImplementedError(f"the kernel has chunks of 128 tokens, not {chunk}")
    from pallas_kernels import ssd_gpu

    interpret = ssd_gpu.plgpu.InterpretGPUParams() if interpret else None
    scan = functools.partial(ssd_gpu.ssd, interpret=interpret)
    return per_device(scan, (x, dt, A, B, C, state), *_words(B))


def _words(B):
    """For `per_device`: of what goes in, and of what comes out. One group is shared by all heads."""
    groups = "b.h." if B.shape[2] > 1 else "b..."
    return ("b.h.", "b.h", "h", groups, groups, "bh.."), ("b.h.", "bh..")


ORDER = {"tpu": ("mosaic_tpu", "chunked"), "gpu": ("mosaic_gpu", "chunked"), "default": ("chunked",)}
IMPLEMENTATIONS = {
    "reference": reference,
    "chunked": chunked,
    "mosaic_gpu": mosaic_gpu,
    "mosaic_tpu": mosaic_tpu,
}


def _check(x, dt, A, B, C, D, state, chunk):
    shapes = {"x": x, "dt": dt, "A": A, "B": B, "C": C, "D": D, "initial_state": state}
    said = ", ".join(f"{name} {tuple(v.shape)}" for name, v in shapes.items() if v is not None)
    wanted = "want x [B,L,H,P], dt [B,L,H], A [H], B and C [B,L,G,N], D [H] or [H,P], initial_state [B,H,P,N]"
    fits = x.ndim == 4 and B.ndim == 4
    fits = fits and dt.shape == x.shape[:3] and A.shape == x.shape[2:3] and B.shape == C.shape
    fits = fits and B.shape[:2] == x.shape[:2] and (D is None or D.shape in (x.shape[2:3], x.shape[2:4]))
    fits = fits and (state is None or state.shape == (x.shape[0], *x.shape[2:], B.shape[-1]))
    if not fits:
        raise ValueError(f"ssd got {said}; {wanted}")
    if x.shape[2] % B.shape[2]:
        raise ValueError(
            f"ssd got {x.shape[2]} heads and {B.shape[2]} groups; the groups must divide the heads"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"ssd got chunk={chunk}; it must be at least 1")
