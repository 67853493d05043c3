# SPDX-License-Identifier: Apache-2.0
"""A .pth is data: tensors come out, anything that would run is refused, and so is anything broken."""

import pickletools
import struct
import zipfile

import numpy as np
import pytest

from jaxvid.io.lazy import from_array
from jaxvid.io.pth import open_pth, write_pth
from jaxvid.types import InputError

A = np.arange(6, dtype=np.float32).reshape(2, 3)


def archive(path, program, data=A.tobytes(), order=b"little", kind=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("w/data.pkl", program)
        file.writestr("w/byteorder", order)
        file.writestr("w/data/0", data)
    return path


def program_of(path):
    with zipfile.ZipFile(path) as file:
        return file.read(next(name for name in file.namelist() if name.endswith("data.pkl")))


@pytest.fixture
def good(tmp_path):
    write_pth(tmp_path / "w.pth", {"a": from_array(A)})
    return tmp_path / "w.pth"


def test_our_own_form_is_a_well_formed_program(good):
    pickletools.dis(program_of(good), out=open("/dev/null", "w"))
    np.testing.assert_array_equal(open_pth(good)["a"].read(), A)


def test_protocol_4_wrappers_and_parameters(tmp_path):
    """What a newer torch or a trainer writes: {'state_dict': {...}} of parameters, with frames and memo."""

    def text(s):
        return b"\x8c" + bytes([len(s)]) + s.encode()

    name = b"\x8c\x05torch\x94\x8c\x0cFloatStorage\x94\x93\x94"
    tensor = (
        text("torch._utils") + text("_rebuild_tensor_v2") + b"\x93((" + text("storage") + name + text("0")
    )
    tensor += (
        text("cpu") + b"K\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86\x89" + b"ccollections\nOrderedDict\n)RtR"
    )
    parameter = text("torch._utils") + text("_rebuild_parameter") + b"\x93(" + tensor + b"\x88N" + b"tR"
    program = b"\x80\x04}" + text("state_dict") + b"}" + text("a") + parameter + b"ss."
    np.testing.assert_array_equal(open_pth(archive(tmp_path / "w", program))["a"].read(), A)


@pytest.mark.parametrize(
    "program",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
        b"\x80\x02cbuiltins\neval\nX\x01\x00\x00\x001\x85R.",
        b"\x80\x02ctorch\nload\n.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.\n.",
        b"(i__builtin__\nexec\n.",
        b"\x80\x02ccollections\nOrderedDict\n)\x81.",
        b"\x80\x02}X\x01\x00\x00\x00aK\x01s.",
        b"\x80\x02.",
        b"\x80\x02}",
        b"\x80\x02}.",
        b"",
        b"\xff\xff",
        b"\x80\x02h\x05.",
        b"\x80\x02]K\x01K\x02s.",
    ],
)
def test_code_and_nonsense_are_refused(tmp_path, program, monkeypatch):
    import os

    monkeypatch.setattr(os, "system", lambda *_: pytest.fail("a weight file ran code"))
    with pytest.raises(InputError, match="weights_only=True"):
        open_pth(archive(tmp_path / "w.pth", program))


def test_a_tensor_beyond_its_storage_is_refused(good, tmp_path):
    program = program_of(good)
    for wrong in (
        program.replace(b"J" + struct.pack("<i", 2), b"J" + struct.pack("<i", 9)),  # shape (9, 3)
        program.replace(b"tQJ" + struct.pack("<i", 0), b"tQJ" + struct.pack("<i", 3)),  # offset
        program.replace(b"tQJ" + struct.pack("<i", 0), b"tQJ" + struct.pack("<i", -3)),
    ):
        assert wrong != program
        with pytest.raises(InputError):
            open_pth(archive(tmp_path / "w.pth", wrong))
    with pytest.raises(InputError, match="missing or cut off"):
        open_pth(archive(tmp_path / "w.pth", program, data=A.tobytes()[:-4]))
    with pytest.raises(InputError, match="missing or cut off"):  # a bomb is never unpacked
        open_pth(archive(tmp_path / "w.pth", program, kind=zipfile.ZIP_DEFLATED))
    with pytest.raises(InputError, match="big-endian"):
        open_pth(archive(tmp_path / "w.pth", program, order=b"big"))


def test_a_file_that_is_cut_off_or_foreign_is_refused(good, tmp_path):
    whole = good.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"\x80\x02}q\x00.", b"PK\x03\x04"):
        (tmp_path / "cut.pth").write_bytes(content)
        with pytest.raises(InputError):
            open_pth(tmp_path / "cut.pth")
    with pytest.raises(InputError):
        open_pth(tmp_path / "nothing.pth")
