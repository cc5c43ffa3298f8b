"""A pickle read as data: its instructions are followed as far as they build dictionaries and lists.

Nothing that a pickle names is ever imported or called: a call becomes a `Call` with its name, and
a name that no checkpoint needs is refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dreambooth_core.checkpoint.contents import Damage

MAX_INSTRUCTIONS = 3_000_000
"""A checkpoint of Stable Diffusion XL with an optimizer's memory has a few hundred thousand."""

DANGEROUS = "Do not use this file: it could have taken over your computer. Delete it."
ORDERED_DICT = "collections.OrderedDict"
TENSOR = "torch._utils._rebuild_tensor_v2"
PARAMETER = "torch._utils._rebuild_parameter"

STORAGES = {
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.DoubleStorage": "F64",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.ComplexFloatStorage": "C64",
}
"""PyTorch's kinds of storage, by their dtypes' names in the `.safetensors` format."""

BYSTANDERS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",
    "torch.Size",
    "torch.device",
)
"""What the records of training in published checkpoints name beside their weights."""

KNOWN = frozenset({ORDERED_DICT, TENSOR, PARAMETER, *STORAGES, *BYSTANDERS})
SIMPLE_KEYS = (str, int, float, bytes, type(None))


@dataclass(frozen=True)
class Name:
    """The name of a function or class."""

    text: str


@dataclass(frozen=True, eq=False)
class Call:
    """What would have been made by calling a function or class."""

    function: Name
    arguments: tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Reference:
    """Something that is kept outside of the pickle, by what is said of it."""

    description: Any


def read_pickle(raw: bytes) -> Any:
    """Return what a pickle would have become; raises Damage in words."""
    machine = _Machine()
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(raw)):
            if count >= MAX_INSTRUCTIONS:
                raise Damage(f"its pickle has more than {MAX_INSTRUCTIONS:,} instructions")
            machine.follow(opcode.name, argument)
    except (ValueError, IndexError, KeyError, OverflowError) as error:
        raise Damage(f"its pickle is cut or damaged ({error})") from error
    if len(machine.stack) != 1 or machine.marks:
        raise Damage("its pickle is cut or damaged")
    return machine.stack[0]


class _Machine:
    """The stack, marks and memory that a pickle's instructions work on."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self._memory: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name]())
        elif name in _LITERALS:
            self.stack.append(argument)
        elif name in _PUTS:
            self._memory[len(self._memory) if argument is None else argument] = self.stack[-1]
        elif name in _GETS:
            self.stack.append(self._memory[argument])
        elif name in _ACTIONS:
            _ACTIONS[name](self, argument)
        elif name not in _IGNORED:
            raise Damage(f"its pickle holds the instruction {name}, which no checkpoint needs")

    def mark(self, _: Any) -> None:
        self.marks.append(len(self.stack))

    def since_mark(self) -> list[Any]:
        """Take everything after the last mark off the stack."""
        start = self.marks.pop()
        taken = self.stack[start:]
        del self.stack[start:]
        return taken

    def take(self, count: int) -> list[Any]:
        """Take the last few values off the stack."""
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise ValueError("a value is missing")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def tuple_of(self, values: list[Any]) -> None:
        self.stack.append(tuple(values))

    def name(self, argument: Any) -> None:
        parts = argument.split(" ") if argument else self.take(2)
        if not all(isinstance(part, str) for part in parts):
            raise ValueError("a name is no text")
        text = ".".join(parts)
        if text not in KNOWN:
            shown = text if len(text) <= 100 else text[:100] + "..."
            raise Damage(f"it asks to run {shown!r}, which no checkpoint needs", DANGEROUS)
        self.stack.append(Name(text))

    def call(self, _: Any) -> None:
        function, arguments = self.take(2)
        if not isinstance(function, Name) or not isinstance(arguments, tuple):
            raise ValueError("something that is no name is called")
        if function.text == ORDERED_DICT:
            pairs = arguments[0] if arguments else []
            made: dict[Any, Any] = {}
            for pair in pairs if isinstance(pairs, list) else [None]:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise ValueError("a dictionary is made of something else than pairs")
                _put(made, *pair)
            self.stack.append(made)
        else:
            self.stack.append(Call(function, arguments))

    def refer(self, _: Any) -> None:
        self.stack.append(Reference(*self.take(1)))

    def drop(self, _: Any) -> None:
        self.take(1)

    def append(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise ValueError("something that is no list is appended to")
        target.extend(values)

    def put(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("something that is no dictionary is filled")
        for key, value in zip(values[::2], values[1::2], strict=True):
            _put(target, key, value)


def _put(target: dict[Any, Any], key: Any, value: Any) -> None:
    if not isinstance(key, (*SIMPLE_KEYS, Name)):
        raise ValueError("a dictionary's key is neither text nor a number")
    target[key] = value


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = frozenset(
    (
        "BININT",
        "BININT1",
        "BININT2",
        "LONG1",
        "LONG4",
        "BINFLOAT",
        "BINUNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE8",
        "BINSTRING",
        "SHORT_BINSTRING",
        "BINBYTES",
        "SHORT_BINBYTES",
    )
)
_PUTS = frozenset(("BINPUT", "LONG_BINPUT", "MEMOIZE"))
_GETS = frozenset(("BINGET", "LONG_BINGET"))
_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))
_ACTIONS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.tuple_of(machine.since_mark()),
    "TUPLE1": lambda machine, _: machine.tuple_of(machine.take(1)),
    "TUPLE2": lambda machine, _: machine.tuple_of(machine.take(2)),
    "TUPLE3": lambda machine, _: machine.tuple_of(machine.take(3)),
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.drop,  # what a made thing would be told of itself
    "BINPERSID": _Machine.refer,
    "APPEND": lambda machine, _: machine.append(machine.take(1)),
    "APPENDS": lambda machine, _: machine.append(machine.since_mark()),
    "SETITEM": lambda machine, _: machine.put(machine.take(2)),
    "SETITEMS": lambda machine, _: machine.put(machine.since_mark()),
}
