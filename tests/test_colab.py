# SPDX-License-Identifier: Apache-2.0
"""The notebooks: kept without outputs, and running top to bottom at toy size, each in a kernel of its own."""

import base64
import importlib.util
import io
import json
import pathlib
import re
import sys

import av
import nbformat
import pytest
from nbclient import NotebookClient

from tests.toy_pipeline import toy_pipeline

ROOT = pathlib.Path(__file__).parents[1]
COLAB = ROOT / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))
INLINE = re.compile(r'<video [^>]*src="data:video/mp4;base64,([^"]+)"')

# what the cell tagged "parameters" is followed by here, so that a notebook takes seconds
TOY = {
    "01_first_video": "seconds, minute, steps = 0.5, 1, 2",
    "02_train_on_your_videos": """
from jaxvid.config import call
from jaxvid.models.text_encoder import ByteTextEncoder
from jaxvid.models.video_dit import dit
from jaxvid.models.video_vae import VideoVAE
from jaxvid.training.task import AutoencoderTask

minutes, size, seconds = (0.02, 0.02), 32, 2.0
vae = call(VideoVAE, base=4, mult=(1, 1, 1), res=1, temporal=(True, True), patch=2, norm_floor=1e-6)
changes = {
    "stages.autoencoder.task": call(AutoencoderTask, model=vae),
    "stages.autoencoder.statistics": 4,
    "stages.backbone.task.model.dit": call(dit, layers=1, width=32, head=16, channels=16, text_width=16),
    "stages.backbone.task.model.text_encoder": call(ByteTextEncoder, width=16, layers=1, head=8),
    "stages.backbone.serve.steps": 2,
    "stages.backbone.samples.seconds": 2.0,
}
""",
    "03_a_new_mixer_in_one_file": "steps, clips, frames, batch, width = 3, 4, 9, 2, 32",
    "04_a_minute_and_longer": """
checkpoint, methods, seconds, longer, steps = "toy", ("rollout", "sliding"), 10, 10, 2
""",
    "05_many_devices": 'checkpoint, tokens, seconds, steps = "toy", 256, 2, 2',
}


def cells(path: pathlib.Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def install_cell(path: pathlib.Path) -> str:
    return next("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code")


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The name of a kernel that is this interpreter, whatever others the machine has; nothing of it stays in the home."""
    spec = tmp_path / "jupyter" / "kernels" / "under-test"
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    about = {"argv": command, "display_name": "under test", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(about))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiling is what costs at this size
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return spec.name


@pytest.fixture(scope="module")
def toy_model(tmp_path_factory):
    """A bundle that samples at once."""
    return toy_pipeline().save(tmp_path_factory.mktemp("model") / "toy")


@pytest.fixture
def desk(tmp_path, toy_model):
    """A folder to run in, with the checkout in it as a notebook finds it, and the toy."""
    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "checkout").symlink_to(ROOT, target_is_directory=True)
    (folder / "toy").symlink_to(toy_model, target_is_directory=True)
    return folder


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == sorted(TOY)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    spec = importlib.util.spec_from_file_location("strip", COLAB / "strip.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    text = path.read_text(encoding="utf-8")
    assert tool.strip(text) == text, f"python colab/strip.py {path}"
    dirty = json.loads(text)
    dirty["cells"][1].update(
        execution_count=3, outputs=[{"output_type": "stream", "name": "stdout", "text": ["x"]}]
    )
    assert tool.strip(json.dumps(dirty)) == text


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_first_code_cell_installs_and_keeps_jax(path):
    first = install_cell(path)
    assert "find_spec" in first and "checkout" in first
    assert "==" not in first.replace("sys.path", ""), "an install cell pins nothing"
    assert first == install_cell(NOTEBOOKS[0]), "all notebooks begin in the same way"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_top_to_bottom(path, kernel, desk):
    book = nbformat.read(path, as_version=4)
    (place,) = [i for i, cell in enumerate(book.cells) if "parameters" in cell.metadata.get("tags", ())]
    toy = {
        "cell_type": "code",
        "metadata": {},
        "source": TOY[path.stem],
        "outputs": [],
        "execution_count": None,
    }
    book.cells.insert(place + 1, nbformat.from_dict(toy))
    where = {"metadata": {"path": str(desk)}}
    limits = {"timeout": 900, "startup_timeout": 300}  # seconds: a cell, and until the kernel answers
    NotebookClient(book, kernel_name=kernel, resources=where, **limits).execute()

    code = [cell for cell in book.cells if cell.cell_type == "code"]
    shown = [[output.data for output in cell.outputs if "data" in output] for cell in code]
    pages = ["".join(data.get("text/html", "")) for one in shown for data in one]
    for page in pages:
        for coded in INLINE.findall(page):
            with av.open(io.BytesIO(base64.b64decode(coded))) as file:
                assert file.streams.video[0].codec_context.name == "h264"
    last = [data for data in shown[-1] if "image/png" in data or INLINE.search(data.get("text/html", ""))]
    assert last, "a notebook ends with a video or a picture"
