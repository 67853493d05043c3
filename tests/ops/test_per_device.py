# SPDX-License-Identifier: Apache-2.0
"""Kernels on a mesh: the same numbers as on one device, in the program of a TPU, and reasons where they cannot be."""

import json

import pytest

from tests.ops.per_device_cases import REASONS, VALUES

CODE = "import sys; sys.argv.append('{}'); from tests.ops.per_device_cases import main; main()"


@pytest.fixture(scope="module")
def differences(run_python):
    return json.loads(run_python(CODE.format("values"), devices=8, timeout=1800).splitlines()[-1])


@pytest.fixture(scope="module")
def lowered(run_python):
    return json.loads(run_python(CODE.format("lowered"), devices=8, timeout=900).splitlines()[-1])


@pytest.mark.parametrize("case", VALUES)
def test_values_and_gradients_are_those_of_one_device(differences, case):
    # beside plain JAX, whose scan sums in another order
    assert differences[case] < (1e-4 if "scan" in case else 1e-5)


@pytest.mark.parametrize("case", VALUES)
def test_the_program_for_a_tpu_has_the_kernel(lowered, case):
    count, refusal = lowered[case]
    assert count >= 1 and not refusal


@pytest.mark.parametrize("case", REASONS)
def test_what_does_not_divide_is_plain_or_refused(lowered, case):
    """Plain JAX where nobody named the kernel; a named one says why."""
    count, refusal = lowered[case]
    assert refusal.startswith(REASONS[case])
    # windows that no device has whole are sorted into a batch first, of which the attention kernel takes parts
    assert count == (case == "windows")
