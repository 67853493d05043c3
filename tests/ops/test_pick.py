# SPDX-License-Identifier: Apache-2.0
"""Choosing an implementation: order, refusals, and the context that forces one."""

import jax
import pytest

from jaxvid.ops.pick import pick, platform, refuses, use

TABLE = {"never": refuses("needs wings"), "plain": lambda x: x + 1, "other": lambda x: x + 2}


def test_takes_the_first_that_does_not_refuse():
    assert pick("op", TABLE, ("never", "plain", "other"))(1) == 2
    assert pick("op", TABLE, {platform(): ("other",), "default": ("plain",)})(1) == 3
    assert pick("op", TABLE, {"moon": ("other",), "default": ("plain",)})(1) == 2
    assert platform() == jax.default_backend()


def test_a_named_one_never_falls_back():
    assert pick("op", TABLE, ("plain",), "other")(1) == 3
    with pytest.raises(NotImplementedError, match="needs wings"):
        pick("op", TABLE, ("plain",), "never")(1)
    with pytest.raises(ValueError, match="no implementation 'plian'; it has never, plain, other"):
        pick("op", TABLE, ("plain",), "plian")


def test_says_every_reason_when_all_refuse():
    with pytest.raises(NotImplementedError, match="never: needs wings; lame: broken leg"):
        pick("op", {**TABLE, "lame": refuses("broken leg")}, ("never", "lame"))(1)


def test_other_errors_pass_through():
    with pytest.raises(TypeError):
        pick("op", TABLE, ("plain", "other"))("text")


def test_use_forces_by_op_and_ends_with_its_block():
    with use(op="other", elsewhere="plain"):
        assert pick("op", TABLE, ("plain",))(1) == 3
        assert pick("op", TABLE, ("plain",), "plain")(1) == 2  # what the call says wins
        with use(op="plain"):
            assert pick("op", TABLE, ("other",))(1) == 2
        assert pick("op", TABLE, ("plain",))(1) == 3
    assert pick("op", TABLE, ("plain",))(1) == 2
