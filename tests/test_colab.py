# SPDX-License-Identifier: Apache-2.0
"""The notebooks: kept without outputs, and running top to bottom at toy size."""

import ast
import importlib.util
import json
import pathlib
import sys
import types

import pytest

COLAB = pathlib.Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(COLAB.glob("*.ipynb"))

# what the cell tagged "parameters" is followed by here, so that a notebook takes seconds
TOY = {"01_first_video": {"seconds": 0.5, "minute": 1, "steps": 2}}


def cells(path: pathlib.Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


def run_cell(source: str, names: dict):
    """Runs a cell and returns the value of its last line, when that is an expression, as a notebook shows it."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


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
    first = next("".join(cell["source"]) for cell in cells(path) if cell["cell_type"] == "code")
    assert "find_spec" in first and "checkout" in first
    assert "==" not in first.replace("sys.path", ""), "an install cell pins nothing"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_top_to_bottom(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    display = types.ModuleType("IPython.display")
    display.HTML = type("HTML", (str,), {})
    for name, module in {"IPython": types.ModuleType("IPython"), "IPython.display": display}.items():
        monkeypatch.setitem(sys.modules, name, module)
    names: dict = {"__name__": "__main__"}
    shown = []
    for cell in cells(path):
        if cell["cell_type"] == "code":
            shown.append(run_cell("".join(cell["source"]), names))
            if "parameters" in cell["metadata"].get("tags", ()):
                names.update(TOY[path.stem])
    videos = [value for value in shown if isinstance(value, display.HTML)]
    assert videos and all("<video" in video and "data:video/mp4;base64," in video for video in videos)
    assert {one.suffix for one in tmp_path.iterdir()} == {".mp4", ".png"}
