# SPDX-License-Identifier: Apache-2.0
"""The scan: chunked = sequential = dense matrix, and the traps on the way."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvid.ops.ssd as module
from jaxvid.ops.pick import use
from jaxvid.ops.ssd import ssd


def inputs(length, *, seed=0, batch=2, heads=4, groups=2, width=3, size=5, dtype=np.float64):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)
    args = {
        "x": draw(batch, length, heads, width),
        "dt": np.logaddexp(0, draw(batch, length, heads)).astype(dtype),
        "A": -np.exp(draw(heads)),
        "B": draw(batch, length, groups, size),
        "C": draw(batch, length, groups, size),
        "D": draw(heads),
        "initial_state": draw(batch, heads, width, size),
    }
    return {name: jnp.asarray(value) for name, value in args.items()}


def dense(x, dt, A, B, C, D=None, initial_state=None):
    """Y = M X with the lower-triangular M of the paper, in NumPy: shares no line with the library."""
    x, dt, A, B, C = (np.asarray(v) for v in (x, dt, A, B, C))
    length, heads = x.shape[1:3]
    B, C = (np.repeat(v, heads // v.shape[2], axis=2) for v in (B, C))
    y, state = np.zeros_like(x), np.zeros((x.shape[0], heads, x.shape[3], B.shape[3]))
    h0 = np.zeros_like(state) if initial_state is None else np.asarray(initial_state)
    for b, h in np.ndindex(x.shape[0], heads):
        a = dt[b, :, h] * A[h]
        pairs = range(length)
        decay = np.array([[np.exp(a[j + 1 : i + 1].sum()) if i >= j else 0 for j in pairs] for i in pairs])
        since = np.exp(np.cumsum(a))
        m = (C[b, :, h] @ B[b, :, h].T) * decay * dt[b, :, h]
        y[b, :, h] = m @ x[b, :, h] + since[:, None] * (C[b, :, h] @ h0[b, h].T)
        state[b, h] = (
            np.einsum("j,jp,jn->pn", decay[-1] * dt[b, :, h], x[b, :, h], B[b, :, h]) + since[-1] * h0[b, h]
        )
    return y + (0 if D is None else np.asarray(D)[:, None] * x), state


def close(got, want, rtol):
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        assert np.max(np.abs(np.asarray(g, np.float64) - w)) <= rtol * np.max(np.abs(w))


def test_golden_values():
    with jax.enable_x64(True):
        x = jnp.array([1.0, 2, 3]).reshape(1, 3, 1, 1)
        dt, one = jnp.array([0.5, 1, 0.25]).reshape(1, 3, 1), jnp.ones((1, 3, 1, 1))
        run = lambda x, dt: ssd(x, dt, jnp.array([-1.0]), one, one)[0]
        forward = run(x, dt).ravel()
        backward = run(x[:, ::-1], dt[:, ::-1])[:, ::-1].ravel()
        np.testing.assert_allclose(forward, [0.5, 2.1839397206, 2.4508539646], atol=1e-10)
        np.testing.assert_allclose(backward, [1.8804089395, 2.2759095809, 0.75], atol=1e-10)
        np.testing.assert_allclose(forward + backward, [2.3804089395, 4.4598493015, 3.2008539646], atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 3, 16, 64, 256])
def test_chunked_is_sequential_is_dense(chunk):
    with jax.enable_x64(True):
        args = inputs(45)
        want = dense(**args)
        close(jax.jit(functools.partial(ssd, implementation="reference"))(**args), want, 1e-12)
        close(jax.jit(functools.partial(ssd, chunk=chunk))(**args), want, 1e-12)


@pytest.mark.parametrize("chunk", [3, 16])
def test_several_chunks_in_one_step(chunk, monkeypatch):
    """The shape of the computation on accelerators; 45 tokens leave the last step half empty."""
    monkeypatch.setattr(module, "CHUNKS_PER_STEP", {"default": 4})
    with jax.enable_x64(True):
        args = inputs(45)
        close(jax.jit(functools.partial(ssd, chunk=chunk))(**args), dense(**args), 1e-12)


@pytest.mark.parametrize("groups", [1, 4])
def test_groups_and_missing_options(groups):
    with jax.enable_x64(True):
        args = inputs(37, groups=groups)
        del args["initial_state"], args["D"]
        close(ssd(**args, chunk=4), dense(**args), 1e-12)


def test_per_channel_skip():
    with jax.enable_x64(True):
        args = inputs(5)
        channels = jnp.arange(12.0).reshape(4, 3)
        y, _ = ssd(**{**args, "D": channels})
        plain, _ = ssd(**{**args, "D": None})
        np.testing.assert_allclose(y, plain + channels[None, None] * args["x"], rtol=1e-12)


@pytest.mark.parametrize("dtype, rtol", [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
def test_lower_precisions(dtype, rtol):
    args = {n: v.astype(dtype) for n, v in inputs(100, dtype=np.float32).items()}
    want = dense(**{n: np.asarray(v, np.float64) for n, v in args.items()})
    y, state = ssd(**args, chunk=16)
    assert y.dtype == dtype and state.dtype == jnp.float32  # states never live in 16 bits
    close((y, state), want, rtol)


@pytest.mark.parametrize("at", [1, 16, 23, 40])
def test_split_and_carry_is_one_shot(at):
    with jax.enable_x64(True):
        args = inputs(41)
        timed = {n: args.pop(n) for n in ("x", "dt", "B", "C")}
        whole, end = ssd(**timed, **args, chunk=8)
        one, middle = ssd(**{n: v[:, :at] for n, v in timed.items()}, **args, chunk=8)
        rest = {**args, "initial_state": middle}
        two, last = ssd(**{n: v[:, at:] for n, v in timed.items()}, **rest, chunk=8)
        close((jnp.concatenate([one, two], 1), last), (np.asarray(whole), np.asarray(end)), 1e-12)


def test_token_by_token_is_chunked():
    with jax.enable_x64(True):
        args = inputs(9)
        timed = {n: args.pop(n) for n in ("x", "dt", "B", "C")}
        whole, end = ssd(**timed, **args, chunk=4)
        state, ys = args.pop("initial_state"), []
        for i in range(9):
            y, state = ssd(**{n: v[:, i : i + 1] for n, v in timed.items()}, **args, initial_state=state)
            ys.append(y)
        close((jnp.concatenate(ys, 1), state), (np.asarray(whole), np.asarray(end)), 1e-12)


def test_padding_with_dt_zero_keeps_the_state():
    with jax.enable_x64(True):
        args = inputs(21)
        y, state = ssd(**args, chunk=8)
        pad = lambda v: jnp.concatenate([v, 7 * jnp.ones_like(v[:, :13])], 1)
        padded = {**args, **{n: pad(args[n]) for n in ("x", "B", "C")}}
        padded["dt"] = pad(args["dt"]).at[:, 21:].set(0)
        y_padded, state_padded = ssd(**padded, chunk=8)
        close((y_padded[:, :21], state_padded), (np.asarray(y), np.asarray(state)), 1e-12)


def test_both_directions_are_lower_and_upper_triangle():
    with jax.enable_x64(True):
        args = inputs(20)
        del args["initial_state"], args["D"]
        timed = ("x", "dt", "B", "C")
        flip = {n: v[:, ::-1] if n in timed else v for n, v in args.items()}
        both = ssd(**args, chunk=8)[0] + ssd(**flip, chunk=8)[0][:, ::-1]
        identity = np.eye(20).reshape(1, 20, 1, 20).repeat(2, 0).repeat(4, 2)  # M itself, column by column
        m = dense(**{**args, "x": identity})[0]
        upper = dense(**{**flip, "x": identity[:, ::-1]})[0][:, ::-1]
        np.testing.assert_allclose(
            both, np.einsum("bihj,bjhp->bihp", m + upper, args["x"]), rtol=1e-11, atol=1e-11
        )
        diagonal = np.einsum("bihi->bih", m)
        np.testing.assert_allclose(np.einsum("bihi->bih", m + upper), 2 * diagonal, rtol=1e-12)


def test_is_linear_attention_with_a_gate():
    """q = C, k = B, v = dt x, log-gate dt A, scale 1."""
    with jax.enable_x64(True):
        args = inputs(30, groups=4)
        del args["initial_state"], args["D"]
        q, k, v = args["C"], args["B"], args["dt"][..., None] * args["x"]
        s, out = np.zeros((2, 4, 5, 3)), []
        for i in range(30):
            gate = np.exp(args["dt"][:, i] * args["A"][None])
            s = gate[..., None, None] * s + np.einsum("bhn,bhp->bhnp", k[:, i], v[:, i])
            out.append(np.einsum("bhn,bhnp->bhp", q[:, i], s))
        close(ssd(**args, chunk=8), (np.stack(out, 1), np.swapaxes(s, 2, 3)), 1e-12)


def loss(implementation, names, values, args):
    y, state = ssd(
        **{**args, **dict(zip(names, values, strict=True))}, chunk=4, implementation=implementation
    )
    return jnp.sum(jnp.sin(y)) + jnp.sum(jnp.cos(state))


def test_gradients_agree_with_the_recurrence_and_with_finite_differences():
    with jax.enable_x64(True):
        args = inputs(11, batch=1)
        args["dt"] = args["dt"].at[:, 5:7].set(0)  # the clamp sits exactly at its corner there
        names, values = tuple(args), tuple(args.values())
        gradients = [
            jax.jit(jax.grad(functools.partial(loss, how, names)))(values, {})
            for how in ("chunked", "reference")
        ]
        close(*gradients, 1e-11)
        rng = np.random.default_rng(1)
        way = [jnp.asarray(rng.standard_normal(v.shape)) for v in values]
        way[1] = way[1].at[:, 5:7].set(0)  # a negative dt has no meaning
        way = tuple(way)
        chunked = jax.jit(functools.partial(loss, "chunked", names))
        step = 1e-6
        ahead, behind = (
            chunked(tuple(v + s * w for v, w in zip(values, way, strict=True)), {}) for s in (step, -step)
        )
        slope = sum(jnp.vdot(g, w) for g, w in zip(gradients[0], way, strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-6)
        forward = jax.jvp(lambda *v: chunked(v, {}), values, way)[1]
        np.testing.assert_allclose(forward, slope, rtol=1e-11)


def test_strong_decay_has_finite_gradients():
    args = inputs(40, dtype=np.float32)
    args["dt"], args["A"] = 80 + 0 * args["dt"], -10 + 0 * args["A"]  # dt |A| = 800
    names = tuple(args)
    value, gradients = jax.value_and_grad(functools.partial(loss, "chunked", names))(tuple(args.values()), {})
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)


def test_error_does_not_grow_with_position():
    """Chunk-local sums: 40000 tokens in float32 are as exact at the end as at the start."""
    length = 40_000
    args = inputs(length, batch=1, heads=1, groups=1, width=2, size=2, dtype=np.float32)
    args["A"] = jnp.array([-0.9], jnp.float32)
    y, _ = jax.jit(ssd)(**args)
    x, dt, b, c = (np.asarray(args[n], np.float64)[0, :, 0] for n in ("x", "dt", "B", "C"))
    h, want = np.asarray(args["initial_state"], np.float64)[0, 0], np.empty((length, 2))
    for i in range(length):
        h = np.exp(-np.float64(np.float32(0.9)) * dt[i]) * h + dt[i] * np.outer(x[i], b[i])
        want[i] = h @ c[i]
    error = np.abs(np.asarray(y)[0, :, 0] - want - float(args["D"][0]) * x).max(-1)
    assert error.max() < 1e-4
    assert error[-5000:].mean() < 2 * error[:5000].mean()


def test_under_vmap_and_remat():
    args = inputs(20, dtype=np.float32)
    names, values = tuple(args), tuple(args.values())
    plain = loss("chunked", names, values, {})
    assert np.isclose(jax.checkpoint(functools.partial(loss, "chunked", names))(values, {}), plain)
    fixed = {n: args[n] for n in ("A", "D")}
    timed = {n: jnp.stack([v, 2 * v]) for n, v in args.items() if n not in fixed}
    y, state = jax.vmap(lambda timed: ssd(**timed, **fixed, chunk=8))(timed)
    one = ssd(**{n: v[1] for n, v in timed.items()}, **fixed, chunk=8)
    close((y[1], state[1]), tuple(np.asarray(v) for v in one), 1e-5)


def test_memory_is_linear_in_length():
    """Twice the tokens, at most about twice the temporary memory, gradients included."""

    def temporary(length):
        args = inputs(length, dtype=np.float32)
        names = tuple(args)
        grad = jax.jit(jax.grad(functools.partial(loss, "chunked", names)))
        return grad.lower(tuple(args.values()), {}).compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) < 2.1 * temporary(2048)


def test_says_what_does_not_fit():
    args = inputs(8, dtype=np.float32)
    values = dict(zip(("x", "dt", "A", "B", "C", "D", "state"), args.values(), strict=True))
    with pytest.raises(ValueError, match="want x"):  # asked directly: in tests the annotations are faster
        module._check(**{**values, "dt": args["dt"][:, :-1]}, chunk=4)
    with pytest.raises(ValueError, match="groups must divide"):
        ssd(**inputs(8, heads=4, groups=3, dtype=np.float32))
    with pytest.raises(NotImplementedError, match="runs on gpu, not on cpu"):
        ssd(**args, implementation="mosaic_gpu")
    with use(ssd="reference"):
        close(ssd(**args), tuple(np.asarray(v) for v in ssd(**args, implementation="chunked")), 1e-5)
