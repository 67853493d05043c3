# SPDX-License-Identifier: Apache-2.0
import dataclasses
import math
import sys

import flax.core
import ml_collections
import optax
import pytest

from jaxvid import config
from jaxvid.config import build, call, check, from_json, load_config, to_json
from jaxvid.types import InputError


@dataclasses.dataclass(frozen=True)
class Wheel:
    radius: float = 1.0
    spokes: int = 8
    name: str | None = None


@dataclasses.dataclass(frozen=True)
class Cart:
    wheel: Wheel
    sizes: tuple = ()
    extra: object = None


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _me())


def _me():
    import types

    module = types.ModuleType(__name__)
    module.Wheel, module.Cart = Wheel, Cart
    return module


def test_build_makes_what_call_wrote():
    node = call(Cart, wheel=call(Wheel, radius=2.0), sizes=[1, [2, 3]], extra=dict(a=1))
    made = build(node)
    assert made == Cart(Wheel(2.0), (1, (2, 3)), flax.core.FrozenDict(a=1))
    assert hash(made.extra) is not None


def test_more_arguments_complete_a_call():
    assert build(call(Cart, sizes=(1,)), wheel=Wheel(3.0)).wheel.radius == 3.0
    with pytest.raises(InputError, match="wheel"):
        build(call(Cart))


def test_shortest_public_name():
    assert call(optax.adamw, learning_rate=1e-3).kind == "optax:adamw"


def test_unknown_name_says_did_you_mean():
    with pytest.raises(InputError, match="Wheel has no 'spoke'; did you mean 'spokes'"):
        call(Wheel, spoke=3)
    node = call(Wheel)
    node.unlock()
    node.raduis = 2.0
    with pytest.raises(InputError, match="did you mean 'radius'"):
        build(node)
    with pytest.raises(InputError, match="did you mean 'radius'"):
        check(ml_collections.ConfigDict(dict(a=dict(b=node))))


@pytest.mark.parametrize(
    "wrong", [dict(spokes="8"), dict(spokes=True), dict(spokes=1.5), dict(radius="x"), dict(name=3)]
)
def test_wrong_type_is_named_with_its_path(wrong):
    key = next(iter(wrong))
    with pytest.raises(InputError, match=f"config.a.{key}="):
        check(ml_collections.ConfigDict(dict(a=call(Wheel, **wrong))))


def test_right_types_pass():
    check(call(Cart, wheel=call(Wheel, radius=1, spokes=3, name=None), sizes=[1]))
    assert config.parameter(call(Wheel), "spokes") == 8


def test_json_round_trip_builds_the_same():
    node = call(Cart, wheel=call(Wheel, radius=0.1), sizes=(1, 2), extra=dict(z=1, a=None))
    text = to_json(node)
    assert build(from_json(text)) == build(node)
    assert to_json(from_json(text)) == text


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"a": NaN}', '{"a": 1, "a": 2}', "[" * 100_000, '"' + "x" * (1 << 20)]
)
def test_bad_json_is_refused(text):
    with pytest.raises(InputError):
        from_json(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, object(), len])
def test_only_plain_values_are_stored(value):
    with pytest.raises(InputError, match="config.a"):
        to_json(ml_collections.ConfigDict(dict(a=value)))


@pytest.mark.parametrize(
    'kind',
    ['os:system', 'subprocess:run', 'builtins:eval', 'jaxvid.config:load_config', 'jaxvid.io.weights:os', 'jaxvid:os',
     'jaxvid.types:Any', 'x', '..:y', 'a:b.c', 'jaxvid.models:__import__', 'jaxvidevil:f', 7],
)  # fmt: skip
def test_stored_configs_may_only_describe(kind):
    with pytest.raises(InputError):
        build({"kind": kind, "x": 1}, config.SAFE)


def test_a_whitelist_admits_its_packages():
    node = call(Wheel)
    assert build(node, (__name__,)) == Wheel()
    with pytest.raises(InputError, match="not allowed"):
        build(call(Cart, wheel=call(optax.sgd, learning_rate=1.0)), (__name__,))


def test_a_missing_module_or_name_is_an_input_error():
    with pytest.raises(InputError, match="no module"):
        build({"kind": "no_such_module_here:f"})
    with pytest.raises(InputError, match="did you mean 'adamw'"):
        build({"kind": "optax:adamww"})


def test_local_functions_cannot_be_found_again():
    with pytest.raises(InputError, match="top of an importable module"):
        call(lambda x: x, x=1)


def test_load_config(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(
        "import optax, ml_collections\nfrom jaxvid.config import call\n"
        "def get_config():\n    c = ml_collections.ConfigDict()\n"
        "    c.o = call(optax.sgd, learning_rate=0.1)\n    return c\n"
    )
    assert load_config(path).o.learning_rate == 0.1
    with pytest.raises(InputError, match="did you mean .*toy.py"):
        load_config(tmp_path / "toi.py")
    for text, said in [
        ("x = (", "cannot be run"),
        ("x = 1", "no get_config"),
        ("def get_config(): return 3", "returned"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=said):
            load_config(path)


@dataclasses.dataclass(frozen=True)
class Law:
    kind: str = "uniform"


def test_an_argument_named_kind(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "Law", Law, raising=False)
    node = call(Law, kind="normal")
    assert build(node) == Law("normal") and build(from_json(to_json(node))) == Law("normal")
    with pytest.raises(InputError, match="kind=3"):
        check(call(Law, kind=3))
