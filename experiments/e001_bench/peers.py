# SPDX-License-Identifier: Apache-2.0
"""The peers' side of the race, in torch: the same cases, inputs and checks as ours. Nothing of JAX is imported.

python -m experiments.e001_bench.peers --leg cpu   # prints a JSON row per line
"""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from experiments.e001_bench.cases import PASSES, TOLERANCE, Case, allowed, apart, cases, inputs, right

Forward = Callable[..., Any]


def offers(case: Case, leg: str) -> Iterator[tuple[str, Forward]]:
    """(who, forward pass of tensors laid out as in `cases`) that can do a case here."""
    if case.kind == "attention":
        yield from attentions(case, leg)
    if case.kind == "windows":
        yield from windows(case, leg)
    if case.kind == "conv":

        def conv(x, kernel):  # to the layout that torch wants, and back
            x = F.pad(x.permute(0, 4, 1, 2, 3), (1, 1, 1, 1, 2, 0))
            return F.conv3d(x, kernel.permute(4, 3, 0, 1, 2)).permute(0, 2, 3, 4, 1)

        yield "torch conv3d", conv
    if case.kind == "scan" and leg == "gpu":
        with contextlib.suppress(ImportError):
            from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

            yield "mamba-ssm", lambda x, dt, a, b, c: mamba_chunk_scan_combined(x, dt, a, b, c, 256)
        with contextlib.suppress(ImportError):
            from fla.ops.simple_gla import chunk_simple_gla

            def gla(x, dt, a, b, c):
                heads = x.shape[2]
                many = lambda m: m.expand(-1, -1, heads, -1).contiguous()
                return chunk_simple_gla(many(c), many(b), x * dt[..., None].to(x.dtype), dt * a, scale=1.0)[0]

            yield "fla simple_gla", gla


def attentions(case: Case, leg: str) -> Iterator[tuple[str, Forward]]:
    mask, reach = case.more
    backends = {"torch SDPA": None} if leg == "cpu" else {"torch cuDNN": SDPBackend.CUDNN_ATTENTION}
    for name, backend in backends.items():
        if mask == "band" and leg == "gpu":
            continue  # no two-sided band in cuDNN's SDPA, and a dense mask of 65k x 65k is no peer

        def sdpa(q, k, v, backend=backend):
            dense = (
                torch.from_numpy(allowed(case, q.shape[1])) if mask == "band" and q.shape[1] <= 8192 else None
            )
            with sdpa_kernel(backend) if backend is not None else contextlib.nullcontext():
                heads_first = (a.transpose(1, 2) for a in (q, k, v))
                out = F.scaled_dot_product_attention(
                    *heads_first, attn_mask=dense, is_causal=mask == "causal"
                )
            return out.transpose(1, 2)

        yield name, sdpa
    if leg == "gpu":
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        compiled = torch.compile(flex_attention)

        def flex(q, k, v):
            n = q.shape[1]
            rule = {
                "full": None,
                "causal": lambda b, h, i, j: j <= i,
                "band": lambda b, h, i, j: (i - j).abs() <= reach,
            }[mask]
            blocks = None if rule is None else _blocks(create_block_mask, rule, n, (mask, reach))
            return compiled(*(a.transpose(1, 2) for a in (q, k, v)), block_mask=blocks).transpose(1, 2)

        yield "torch flex_attention", flex


_made: dict[Any, Any] = {}


def _blocks(create, rule, n, key):
    """A block mask, made once: it belongs to the shape, not to the call."""
    if (n, key) not in _made:
        _made[n, key] = create(rule, None, None, n, n, device="cuda")
    return _made[n, key]


def windows(case: Case, leg: str) -> Iterator[tuple[str, Forward]]:
    window, shift = case.more

    def run(q, k, v):
        """Roll, partition, SDPA with windows as the batch, and back: what there is without a kernel for it."""
        b, *grid, heads, width = q.shape
        counts = [n // w for n, w in zip(grid, window, strict=True)]
        cut = [b, counts[0], window[0], counts[1], window[1], counts[2], window[2], heads, width]

        def partition(x):
            x = torch.roll(x, [-s for s in shift], (1, 2, 3)) if any(shift) else x
            x = x.reshape(cut).permute(0, 1, 3, 5, 7, 2, 4, 6, 8)
            return x.reshape(-1, heads, window[0] * window[1] * window[2], width)

        mask = None
        if any(shift):
            labels = []
            for n, w, s in zip(grid, window, shift, strict=True):
                flag = (torch.arange(n, device=q.device) + s) % n < s
                labels.append(flag.reshape(n // w, w))
            t, y, x = labels
            ids = 4 * t[:, None, None, :, None, None] + 2 * y[None, :, None, None, :, None]
            ids = (ids + 1 * x[None, None, :, None, None, :]).reshape(
                -1, 1, window[0] * window[1] * window[2]
            )
            mask = (ids[:, :, :, None] == ids[:, :, None]).repeat(b, 1, 1, 1)
        backend = (
            sdpa_kernel(SDPBackend.CUDNN_ATTENTION)
            if leg == "gpu" and mask is None
            else contextlib.nullcontext()
        )
        with backend:
            out = F.scaled_dot_product_attention(*(partition(a) for a in (q, k, v)), attn_mask=mask)
        out = out.reshape(b, *counts, heads, *window, width).permute(0, 1, 5, 2, 6, 3, 7, 4, 8)
        out = out.reshape(q.shape)
        return torch.roll(out, shift, (1, 2, 3)) if any(shift) else out

    if all(n % w == 0 for n, w in zip(case.shape[1:4], window, strict=True)):
        yield "torch, windows as batch", run


def tensors(case: Case, leg: str) -> list[Any]:
    place = "cuda" if leg == "gpu" else "cpu"
    full = lambda i: case.kind == "scan" and i in (1, 2)
    kind = lambda i: torch.float32 if full(i) else getattr(torch, case.dtype)
    return [torch.from_numpy(a).to(place, kind(i)) for i, a in enumerate(inputs(case))]


def timed(run: Callable[[], Any], leg: str, repeats: int) -> dict[str, float]:
    wait = torch.cuda.synchronize if leg == "gpu" else (lambda: None)
    run()
    took = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        run()
        wait()
        took.append(1e3 * (time.perf_counter() - start))
    return {"ms": float(np.median(took)), "least": min(took), "most": max(took)}


def race(leg: str, only: str, repeats: int) -> Iterator[dict[str, Any]]:
    for case in cases(leg):
        if only not in case.name:
            continue
        for by, forward in offers(case, leg):
            row = {"case": case.name, "by": by, "dtype": case.dtype, "flops": case.flops}
            try:
                small = tensors(case.small, leg)
                with torch.no_grad():
                    got = next(f for name, f in offers(case.small, leg) if name == by)(*small[:-1])
                want = right(case.small, [a.float().cpu().numpy() for a in small])
                row["error"] = apart(got.float().cpu().numpy(), want)
                if not row["error"] < TOLERANCE[case.dtype]:
                    yield {**row, "pass": "forward", "not": f"wrong by {row['error']:.2g}"}
                    continue
                *arrays, gradient = tensors(case, leg)
                with torch.no_grad():
                    yield {**row, "pass": PASSES[0], **timed(lambda f=forward, a=arrays: f(*a), leg, repeats)}
                arrays = [a.requires_grad_() for a in arrays]

                def both(forward=forward, arrays=arrays, gradient=gradient):
                    out = forward(*arrays)
                    return torch.autograd.grad(out, arrays, gradient.to(out.dtype))

                yield {**row, "pass": PASSES[1], **timed(both, leg, repeats)}
            except (RuntimeError, NotImplementedError, StopIteration) as error:
                yield {**row, "pass": "forward", "not": " ".join(str(error).split())[:120]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leg", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for row in race(args.leg, args.only, args.repeats):
        print(json.dumps({**row, "version": f"torch {torch.__version__}"}), flush=True)


if __name__ == "__main__":
    main()
