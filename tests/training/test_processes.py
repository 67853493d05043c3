# SPDX-License-Identifier: Apache-2.0
"""Two real processes that talk through gloo learn what one process learns; a checkpoint goes on elsewhere."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]

# The shapes model of configs/shapes.py, narrow and on pixels, with its parameters cut over both processes.
TRAIN = """
import json, sys
import jax
process, count, port = (int(a) for a in sys.argv[1:])
if count > 1:
    jax.distributed.initialize(f"127.0.0.1:{port}", count, process, initialization_timeout=120)
from configs.shapes import get_config
from jaxvid.config import build
from jaxvid.data.pipeline import Bucket, batches
from jaxvid.sharding import make_mesh, put_batch
from jaxvid.training.step import make_init, make_train_step, state_sharding

stage = get_config().stages.backbone
model = stage.task.model
model.dit.update(dict(width=32, head=8, scan_head=16, channels=3, text_width=32, remat=False))
model.dit.patch = (1, 8, 8)
model.text_encoder.update(dict(width=32))
task, optimizer = build(stage.task), build(stage.optimizer)
mesh = make_mesh(data=1, fsdp=-1)
data = batches(build(stage.source), (Bucket(frames=4, height=32, width=32, batch=4),), fps=8.0, seed=0,
               text_length=32, spans=(2,), threads=0, process_index=process, process_count=count)
first = next(data)
shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((x.shape[0] * count, *x.shape[1:]), x.dtype), first)
places = state_sharding(mesh, task, optimizer, shapes)[1]
state = make_init(task, optimizer, mesh, places)(jax.random.key(0), put_batch(first, mesh))
cut = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
assert bool(cut) == (count > 1)
step, losses = make_train_step(task, optimizer, mesh, places), []
for host in (first, next(data), next(data)):
    state, metrics = step(state, put_batch(host, mesh))
    losses += [float(metrics["loss"]), float(metrics["grad_norm"])]
print(json.dumps(losses), flush=True)
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


CONFIG = "from tests.training.tiny import get_config\n"
ROWS_OF_EIGHT = """
from jaxvid.config import call
from jaxvid.data.pipeline import Bucket
from tests.training.tiny import TinySource, get_config as base

def get_config():
    c = base()
    c.stages.only.data.buckets = (call(Bucket, frames=2, height=4, width=4, batch=8),)
    c.stages.only.held_out = call(TinySource, size=8)
    return c
"""


def run(commands: list[list[str]], envs: list[dict[str, str]]) -> tuple[list, list[tuple[str, str]]]:
    """Processes that work at the same time, ended, and what each said on both channels."""
    running = [
        subprocess.Popen(
            command, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for command, env in zip(commands, envs, strict=True)
    ]
    try:
        return running, [process.communicate(timeout=900) for process in running]
    finally:
        for process in running:
            process.kill()


def histories(count: int, folder: pathlib.Path) -> tuple[list[dict], list[str]]:
    """What `jaxvid train` with so many processes, which find each other by variables, leaves behind and says."""
    try:
        port = free_port()
    except OSError as error:
        pytest.skip(f"no port of this machine can be listened on ({error}), so processes cannot talk")
    (folder / "toy.py").write_text(CONFIG)
    env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT), JAX_NUM_PROCESSES=str(count))
    env |= {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    command = [sys.executable, "-m", "jaxvid.cli.main", "train", f"--config={folder}/toy.py"]
    command += [f"--workdir={folder}/run", "--config.stages.only.train.steps=20"]
    running, said = run([command] * count, [{**env, "JAX_PROCESS_ID": str(i)} for i in range(count)])
    for process, (_, err) in zip(running, said, strict=True):
        assert process.returncode == 0, err[-3000:]
    done = json.loads((folder / "run" / "only" / "done.json").read_text())
    return done["history"], [out for out, _ in said]


def test_the_command_on_two_processes_is_the_command(tmp_path):
    """By environment alone: the numbers of one process, and one voice."""
    found = []
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        found.append(histories(count, tmp_path / str(count)))
    (alone, _), (both, said) = found
    for one, two in zip(alone, both, strict=True):
        assert one == pytest.approx(two, rel=1e-4)
    assert alone[-1]["loss"] < alone[0]["loss"]
    assert "report.md" in said[0] and "report.md" not in said[1]


def trained(folder: pathlib.Path, devices: int, *more: str) -> dict:
    """What `jaxvid train` with so many simulated devices leaves in FOLDER/run."""
    env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
    env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    (folder / "toy.py").write_text(ROWS_OF_EIGHT)
    command = [sys.executable, "-m", "jaxvid.cli.main", "train", f"--config={folder}/toy.py"]
    command += [f"--workdir={folder}/run", *more]
    [process], [(_, err)] = run([command], [env])
    assert process.returncode == 0, err[-3000:]
    return json.loads((folder / "run" / "only" / "done.json").read_text())


def test_the_command_goes_on_with_fewer_devices(tmp_path):
    """Eight devices, then two, then one, in one workdir: the numbers of a run that had one device all the time."""
    steps = lambda n: ("--allow_config_change", f"--config.stages.only.train.steps={n}")
    for folder in ("alone", "fewer"):
        (tmp_path / folder).mkdir()
    alone = trained(tmp_path / "alone", 1, *steps(15))
    trained(tmp_path / "fewer", 8, *steps(5), "--config.mesh.fsdp=8", "--config.mesh.data=1")
    trained(tmp_path / "fewer", 2, *steps(10), "--config.mesh.fsdp=2", "--config.mesh.data=1")
    fewer = trained(tmp_path / "fewer", 1, *steps(15))
    assert fewer["history"][-1] == pytest.approx(alone["history"][-1], rel=1e-4)


def losses(count: int) -> list[list[float]]:
    """Of every process: loss and norm of the gradient of three steps."""
    try:
        port = str(free_port())
    except OSError as error:
        pytest.skip(f"no port of this machine can be listened on ({error}), so processes cannot talk")
    env = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(ROOT))
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    running, said = run(
        [[sys.executable, "-c", TRAIN, str(i), str(count), port] for i in range(count)], [env] * count
    )
    for process, (_, err) in zip(running, said, strict=True):
        if "gloo" in err.lower() and ("not compiled" in err or "unavailable" in err.lower()):
            pytest.skip("this jaxlib has no gloo, so processes cannot talk on a CPU")
        assert process.returncode == 0, err[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def test_two_processes_learn_what_one_does():
    [one] = losses(1)
    first, second = losses(2)
    assert first == second, "both see the same losses"
    assert first == pytest.approx(one, rel=1e-4)
    assert len(set(one)) == 6, "something is learnt"


def test_a_checkpoint_of_eight_devices_goes_on_with_two_and_with_one(run_python, tmp_path):
    code = f"""
import jax, numpy as np
from jaxvid.io.checkpoint import Checkpoints
from jaxvid.sharding import make_mesh, put_batch
from jaxvid.training.step import make_init, make_train_step, state_sharding
from tests.training.tiny import TinyTask, tiny_data, tiny_optimizer

task, optimizer = TinyTask(), tiny_optimizer()
with tiny_data() as data:
    hosts = [b for b, _ in zip((b for b in data if b[0].x.shape[0] == 8), range(4))]

def ready(**sizes):
    count = int(np.prod(list(sizes.values())))
    mesh = make_mesh(**sizes, devices=jax.devices()[:count])
    shapes, places = state_sharding(mesh, task, optimizer, hosts[0])
    return mesh, shapes, places, make_train_step(task, optimizer, mesh, places)

def go(state, step, mesh, some):
    for host in some:
        state, metrics = step(state, put_batch(host, mesh))
    return state, [float(metrics["loss"]), float(metrics["grad_norm"])]

mesh, shapes, places, step = ready(data=2, fsdp=4)
state = make_init(task, optimizer, mesh, places)(jax.random.key(0), put_batch(hosts[0], mesh))
state, _ = go(state, step, mesh, hosts[:2])
assert state.params["table"].sharding.spec[1] == "fsdp"
with Checkpoints({str(tmp_path)!r}) as kept:
    kept.save(2, state, {{}})
    kept.wait()
    whole, said = go(state, step, mesh, hosts[2:])
    for sizes in (dict(data=1, fsdp=2), dict(data=1)):
        mesh, shapes, places, step = ready(**sizes)
        restored, _ = kept.restore(2, shapes, places)
        other, theirs = go(restored, step, mesh, hosts[2:])
        np.testing.assert_allclose(theirs, said, rtol=1e-5)
        close = lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-4, atol=1e-6)
        jax.tree.map(close, (other.params, other.ema, other.opt_state), (whole.params, whole.ema, whole.opt_state))
print("goes on")
"""
    assert "goes on" in run_python(code, devices=8, timeout=1200)
