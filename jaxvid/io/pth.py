# SPDX-License-Identifier: Apache-2.0
"""Tensors in a ``.pth`` file, without running the pickle in it.

Such a file is a zip archive: ``*/data.pkl`` says which tensor lies where, ``*/data/N`` are the raw numbers. The pickle is a
program; it is read here opcode by opcode, by a machine that knows dictionaries, tuples, numbers, text and four names, and
whatever else comes up is refused. Nothing is imported or called that the file names.
"""

from __future__ import annotations

import pathlib
import pickletools
import struct
import uuid
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxvid.io.lazy import Stored, mapped
from jaxvid.types import InputError

_STORAGES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_ORDERED, _TENSOR = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
_WRAPPERS = ("generator_ema", "generator", "state_dict", "model_state_dict", "model", "module")
_PROGRAM_BYTES, _OPCODES = 64 << 20, 5_000_000
_LOCAL = struct.Struct("<4s5H3I2H")  # the head of a file in a zip archive
_REMEDY = (
    'convert it where you trust it: python -c "import torch, safetensors.torch as s; '
    "s.save_file(torch.load('IN.pth', weights_only=True), 'OUT.safetensors')\""
)


class _Name(NamedTuple):
    full: str


class _Storage(NamedTuple):
    dtype: np.dtype
    key: str
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]


class _Mark:
    pass


class _Refused(Exception):
    pass


def open_pth(path) -> dict[str, Stored]:
    """The tensors of a state dict by key, read when asked for; known wrappers around it are taken off. Raises InputError."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = {entry.filename: entry for entry in archive.infolist()}
            programs = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
            if len(programs) != 1:
                raise _Refused("it has no data.pkl")
            root = programs[0].removesuffix("data.pkl")
            if members[programs[0]].file_size > _PROGRAM_BYTES:
                raise _Refused("its description is larger than 64 MB")
            order = members.get(f"{root}byteorder")
            if order is not None and order.file_size <= 8 and archive.read(order) != b"little":
                raise _Refused("its numbers are big-endian")
            state = _unwrapped(_run(archive.read(programs[0])))
    except zipfile.BadZipFile:
        raise InputError(
            f"{path} is truncated, or no .pth of today's form; fetch it again, or {_REMEDY}"
        ) from None
    except _Refused as reason:
        raise InputError(f"{path} is not read, because {reason}; {_REMEDY}") from None
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); fetch it again") from None
    data = mapped(path)
    return {key: _stored(path, key, tensor, members, root, data) for key, tensor in state.items()}


def _stored(path, key, tensor, members, root, data) -> Stored:
    entry = members.get(f"{root}data/{tensor.storage.key}")
    item, count = tensor.storage.dtype.itemsize, int(np.prod(tensor.shape, dtype=object))
    first = last = -1
    if (
        entry is not None
        and entry.compress_type == zipfile.ZIP_STORED
        and entry.header_offset + 30 <= len(data)
    ):
        head = _LOCAL.unpack_from(data, entry.header_offset)
        first = entry.header_offset + 30 + head[-2] + head[-1]
        last = first + entry.file_size
    if first < 0 or last > len(data) or (tensor.offset + count) * item > last - first:
        raise InputError(f"{path}: the numbers of {key} are missing or cut off; fetch it again")

    def read():
        return np.frombuffer(data, tensor.storage.dtype, count, first + tensor.offset * item).reshape(
            tensor.shape
        )

    return Stored(tensor.shape, tensor.storage.dtype, read)


def _unwrapped(value) -> dict[str, _Tensor]:
    for _ in range(3):
        inner = [
            value[name] for name in _WRAPPERS if isinstance(value, dict) and isinstance(value.get(name), dict)
        ]
        value = inner[0] if inner else value
    if not isinstance(value, dict) or not value:
        raise _Refused("it holds no state dict")
    wrong = [key for key in value if not isinstance(key, str) or not isinstance(value[key], _Tensor)]
    if wrong:
        raise _Refused(f"{str(wrong[0])[:60]!r} in it is not a tensor")
    return value


def _run(program: bytes) -> Any:
    """The value that the program describes, of the kinds known here. Raises _Refused."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(program)):
            if number > _OPCODES:
                raise _Refused("its description is too long")
            if opcode.name == "STOP":
                return stack.pop()
            _step(opcode.name, argument, stack, memo)
    except (IndexError, KeyError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise _Refused(f"its description is broken ({' '.join(str(error).split())[:80]})") from None
    raise _Refused("its description has no end")


def _step(name: str, argument, stack: list, memo: dict) -> None:
    if name in ("PROTO", "FRAME"):
        return
    if name in ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT"):
        stack.append(argument)
    elif name in ("NONE", "NEWTRUE", "NEWFALSE"):
        stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
    elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "MARK"):
        stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "MARK": _Mark}[name]())
    elif name in ("BINPUT", "LONG_BINPUT"):
        memo[argument] = stack[-1]
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in ("BINGET", "LONG_BINGET"):
        stack.append(memo[argument])
    elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
        count = int(name[-1])
        stack[-count:] = [tuple(stack[-count:])]
    elif name == "TUPLE":
        stack.append(tuple(_since_mark(stack)))
    elif name in ("SETITEM", "SETITEMS"):
        pairs = [stack.pop(), stack.pop()][::-1] if name == "SETITEM" else _since_mark(stack)
        if not isinstance(stack[-1], dict) or len(pairs) % 2:
            raise _Refused("its description sets items of what is no dictionary")
        stack[-1].update(zip(pairs[::2], pairs[1::2], strict=True))
    elif name in ("APPEND", "APPENDS"):
        items = [stack.pop()] if name == "APPEND" else _since_mark(stack)
        stack[-1].extend(items)
    elif name == "GLOBAL":
        stack.append(_name(argument))
    elif name == "STACK_GLOBAL":
        last, module = stack.pop(), stack.pop()
        stack.append(_name(f"{module} {last}"))
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        arguments, function = stack.pop(), stack.pop()
        stack.append(_call(function, arguments))
    elif name == "BUILD":  # attributes of an ordered dictionary: versions of layers, not needed
        stack.pop()
        if not isinstance(stack[-1], dict):
            raise _Refused("its description changes an object")
    else:
        raise _Refused(f"its description uses {name}, which weights do not need")


def _since_mark(stack: list) -> list:
    at = max(i for i, value in enumerate(stack) if isinstance(value, _Mark))
    items = stack[at + 1 :]
    del stack[at:]
    return items


def _name(full: str) -> _Name:
    kind = full.removeprefix("torch ")
    if full in (_ORDERED, _TENSOR, _PARAMETER) or (full == f"torch {kind}" and kind in _STORAGES):
        return _Name(full)
    raise _Refused(f"it names {full[:80].replace(' ', '.')}, which is code and not a weight")


def _storage(value) -> _Storage:
    word, kind, key, _, count = value
    if word != "storage" or not isinstance(kind, _Name) or not isinstance(key, str) or type(count) is not int:
        raise _Refused("it points to something that is no storage")
    return _Storage(np.dtype(_STORAGES[kind.full.removeprefix("torch ")]), key, count)


def _call(function, arguments):
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise _Refused("its description calls something unknown")
    if function.full == _ORDERED:
        return dict(*arguments) if arguments == () else dict(arguments[0])
    if function.full == _PARAMETER and isinstance(arguments[0], _Tensor):
        return arguments[0]
    if function.full != _TENSOR:
        raise _Refused("its description calls something unknown")
    storage, offset, shape, stride = arguments[:4]
    whole = [type(n) is int and n >= 0 for n in (offset, *shape, *stride)]
    if not isinstance(storage, _Storage) or not all(whole) or len(shape) != len(stride):
        raise _Refused("a tensor in it is described wrongly")
    contiguous = [int(np.prod(shape[i + 1 :], dtype=object)) for i in range(len(shape))]
    if any(a != b for a, b, n in zip(stride, contiguous, shape, strict=True) if n > 1):
        raise _Refused("a tensor in it is not contiguous")
    return _Tensor(storage, offset, tuple(shape))


def write_pth(path, arrays: Mapping[str, Stored]) -> None:
    """A ``.pth`` that torch loads as an ordered state dict, with ``weights_only=True`` as well."""
    names = {np.dtype(dtype): name for name, dtype in _STORAGES.items()}
    program = bytearray(b"\x80\x02ccollections\nOrderedDict\n)R(")
    for number, (key, array) in enumerate(arrays.items()):
        count = int(np.prod(array.shape, dtype=np.int64))
        strides = [int(np.prod(array.shape[i + 1 :], dtype=np.int64)) for i in range(len(array.shape))]
        storage = _text("storage") + b"ctorch\n" + names[array.dtype].encode() + b"\n" + _text(str(number))
        program += _text(key) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        program += storage + _text("cpu") + _int(count) + b"tQ" + _int(0)
        program += b"(" + b"".join(map(_int, array.shape)) + b"t(" + b"".join(map(_int, strides)) + b"t"
        program += b"\x89ccollections\nOrderedDict\n)RtR"
    program += b"u."
    path = pathlib.Path(path)
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    root = path.stem
    try:
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            archive.writestr(f"{root}/data.pkl", bytes(program))
            archive.writestr(f"{root}/byteorder", b"little")
            for number, array in enumerate(arrays.values()):
                archive.writestr(f"{root}/data/{number}", np.ascontiguousarray(array.read()).tobytes())
            archive.writestr(f"{root}/version", b"3\n")
        aside.replace(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}); give a writable place") from error
    finally:
        aside.unlink(missing_ok=True)


def _text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _int(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a" + bytes([8]) + struct.pack("<q", value)
