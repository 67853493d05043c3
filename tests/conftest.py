# SPDX-License-Identifier: Apache-2.0
"""The rules under which every test runs: a fixed key or a seed that is told, no silent rank promotion, shapes checked."""

import os
import pathlib
import secrets
import subprocess
import sys

# The fast suite is a CPU suite, so that it says the same on every machine; an empty JAX_PLATFORMS (make kernels)
# lets JAX choose. Must be set before JAX is imported.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Annotations such as Float[Array, "B T D"] are checked in tests, and only there. Before the first import of jaxvid.
import jaxtyping

jaxtyping.install_import_hook(
    ["jaxvid", "pallas_kernels"],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

# The short round that .ci/run also makes on the newest jax: every library we stand on, and each tower once.
SMOKE = {
    "cli/test_generate.py",
    "data/test_pipeline.py",
    "data/test_tfds_source.py",
    "diffusion/test_process.py",
    "io/test_bundle.py",
    "io/test_checkpoint.py",
    "io/test_video_file.py",
    "io/test_weights.py",
    "models/test_video_dit.py",
    "ops/test_attention.py",
    "ops/test_ssd.py",
    "pallas_kernels/test_attention_gpu.py",
    "pallas_kernels/test_ssd_gpu.py",
    "pallas_kernels/test_windows_gpu.py",
    "sampling/test_sample.py",
    "test_config.py",
    "test_import.py",
    "test_sharding.py",
    "test_traps.py",
    "training/test_step.py",
}


def pytest_collection_modifyitems(items):
    here = pathlib.Path(__file__).parent
    for item in items:
        # a kernel has to export with every jax that is supported
        exports = item.path.parent.name == "pallas_kernels" and item.name.startswith("test_exports")
        if exports or item.path.relative_to(here).as_posix() in SMOKE:
            item.add_marker("smoke")


@pytest.fixture
def key() -> jax.Array:
    """The key from which a test draws; always the same."""
    return jax.random.key(0)


@pytest.fixture
def fresh() -> int:
    """A seed that is another one in every run, printed where a test fails; JAXVID_TEST_SEED=N takes it again."""
    seed = int(os.environ.get("JAXVID_TEST_SEED") or secrets.randbits(30))
    print(f"JAXVID_TEST_SEED={seed}")
    return seed


@pytest.fixture(scope="session")
def run_python():
    """`run_python(code, devices=1) -> stdout`: a fresh interpreter, with that many CPU devices."""

    def run(code: str, devices: int = 1, timeout: float = 300) -> str:
        env = dict(os.environ, JAX_PLATFORMS="cpu")
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
        root = pathlib.Path(__file__).parents[1]
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=root, timeout=timeout, capture_output=True, text=True
        )
        if done.returncode:
            pytest.fail(f"the interpreter left with {done.returncode}:\n{done.stderr[-4000:]}")
        return done.stdout

    return run
