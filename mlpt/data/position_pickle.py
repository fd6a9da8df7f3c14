"""The published file of hard tokens: a pickle of {block index: int64 positions}, read without running any of it.

SE4PLMs (Zhong et al., 2023) keeps what self-questioning found as `tokens_mask-last.pkl` of each rank, merged into
`token_masks_merge.pkl`. Python's own unpickler calls what a file names. The reader here calls nothing: it walks the
opcodes with a stack of plain values, knows the few names that NumPy's arrays of integers need as mere labels, and
refuses every other opcode and name.
"""

import mmap
import pickletools
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mlpt.errors import UserError
from mlpt.outputs import new_file
from mlpt.storage.files import one_line, readable_errors

Positions = NDArray[np.int64]  # (k,), or () where the published code squeezed the only one

_MODULES = {"numpy.core.multiarray": "numpy", "numpy._core.multiarray": "numpy"}
_MODULES |= {"numpy.core.numeric": "numpy", "numpy._core.numeric": "numpy", "__builtin__": "builtins"}
_NAMES = {
    ("numpy", "_reconstruct"),
    ("numpy", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),  # how protocols below 3 write bytes,
    ("builtins", "bytes"),  # and none of them
}
_INTEGERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)}
_IGNORED = {"PROTO", "FRAME"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _RefusedError(Exception):
    """What the file holds besides integers."""


class _Name:
    """A name in the file; nothing is imported."""

    def __init__(self, module: str, name: str):
        self.key = (_MODULES.get(module, module), name)
        if self.key not in _NAMES:
            raise _RefusedError(f"the name {module}.{name}"[:80])


class _Mark:
    """Where a group of values on the stack begins."""


class _DType:
    """An integer type: `code` such as "i8"; its byte order comes with a state of its own."""

    def __init__(self, code: Any):
        if not isinstance(code, str) or code not in _INTEGERS:
            raise _RefusedError(f"an array of type {code[:20]}" if isinstance(code, str) else "an array of an odd type")
        self.code, self.order = code, "<"

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", ">", "|", "="):
            raise _RefusedError("a structured type")
        if any(one is not None for one in state[2:5]):
            raise _RefusedError("a structured type")
        self.order = state[1]


class _Array:
    """An array being rebuilt."""

    def __init__(self) -> None:
        self.value: Positions | None = None

    def build(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _RefusedError("an array with an odd state")
        _, shape, dtype, _, content = state
        self.value = _numbers(content, dtype, shape)


def _numbers(content: Any, dtype: Any, shape: Any) -> Positions:
    """A checked (k,) or () array of a copy of `content`."""
    if not isinstance(content, bytes | bytearray) or not isinstance(dtype, _DType) or not isinstance(shape, tuple):
        raise _RefusedError("an array that is not one of plain numbers")
    if len(shape) > 1 or not all(type(one) is int for one in shape):
        raise _RefusedError("an array of several dimensions")
    values = np.frombuffer(content, dtype=np.dtype(dtype.order + dtype.code))
    if len(values) != (shape[0] if shape else 1):
        raise _RefusedError("an array whose size is not its shape's")
    if len(values) and int(values.max()) > np.iinfo(np.int64).max:
        raise _RefusedError("a number above 2**63")
    return values.astype(np.int64).reshape(shape)


def read_positions(files: Iterable[str | Path]) -> dict[int, Positions]:
    """{block index: positions} of one file or several, later ones over earlier ones, as the published merge does.

    Positions are (k,) int64 as they stand, or () where the published code squeezed the only one.
    Raises UserError for a file that cannot be read, is damaged, or holds anything but integers and arrays of integers.
    """
    merged: dict[int, Positions] = {}
    for file in files:
        merged.update(_read(Path(file)))
    return merged


def _read(file: Path) -> dict[int, Positions]:
    with readable_errors(str(file), "read"), open(file, "rb") as stream:
        if not stream.seek(0, 2):
            raise UserError(f"{file} is empty; it should be a pickle of {{block index: positions}}")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return _walk(content)
            except _RefusedError as error:
                raise UserError(
                    f"{file} is refused: it holds {one_line(error)}, and only {{block index: positions}} is read"
                ) from error
            except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error) as error:
                raise UserError(f"{file} is damaged or no pickle ({one_line(error)[:80]}); write it again") from error


def _walk(content: Any) -> dict[int, Positions]:
    walker = _Walker()
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "STOP":
            break
        walker.step(opcode.name, argument)
    if len(walker.stack) != 1 or walker.stack[0] is not walker.result:
        raise _RefusedError("something other than a dictionary")
    return walker.result


class _Walker:
    """The stack and memo of a pickle, with nothing in them but the values above."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.result: dict[int, Positions] = {}
        self._has_dictionary = False
        self._steps: dict[str, Callable[[Any], None]] = {
            "MARK": lambda _: self.stack.append(_Mark()),
            "POP": lambda _: self.stack.pop(),
            "EMPTY_TUPLE": lambda _: self.stack.append(()),
            "TUPLE": lambda _: self._push_tuple(self._to_mark()),
            "EMPTY_DICT": lambda _: self._dictionary([]),
            "DICT": lambda _: self._dictionary(self._to_mark()),
            "SETITEM": lambda _: self._set([self.stack.pop(-2), self.stack.pop()]),
            "SETITEMS": lambda _: self._set(self._to_mark()),
            "GLOBAL": lambda argument: self.stack.append(_Name(*argument.split(" ", 1))),
            "STACK_GLOBAL": lambda _: self._stack_global(),
            "REDUCE": lambda _: self._reduce(),
            "BUILD": lambda _: self._build(),
            "MEMOIZE": lambda _: self._remember(len(self.memo)),
            **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), self._remember),
            **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda index: self.stack.append(self.memo[index])),
        }

    def step(self, name: str, argument: Any) -> None:
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            count = _TUPLES[name]
            self._push_tuple([self.stack.pop() for _ in range(count)][::-1])
        elif name in self._steps:
            self._steps[name](argument)
        elif name not in _IGNORED:
            raise _RefusedError(f"the opcode {name}")

    def _remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _push_tuple(self, values: list[Any]) -> None:
        if len(values) > 16 or any(isinstance(one, _Mark | dict) for one in values):
            raise _RefusedError("a tuple that no array needs")
        self.stack.append(tuple(values))

    def _to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while not isinstance(self.stack[at], _Mark):
            at -= 1
            if at < 0:
                raise ValueError("a group without a beginning")
        values = self.stack[at + 1 :]
        del self.stack[at:]
        return values

    def _dictionary(self, items: list[Any]) -> None:
        if self._has_dictionary:
            raise _RefusedError("a second dictionary")
        self._has_dictionary = True
        self.stack.append(self.result)
        self._set(items)

    def _set(self, items: list[Any]) -> None:
        if self.stack[-1] is not self.result or len(items) % 2:
            raise _RefusedError("items of something other than the dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not int or not -(2**63) <= key < 2**63:
                raise _RefusedError("a key that is no block index")
            if not isinstance(value, _Array) or value.value is None:
                raise _RefusedError("a value that is no array of integers")
            self.result[key] = value.value

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise _RefusedError("a name that is no text")
        self.stack.append(_Name(module, name))

    def _reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Name) or not isinstance(arguments, tuple):
            raise _RefusedError("a call of something other than an array")
        what = function.key[1]
        if what == "dtype":
            self.stack.append(_DType(arguments[0]))
        elif what == "_reconstruct" and isinstance(arguments[0], _Name) and arguments[0].key[1] == "ndarray":
            self.stack.append(_Array())
        elif what == "_frombuffer":
            content, dtype, shape, _ = arguments
            made = _Array()
            made.value = _numbers(content, dtype, shape)
            self.stack.append(made)
        elif what == "encode" and arguments[1:] == ("latin1",) and isinstance(arguments[0], str):
            self.stack.append(arguments[0].encode("latin1"))
        elif what == "bytes" and not arguments:
            self.stack.append(b"")
        else:
            raise _RefusedError(f"a call of {what}")

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _DType | _Array):
            raise _RefusedError("a state of something other than an array")
        self.stack[-1].build(state)


# ---------------------------------------------------------------- writing


def write_positions(
    items: Iterable[tuple[int, Positions]], file: str | Path, single: Literal["array", "published"] = "array"
) -> int:
    """Write {block index: positions} in ascending order of `items` as the published code reads it; how many there were.

    single  how the only hard position of a block is kept: `array`, shape (1,), which masks that token alone when the
            published training reads it; `published`: shape (), which it takes for a fault (its fallback masks random
            tokens too).
    The opcodes are those of protocol 3 under NumPy's old module name, for the Python and NumPy of 2021 as for today's.
    """
    count = 0
    with readable_errors(str(file), "write"), new_file(Path(file)) as stream:
        stream.write(_HEAD)
        for index, positions in items:
            shape = () if single == "published" and positions.size == 1 else (positions.size,)
            stream.write(_item(index, np.ascontiguousarray(positions, dtype="<i8").reshape(shape)))
            count += 1
        stream.write(b".")
    return count


def is_written_here(file: Path) -> bool:
    """True for a file that `write_positions` has written, not one that other programs have."""
    with readable_errors(str(file), "read"), open(file, "rb") as stream:
        return stream.read(len(_HEAD)) == _HEAD


# Memo: 0 _reconstruct, 1 its arguments, 2 the dtype. The dictionary is below them on the stack when items are set.
_HEAD = b"".join(
    [
        b"\x80\x03}",
        b"cnumpy.core.multiarray\n_reconstruct\nq\x000",
        b"cnumpy\nndarray\nK\x00\x85C\x01b\x87q\x010",
        b"cnumpy\ndtype\nX\x02\x00\x00\x00i8K\x00K\x01\x87R",
        b"(K\x03X\x01\x00\x00\x00<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbq\x020",
    ]
)


def _item(index: int, positions: NDArray[np.int64]) -> bytes:
    content = positions.tobytes()
    parts = [_integer(index), b"h\x00h\x01R(K\x01"]
    parts += [b")" if positions.ndim == 0 else _integer(positions.size) + b"\x85"]
    parts += [b"h\x02\x89B", struct.pack("<I", len(content)), content, b"tbs"]
    return b"".join(parts)


def _integer(value: int) -> bytes:
    if 0 <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)
