"""The pickle in a pytorch_model.bin: run on a stack machine of ours, written by hand, both without pickle and torch.

A pickle is a program. The machine runs only the instructions that a state dict of tensors needs and knows nine names
(an ordered dict, two functions that rebuild a tensor, six storage types), none of which is code; any other instruction
or name ends the load. Nothing in it grows beyond its instructions, whose number is bounded: names, numbers and tuples
are short, and tuples nest once. Sources: Python's pickletools, and torch/serialization.py.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from distilbert.checkpoint.tensors import MAX_TENSORS, TensorInfo
from distilbert.errors import CheckpointError, Kind

MAX_PICKLE_BYTES = 4 << 20
MAX_INSTRUCTIONS = 250_000  # in all pickles of a file: a tensor takes about 40
MAX_NAME_BYTES = 1000
MAX_INTEGER_BITS = 80  # the magic number of the layout before PyTorch 1.6
MAX_TUPLE = 16


@dataclass(frozen=True)
class Storage:
    """A run of numbers somewhere in the file, which tensors are views of."""

    key: str
    dtype: str
    size: int  # elements


@dataclass(frozen=True)
class Tensor:
    """A view of a storage. Offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """A name that the pickle may ask for, and what it stands for."""

    role: Literal["dict", "tensor", "parameter", "storage"]
    dtype: str = ""


_STORAGES = {
    "float64": "torch DoubleStorage",
    "float32": "torch FloatStorage",
    "float16": "torch HalfStorage",
    "bfloat16": "torch BFloat16Storage",
    "int64": "torch LongStorage",
    "int32": "torch IntStorage",
}
_NAMES = {
    "collections OrderedDict": _Name("dict"),
    "torch._utils _rebuild_tensor_v2": _Name("tensor"),
    "torch._utils _rebuild_parameter": _Name("parameter"),
    **{name: _Name("storage", dtype) for dtype, name in _STORAGES.items()},
}
_OTHER_TENSORS = frozenset(  # what torch writes for tensors that weights do not come in
    [f"torch {kind}Storage" for kind in ("Bool", "Byte", "Char", "Short", "ComplexFloat", "ComplexDouble")]
    + [f"torch {kind}Storage" for kind in ("QInt8", "QUInt8", "QInt32", "QUInt4x2", "QUInt2x4")]
    + [f"torch._utils _rebuild_{kind}" for kind in ("tensor_v3", "qtensor", "sparse_tensor", "meta_tensor_no_storage")]
    + ["torch.storage UntypedStorage", "torch._tensor _rebuild_from_type_v2"]
)


_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}


class _PickleError(Exception):
    """The pickle is not a state dict of tensors."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind: Kind = kind
        self.detail = detail


class Machine:
    """Runs the pickles of one file. `storages` are those that they refer to, by key."""

    def __init__(self, path: Path) -> None:
        self.storages: dict[str, Storage] = {}
        self._path, self._instructions_left = path, MAX_INSTRUCTIONS
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: io.BytesIO) -> Any:
        """The value that the next pickle in `program` leaves on the stack: plain data and the classes above.

        Raises:
            CheckpointError: UnsafePickle names a global that is not a tensor's; other kinds name other defects.
        """
        self._stack, self._marks, self._memo = [], [], {}
        try:
            while self._step(program) != "STOP":
                pass
            return self._stack.pop()
        except _PickleError as error:
            raise CheckpointError(self._path, error.kind, error.detail) from None
        except (ValueError, IndexError, KeyError):  # of operands, stack, and instructions and memo
            raise CheckpointError(self._path, "HeaderInvalid", "is not a state dict: its pickle is damaged") from None

    def _step(self, program: io.BytesIO) -> str:  # noqa: C901 - one case per instruction
        """Run the next instruction and return its name. Only operands of those that are known here are decoded."""
        self._instructions_left -= 1
        if self._instructions_left < 0:
            raise _PickleError("ResourceLimit", f"has more than {MAX_INSTRUCTIONS} pickle instructions")
        opcode = _OPCODES[program.read(1)]
        match opcode.name:
            case "STOP":
                pass
            case "PROTO" | "FRAME":
                _operand(opcode, program)
            case "MARK":
                self._marks.append(len(self._stack))
            case "GLOBAL":
                self._stack.append(_find_name(f"{_line(program)} {_line(program)}"))
            case "STACK_GLOBAL":
                attribute, module = self._stack.pop(), self._stack.pop()
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise _PickleError("HeaderInvalid", "is not a state dict: a name is not a string")
                self._stack.append(_find_name(f"{module} {attribute}"))
            case "BINUNICODE" | "SHORT_BINUNICODE":
                self._stack.append(_short(_operand(opcode, program)))
            case "BININT" | "BININT1" | "BININT2" | "LONG1":
                self._stack.append(_small(_operand(opcode, program)))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self._stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT":
                self._stack.append({})
            case "EMPTY_LIST":
                self._stack.append([])
            case "EMPTY_TUPLE":
                self._stack.append(())
            case "TUPLE":
                self._stack.append(_tuple(self._pop_to_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self._stack.append(_tuple([self._stack.pop() for _ in range(int(opcode.name[-1]))][::-1]))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[_operand(opcode, program)] = self._stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "BINGET" | "LONG_BINGET":
                self._stack.append(self._memo[_operand(opcode, program)])
            case "APPEND":
                self._append([self._stack.pop()])
            case "APPENDS":
                self._append(self._pop_to_mark())
            case "SETITEM":
                value, key = self._stack.pop(), self._stack.pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "BUILD":
                self._stack.pop()  # attributes of the dict, `_metadata`, which nothing here needs
            case "BINPERSID":
                self._stack.append(self._find_storage(self._stack.pop()))
            case "REDUCE":
                arguments, function = self._stack.pop(), self._stack.pop()
                self._stack.append(_call(function, arguments))
            case _:
                raise _PickleError("HeaderInvalid", f"is not a state dict: it has the pickle instruction {opcode.name}")
        return opcode.name

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _append(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise _PickleError("HeaderInvalid", "is not a state dict: it appends to something that is not a list")
        cast("list[Any]", target).extend(items)

    def _set_items(self, items: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or not all(isinstance(key, str) for key in items[::2]):
            raise _PickleError("HeaderInvalid", "is not a state dict: a key is not a string")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if key in target:
                raise _PickleError("DuplicateName", f"names {key!r} twice")
            target[key] = value

    def _find_storage(self, reference: Any) -> Storage:
        """The storage of a persistent id, which ends in None (`view_metadata`) in the layout before PyTorch 1.6."""
        match reference:
            case ("storage", _Name("storage", dtype), str(key), str(), int(size)) | (
                "storage",
                _Name("storage", dtype),
                str(key),
                str(),
                int(size),
                None,
            ):
                storage = Storage(key, dtype, size)
            case _:
                raise _PickleError("HeaderInvalid", "is not a state dict: it refers to something that is not a storage")
        if self.storages.setdefault(key, storage) != storage:
            raise _PickleError("HeaderInvalid", f"describes the data {key!r} in two ways")
        return storage


def _operand(opcode: pickletools.OpcodeInfo, program: io.BytesIO) -> Any:
    return opcode.arg.reader(program) if opcode.arg else None


def _line(program: io.BytesIO) -> str:
    return program.readline().decode().removesuffix("\n")


def _short(text: str) -> str:
    if len(text.encode()) > MAX_NAME_BYTES:
        raise _PickleError("ResourceLimit", f"has a name of more than {MAX_NAME_BYTES} bytes")
    return text


def _small(number: int) -> int:
    if number.bit_length() > MAX_INTEGER_BITS:
        raise _PickleError("ResourceLimit", f"has a number of more than {MAX_INTEGER_BITS} bits")
    return number


def _tuple(items: list[Any]) -> tuple[Any, ...]:
    """A short tuple of plain values, or of tuples of those: others do not occur, and are what bombs are made of."""
    if len(items) > MAX_TUPLE:
        raise _PickleError("ResourceLimit", f"has a tuple of more than {MAX_TUPLE} values")
    if any(type(item) is tuple and any(type(inner) is tuple for inner in item) for item in items):
        raise _PickleError("HeaderInvalid", "is not a state dict: it nests tuples")
    return tuple(items)


def _find_name(name: str) -> _Name:
    dotted = name.replace(" ", ".", 1)[:MAX_NAME_BYTES]
    if name in _OTHER_TENSORS:
        raise _PickleError("DtypeUnsupported", f"holds a tensor of a kind that weights do not come in ({dotted})")
    if name not in _NAMES:
        raise _PickleError("UnsafePickle", f"asks for {dotted}, which is not part of a tensor")
    return _NAMES[name]


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Name("dict"), ():
            return {}
        case _Name("parameter"), (Tensor() as tensor, *_):
            return tensor
        case _Name("tensor"), (Storage() as storage, int(offset), tuple() as shape, tuple() as strides, *_):
            if all(type(n) is int for n in (*shape, *strides)):
                return Tensor(storage, offset, shape, strides)
        case _:
            pass
    raise _PickleError("HeaderInvalid", "is not a state dict: it builds something that is not a tensor")


def as_state_dict(path: Path, value: Any) -> dict[str, Tensor]:
    """What a pickle left, if it is a state dict.

    Raises:
        CheckpointError: it is something else.
    """
    if not isinstance(value, dict):
        raise CheckpointError(path, "HeaderInvalid", "does not hold a state dict of tensors")
    tensors = cast("dict[str, Any]", value)
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(path, "ResourceLimit", f"holds {len(tensors)} tensors, more than {MAX_TENSORS}")
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise CheckpointError(path, "HeaderInvalid", f"holds {name!r}, which is not a tensor")
    return tensors


def dump(info: Mapping[str, TensorInfo]) -> bytes:
    """The pickle, protocol 2, of a state dict whose tensors have the storages "0", "1", ... of their own."""
    pieces = [b"\x80\x02", _new_dict(), b"("]
    for key, (name, entry) in enumerate(info.items()):
        count, strides = math.prod(entry.shape), [math.prod(entry.shape[i + 1 :]) for i in range(len(entry.shape))]
        storage = _packed(_text("storage"), _global(_STORAGES[entry.dtype]), _text(str(key)), _text("cpu"), _int(count))
        shape = [_packed(*map(_int, sizes)) for sizes in (entry.shape, strides)]
        no_gradient, no_hooks = b"\x89", _new_dict()
        arguments = _packed(storage + b"Q", _int(0), *shape, no_gradient, no_hooks)
        pieces += [_text(name), _global("torch._utils _rebuild_tensor_v2"), arguments, b"R"]
    return b"".join([*pieces, b"u."])


def _global(name: str) -> bytes:
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def _new_dict() -> bytes:
    return _global("collections OrderedDict") + b")R"


def _text(text: str) -> bytes:
    return b"X" + len(text.encode()).to_bytes(4, "little") + text.encode()


def _int(number: int) -> bytes:
    return b"J" + number.to_bytes(4, "little") if number < 1 << 31 else b"\x8a\x08" + number.to_bytes(8, "little")


def _packed(*items: bytes) -> bytes:
    """The instructions that make a tuple of what `items` make."""
    return b"(" + b"".join(items) + b"t"
