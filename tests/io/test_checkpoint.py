# SPDX-License-Identifier: Apache-2.0
import os
import pathlib
import shutil

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvid.io import checkpoint
from jaxvid.io.checkpoint import Checkpoints, all_steps, damage, load_ema, load_meta
from jaxvid.types import InputError


@flax.struct.dataclass
class State:
    step: object
    params: object
    ema: object
    rest: object


def state(n=1):
    params = {"a": {"kernel": jnp.full((3, 4), float(n)), "low": jnp.full(4, n, jnp.bfloat16)}}
    return State(
        jnp.int32(n), params, jax.tree.map(lambda x: 2 * x, params), {"stats": {"mean": jnp.arange(3.0)}}
    )


def places(made):
    return jax.tree.map(lambda x: x.sharding, made)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """WORKDIR of a run with steps 1, 2 and 3, saved once; tests copy it."""
    workdir = tmp_path_factory.mktemp("run")
    with Checkpoints(workdir / "s" / "checkpoints", keep=3) as checkpoints:
        for n in (1, 2, 3):
            checkpoints.save(n, state(n), {"config": "{}", "data": {"next_batch": n}})
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def steps_of(workdir):
    return workdir / "s" / "checkpoints"


def largest(step: pathlib.Path) -> pathlib.Path:
    return max(
        (p for p in step.rglob("*") if p.is_file() and "/d/" in p.as_posix()), key=lambda p: p.stat().st_size
    )


def test_round_trip(workdir):
    with Checkpoints(steps_of(workdir)) as checkpoints:
        assert checkpoints.latest() == 3
        made, meta = checkpoints.restore(3, jax.eval_shape(lambda: state()), places(state()))
    jax.tree.map(np.testing.assert_array_equal, made, state(3))
    assert jax.tree.map(lambda x: x.dtype, made) == jax.tree.map(lambda x: x.dtype, state(3))
    assert meta["data"] == {"next_batch": 3} and meta["step"] == 3


def test_the_average_alone_is_read_as_numpy(workdir):
    variables = load_ema(workdir, "s")
    np.testing.assert_array_equal(variables["params"]["a"]["kernel"], np.full((3, 4), 6.0))
    assert variables["params"]["a"]["low"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(variables["stats"]["mean"], np.arange(3.0))
    np.testing.assert_array_equal(load_ema(workdir, "s", 1)["params"]["a"]["kernel"], np.full((3, 4), 2.0))
    assert load_meta(steps_of(workdir), 2)["step"] == 2


def test_old_steps_go_when_newer_ones_are_whole(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for n in (1, 2, 3):
            checkpoints.save(n, state(n), {})
        checkpoints.wait()
        assert all_steps(tmp_path) == [2, 3]
    assert not [p for p in os.listdir(tmp_path) if "trash" in p or "tmp" in p]


def flip(step):
    data = bytearray(largest(step).read_bytes())
    data[len(data) // 2] ^= 1
    largest(step).write_bytes(data)


def cut(step):
    largest(step).write_bytes(largest(step).read_bytes()[:-1])


def lose(step):
    largest(step).unlink()


def garble(step):
    (step / "manifest.json").write_text('{"tree": 3')


def traverse(step):
    text = (step / "manifest.json").read_text().replace('"files": {', '"files": {"../../x": [1, "y"], ')
    (step / "manifest.json").write_text(text)


def swap_for_a_link(step):
    target = step.parent / "elsewhere"
    shutil.move(largest(step), target)
    os.symlink(target, step / "link")


def bloat(step):
    with open(step / "manifest.json", "r+b") as file:
        file.truncate(1 << 30)


@pytest.mark.parametrize("harm", [flip, cut, lose, garble, traverse, swap_for_a_link, bloat])
def test_a_damaged_step_is_set_aside_and_the_one_before_is_taken(workdir, harm):
    harm(steps_of(workdir) / "3")
    with Checkpoints(steps_of(workdir)) as checkpoints:
        assert checkpoints.latest() == 2
        assert "3.bad" in checkpoints.warnings[0]
    assert load_meta(steps_of(workdir))["step"] == 2
    assert (steps_of(workdir) / "3.bad").is_dir()


def test_when_all_are_damaged_nothing_starts_over_in_silence(workdir):
    for n in (1, 2, 3):
        cut(steps_of(workdir) / str(n))
    with pytest.raises(InputError, match="whole"):
        load_ema(workdir, "s")
    for _ in range(2):
        with Checkpoints(steps_of(workdir)) as checkpoints, pytest.raises(InputError, match="is whole"):
            checkpoints.latest()


def test_what_was_never_finished_is_no_loss(workdir):
    (steps_of(workdir) / "3" / "manifest.json").unlink()  # killed between Orbax's commit and ours
    (steps_of(workdir) / "999").mkdir()
    (steps_of(workdir) / "foo").mkdir()
    (steps_of(workdir) / ".DS_Store").write_text("x")
    (steps_of(workdir) / "7.orbax-checkpoint-tmp-1").mkdir()
    (steps_of(workdir) / ".trash-0").mkdir()
    with Checkpoints(steps_of(workdir)) as checkpoints:
        assert checkpoints.latest() == 2 and len(checkpoints.warnings) == 2
        checkpoints.save(3, state(3), {})
        assert checkpoints.latest() == 3
    assert not (steps_of(workdir) / "7.orbax-checkpoint-tmp-1").exists()
    assert not (steps_of(workdir) / ".trash-0").exists()


def test_the_first_save_killed_starts_over(tmp_path):
    (tmp_path / "5").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() is None


def test_other_shapes_dtypes_and_names_are_listed(workdir):
    shapes = jax.eval_shape(lambda: state())
    other = {
        "a": {
            "kernel": jax.ShapeDtypeStruct((3, 5), jnp.float32),
            "low": jax.ShapeDtypeStruct((4,), jnp.float32),
        }
    }
    shapes = shapes.replace(params=other, rest={})
    with Checkpoints(steps_of(workdir)) as checkpoints, pytest.raises(InputError) as e:
        checkpoints.restore(3, shapes, jax.tree.map(lambda s: state().step.sharding, shapes))
    said = str(e.value)
    assert "params.a.kernel is stored as ((3, 4), 'float32') and wanted as ((3, 5), 'float32')" in said
    assert "params.a.low" in said and "rest.stats.mean is stored and not wanted" in said


def test_numbers_that_are_none_are_refused(tmp_path):
    sick = state(1)
    sick.ema["a"]["kernel"] = sick.ema["a"]["kernel"].at[0, 0].set(jnp.nan)
    with Checkpoints(tmp_path / "s" / "checkpoints") as checkpoints:
        checkpoints.save(1, sick, {})
        checkpoints.wait()
        with pytest.raises(InputError, match="ema.a.kernel holds NaN"):
            checkpoints.restore(1, jax.eval_shape(lambda: sick), places(sick))
    with pytest.raises(InputError, match="ema.a.kernel holds NaN"):
        load_ema(tmp_path, "s")


def test_one_writer_only(workdir):
    with Checkpoints(steps_of(workdir)), pytest.raises(InputError, match=f"pid {os.getpid()}"):
        Checkpoints(steps_of(workdir))
    Checkpoints(steps_of(workdir)).close()


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="writable"):
        Checkpoints(tmp_path / "file" / "checkpoints")


def test_a_failing_writer_is_told_at_the_next_save(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {})
        checkpoints.wait()
        monkeypatch.setattr(checkpoint, "_files", full)
        checkpoints.save(2, state(2), {})
        with pytest.raises(InputError, match="No space left"):
            checkpoints.save(3, state(3), {})
        monkeypatch.undo()
        assert checkpoints.latest() == 1


def test_foreign_directories(tmp_path, workdir):
    with pytest.raises(InputError, match="no checkpoint"):
        load_ema(tmp_path, "s")
    foreign = tmp_path / "r" / "s" / "checkpoints" / "4"
    foreign.mkdir(parents=True)
    (foreign / "model.bin").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="4: no manifest"):
        load_ema(tmp_path / "r", "s")
    newer = steps_of(workdir) / "3" / "manifest.json"
    newer.write_text(newer.read_text().replace('"schema": 1', '"schema": 99'))
    assert "newer jaxvid" in damage(newer.parent)


def test_another_mesh_restores_the_same_numbers(run_python, tmp_path):
    code = f"""
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from jaxvid.io.checkpoint import Checkpoints
from jaxvid.sharding import make_mesh
from tests.io.test_checkpoint import State
def made(mesh, spec):
    place = NamedSharding(mesh, spec)
    tree = lambda: {{'w': jax.device_put(jnp.arange(64.0).reshape(8, 8), place)}}
    return State(jax.device_put(jnp.int32(1), NamedSharding(mesh, P())), tree(), tree(), {{}})
four = make_mesh(1, 4)
with Checkpoints({str(tmp_path)!r}) as c:
    c.save(1, made(four, P('fsdp')), {{}})
    c.wait()
    for mesh, spec in ((make_mesh(2, 2), P(None, 'fsdp')), (make_mesh(1, 1, devices=jax.devices()[:1]), P())):
        wanted = made(mesh, spec)
        got, _ = c.restore(1, jax.eval_shape(lambda: wanted), jax.tree.map(lambda x: x.sharding, wanted))
        assert got.params['w'].sharding == wanted.params['w'].sharding
        np.testing.assert_array_equal(np.asarray(got.params['w']), np.arange(64.0).reshape(8, 8))
print('same')
"""
    assert "same" in run_python(code, devices=4)
