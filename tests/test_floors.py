# SPDX-License-Identifier: Apache-2.0
"""The plan of the house: who may import whom, and what may stand where. What is not written here is forbidden."""

import ast
import functools
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]

# room: the rooms it may import from, besides itself. ARCHITECTURE.md shows the same table.
MAY_IMPORT = {
    "pallas_kernels": "",
    "jaxvid.types": "",
    "jaxvid.config": "jaxvid.types",
    "jaxvid.sharding": "jaxvid.types",
    "jaxvid.story": "jaxvid.types",
    "jaxvid.ops": "pallas_kernels jaxvid.types jaxvid.sharding",
    "jaxvid.nn": "jaxvid.ops jaxvid.types jaxvid.sharding",
    "jaxvid.models": "jaxvid.nn jaxvid.ops jaxvid.types jaxvid.sharding",
    "jaxvid.diffusion": "jaxvid.types",
    "jaxvid.sampling": "jaxvid.diffusion jaxvid.types",
    "jaxvid.data": "jaxvid.types",
    "jaxvid.io": "jaxvid.types jaxvid.config",
    "jaxvid.training": "jaxvid.sampling jaxvid.diffusion jaxvid.data jaxvid.io jaxvid.ops jaxvid.types jaxvid.config "
    "jaxvid.sharding",
    "jaxvid.eval": "jaxvid.sampling jaxvid.data jaxvid.io jaxvid.ops jaxvid.types",
    "jaxvid.clip": "jaxvid",
    "jaxvid.request": "jaxvid",
    "jaxvid.recipe": "jaxvid",
    "jaxvid.pixels": "jaxvid",
    "jaxvid.stages": "jaxvid",
    "jaxvid.traits": "jaxvid",
    "jaxvid.engine": "jaxvid",
    "jaxvid.run": "jaxvid",
    "jaxvid.imports": "jaxvid",
    "jaxvid.exports": "jaxvid",
    "jaxvid.pipeline": "jaxvid",
    "jaxvid.nano": "jaxvid",
    "jaxvid.studio": "jaxvid",
    "jaxvid.cli": "jaxvid",
    "jaxvid.__main__": "jaxvid.cli",
    "configs": "jaxvid",
    "experiments": "jaxvid pallas_kernels configs experiments",
    "colab": "jaxvid pallas_kernels configs experiments",
    "tests": "jaxvid pallas_kernels configs experiments",
}
TOPS = {room.split(".")[0] for room in MAY_IMPORT}
SHIPPED = ("jaxvid", "pallas_kernels")  # what is installed, the library
LIBRARY = (*SHIPPED, "configs", "experiments")

# a name that only these places may use; a place is a file or a folder
ONLY_IN = {
    "absl": "jaxvid/cli/ experiments/ tests/",
    "ml_collections": "jaxvid/config.py jaxvid/cli/ configs/ experiments/ tests/",
    "jax.default_backend": "jaxvid/ops/pick.py tests/",
    "tensorflow": "",
    "torch": "experiments/e001_bench/peers.py experiments/e004_beside_diffusers/",  # which hold us against it
    "clu": "",
    "cv2": "",
    "starlette": "jaxvid/studio/ jaxvid/cli/studio.py tests/",
    "uvicorn": "jaxvid/cli/studio.py tests/",
    "imageio": "jaxvid/clip.py jaxvid/cli/ tests/",
    "decord": "",
    **dict.fromkeys(
        ("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"), ""
    ),
}
FORBIDDEN_NAMES = {
    "utils.py",
    "util.py",
    "common.py",
    "base.py",
    "registry.py",
    "constants.py",
    "helpers.py",
    "misc.py",
}


def sources(*tops: str) -> list[pathlib.Path]:
    """Every Python file of these top-level folders, without what an editor or a notebook leaves behind."""
    paths = [path for top in tops for path in sorted((ROOT / top).rglob("*.py"))]
    return [path for path in paths if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)]


def module_of(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def inside(name: str, room: str) -> bool:
    return (name + ".").startswith(room + ".")


def room_of(module: str) -> str | None:
    return max((room for room in MAY_IMPORT if inside(module, room)), key=len, default=None)


def imports(nodes) -> list[str]:
    """The full names that these syntax nodes import: `from a import b` is a.b."""
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@functools.cache
def tree_of(path: pathlib.Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


@functools.cache
def nodes_of(path: pathlib.Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(tree_of(path)))


@functools.cache
def spelled(node: ast.Attribute) -> str:
    """`a.b.c` as it is written."""
    return ast.unparse(node)


def short(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).as_posix()


def allowed(path: pathlib.Path, places: str) -> bool:
    return any(
        short(path) == place or (place.endswith("/") and short(path).startswith(place))
        for place in places.split()
    )


def wrong_imports(module: str, names: list[str]) -> list[str]:
    """Those of `names` that `module` may not import."""
    room = room_of(module)
    may = [] if room is None else [room, *MAY_IMPORT[room].split()]
    ours = [name for name in names if name.split(".")[0] in TOPS]
    return [name for name in ours if not any(inside(name, top) for top in may)]


def test_every_file_has_a_room():
    lost = [short(p) for p in sources(*SHIPPED) if module_of(p) != "jaxvid" and room_of(module_of(p)) is None]
    assert not lost, f"no room in the table of tests/test_floors.py for {lost}"


def test_every_folder_of_the_checkout_is_known():
    folders = {p.relative_to(ROOT).parts[0] for p in ROOT.glob("*/**/*.py")}
    folders = {
        name for name in folders if not name.startswith(".") and name not in ("build", "dist", "runs", "out")
    }
    assert folders <= TOPS | {"docs"}, (
        f"folders with code that the table does not know: {sorted(folders - TOPS)}"
    )
    stray = [p.name for p in ROOT.glob("*.py")]
    assert not stray, f"code at the root of the checkout: {stray}"


def test_every_import_goes_down():
    bad = []
    for path in sources(*TOPS):
        if module_of(path) == "jaxvid":
            continue  # the face: see test_the_face_is_lazy
        bad += [
            f"{short(path)} imports {name}"
            for name in wrong_imports(module_of(path), imports(nodes_of(path)))
        ]
    assert not bad, "\n".join(bad)


def test_the_table_can_say_no():
    assert wrong_imports("jaxvid.sampling.solvers", ["jaxvid.nn.stack.Stack"]) == ["jaxvid.nn.stack.Stack"]
    assert wrong_imports("jaxvid.nn.stack", ["jaxvid.diffusion.process"]) == ["jaxvid.diffusion.process"]
    assert wrong_imports("jaxvid.types", ["jaxvid"]) == ["jaxvid"]
    assert (
        wrong_imports("jaxvid.models.video_dit", ["jaxvid.nn.stack", "jax.numpy", "jaxvid.nn.layers.Linear"])
        == []
    )
    assert wrong_imports("jaxvid.cli.demo", ["jaxvid.eval.shapes", "experiments.run"]) == ["experiments.run"]


def test_the_face_is_lazy():
    tree = tree_of(ROOT / "jaxvid" / "__init__.py")
    eager = [
        name for name in imports(tree.body) if name.split(".")[0] not in ("__future__", "importlib", "typing")
    ]
    assert not eager, f"`import jaxvid` must stay instant, but it imports {eager}"


def test_no_circles():
    modules = {module_of(path): path for path in sources(*LIBRARY)}
    graph = {}
    for module, path in modules.items():
        wanted = []
        for name in imports(node for node in tree_of(path).body):
            found = name if name in modules else name.rpartition(".")[0]
            if found in modules and found != module:
                wanted.append(found)
        graph[module] = wanted
    done: set[str] = set()

    def walk(module: str, trail: tuple[str, ...]):
        assert module not in trail, "a circle: " + " -> ".join((*trail[trail.index(module) :], module))
        if module not in done:
            for wanted in graph[module]:
                walk(wanted, (*trail, module))
            done.add(module)

    for module in graph:
        walk(module, ())
    assert done == set(modules)


def test_absolute_imports_only():
    bad = [
        f"{short(path)}:{node.lineno}"
        for path in sources(*TOPS)
        for node in nodes_of(path)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not bad, f"relative imports: {bad}"


@pytest.mark.parametrize("name", ONLY_IN)
def test_only_where_it_belongs(name):
    bad = []
    for path in sources(*LIBRARY):
        if allowed(path, ONLY_IN[name]):
            continue
        for node in nodes_of(path):
            used = imports([node])
            if isinstance(node, ast.Attribute):
                used = [spelled(node)]
            if any(inside(one, name) or one.endswith(f"xla_bridge.{name.split('.')[-1]}") for one in used):
                bad.append(f"{short(path)}:{node.lineno} uses {name}")
    assert not bad, "\n".join(bad)


def test_nothing_is_unpickled():
    bad = []
    for path in sources(*LIBRARY):
        for node in nodes_of(path):
            if (
                isinstance(node, ast.keyword)
                and node.arg == "allow_pickle"
                and ast.unparse(node.value) != "False"
            ):
                bad.append(f"{short(path)}:{node.value.lineno}")
    assert not bad, f"allow_pickle: {bad}"


def test_no_asserts_in_the_library():
    bad = [
        f"{short(path)}:{node.lineno}"
        for path in sources(*SHIPPED)
        for node in nodes_of(path)
        if isinstance(node, ast.Assert)
    ]
    assert not bad, f"an assert vanishes under -O and names no remedy; raise instead: {bad}"


def test_no_bare_except():
    bad = [
        f"{short(path)}:{node.lineno}"
        for path in sources(*TOPS)
        for node in nodes_of(path)
        if isinstance(node, ast.ExceptHandler) and node.type is None
    ]
    assert not bad, f"bare except: {bad}"


def test_files_are_named_after_one_idea():
    bad = [short(path) for path in sources(*TOPS) if path.name in FORBIDDEN_NAMES]
    assert not bad, f"a file has the name of the one thing inside: {bad}"


def test_every_file_says_its_licence_and_every_module_what_it_is():
    spdx = "# SPDX-License-Identifier: Apache-2.0"
    bare = [
        short(p)
        for p in sources(*TOPS)
        if p.read_text() and not p.read_text().startswith((spdx, f"#!/usr/bin/env python3\n{spdx}"))
    ]
    assert not bare, f"no SPDX line at the head of {bare}"
    mute = [
        short(p) for p in sources(*LIBRARY) if p.name != "__init__.py" and not ast.get_docstring(tree_of(p))
    ]
    assert not mute, f"no docstring at the head of {mute}"


def test_nothing_is_left_to_do():
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    bad = [short(p) for p in sources(*TOPS) if p != pathlib.Path(__file__) and marks.search(p.read_text())]
    assert not bad, f"open ends: {bad}"


def test_every_package_has_a_face():
    folders = {path.parent for path in sources(*SHIPPED)}
    bad = [short(folder) for folder in folders if not (folder / "__init__.py").exists()]
    assert not bad, f"no __init__.py, so the folder would not be installed: {bad}"


def test_the_paper_shows_the_same_table():
    rows = re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|$", (ROOT / "ARCHITECTURE.md").read_text(), re.M)
    paper = {}
    for rooms, may in rows:
        for room in re.findall(r"[\w.]+", rooms):
            paper[room] = set() if may == "nothing of ours" else set(may.strip("`").split())

    def plain(name):
        return name.removeprefix("jaxvid.")

    plan = {
        plain(room): {plain(one) for one in may.split()} - {plain(room)} for room, may in MAY_IMPORT.items()
    }
    plan["experiments"] = plan["colab"] = set(MAY_IMPORT["colab"].split())
    for room, may in plan.items():
        assert room in paper, f"ARCHITECTURE.md has no row for {room}"
        assert paper[room] == may, (
            f"{room}: ARCHITECTURE.md says {sorted(paper[room])}, the test {sorted(may)}"
        )


@pytest.mark.parametrize("paper", ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md"])
def test_the_papers_name_files_that_exist(paper):
    text = (ROOT / paper).read_text()
    text = text[: text.find("## How to add one thing")] if "## How to add one thing" in text else text
    files = {short(path) for path in sources(*TOPS)}
    named = set(re.findall(r"`([\w/]+\.py)`", text)) | set(
        re.findall(r"\b((?:jaxvid|configs|tests|colab)/[\w/]+\.py)", text)
    )
    named -= FORBIDDEN_NAMES
    lost = [name for name in named if not any(file == name or file.endswith(f"/{name}") for file in files)]
    assert not lost, f"{paper} names files that are not there: {sorted(lost)}"
    links = re.findall(r"\]\(([\w./-]+)\)", text)
    lost = [link for link in links if not (ROOT / link).exists()]
    assert not lost, f"{paper} links to what is not there: {lost}"


def test_the_short_round_names_files_that_exist():
    named = next(
        ast.literal_eval(n.value)
        for n in tree_of(ROOT / "tests" / "conftest.py").body
        if isinstance(n, ast.Assign)
    )
    lost = [name for name in named if not (ROOT / "tests" / name).exists()]
    assert len(named) > 10 and not lost, f"SMOKE in tests/conftest.py names {lost}"
