"""Pickles read as a list of instructions; none of them is carried out."""

import pickletools
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from zipfile import ZipInfo

MAX_OPCODES = 2_000_000
_CONSTANTS = {
    *("NONE", "NEWTRUE", "NEWFALSE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"),
}
_COLLECTIONS = {"EMPTY_LIST", "EMPTY_DICT"}
_PUTS, _GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# How many values an instruction takes off the stack, and whether it leaves one.
_TAKES = {"APPEND": (1, False), "SETITEM": (2, False), "BUILD": (1, False)}
_CALLS = {"REDUCE": (2, True), "NEWOBJ": (2, True)}
_TO_MARK = {"APPENDS", "SETITEMS"}
TENSOR_OPCODES = frozenset(
    {"PROTO", "STOP", "MARK", "GLOBAL", "TUPLE", "BINPERSID", "REDUCE"}
    | _CONSTANTS
    | _COLLECTIONS
    | _PUTS
    | _GETS
    | _TO_MARK
    | _TUPLES.keys()
    | _TAKES.keys()
)
"""What torch.save writes of tensors in dictionaries; what calls does so on what GLOBAL names."""
OBJECT_OPCODES = TENSOR_OPCODES | {"NEWOBJ"}
"""What TorchScript writes of its modules."""
ITEM_BYTES = {
    **dict.fromkeys(("Char", "Byte", "Bool", "QInt8", "QUInt8"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long"), 8),
}
STORAGE_GLOBALS = frozenset(f"torch {name}Storage" for name in ITEM_BYTES)
TENSOR_GLOBALS = STORAGE_GLOBALS | {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
}
"""All that is called, or named, to make dense tensors."""
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class _Named:
    """What GLOBAL put on the stack."""

    name: str


@dataclass(frozen=True)
class Storage:
    """What a pickle says of numbers that are kept beside it.

    Attributes:
        key: Number of the file that holds them.
        location: The device that they are to go to.
        size_bytes: How many bytes there are to be.
    """

    key: str
    location: str
    size_bytes: int


def check_pickle(
    raw: bytes, allows: Callable[[str], bool], opcodes: frozenset[str] = TENSOR_OPCODES
) -> list[Storage]:
    """Raise unless a pickle has known instructions, and names nothing but what is allowed.

    Args:
        raw: The pickle.
        allows: Tells of a name, as "module name", whether it may be in the pickle.
        opcodes: Instructions that may be in it.

    Returns:
        The storages that it names.

    Raises:
        ValueError: If it has other instructions, uses them otherwise than they can be, or does not
            end where it says.
    """
    machine, place = _Machine(), -1
    for number, (opcode, argument, found) in enumerate(_instructions(raw)):
        place = found
        if opcode.name not in opcodes:
            msg = f"a pickle with the instruction {opcode.name}, which weights do not need"
            raise ValueError(msg)
        if number > MAX_OPCODES:
            msg = f"a pickle of more than {MAX_OPCODES:,} instructions"
            raise ValueError(msg)
        if opcode.name == "GLOBAL" and not allows(str(argument)):
            named = reprlib.repr(str(argument).replace(" ", "."))
            msg = f"a pickle that names {named}, which may run code"
            raise ValueError(msg)
        machine.step(opcode.name, argument)
    if place != len(raw) - 1:
        msg = f"a pickle that ends {len(raw) - 1 - place:,} bytes early"
        raise ValueError(msg)
    return machine.storages


def _instructions(raw: bytes) -> Iterator[tuple[pickletools.OpcodeInfo, Any, int]]:
    """Yield every instruction with its argument and place."""
    try:
        for opcode, argument, place in pickletools.genops(raw):
            yield opcode, argument, place or 0
    except ValueError as fault:
        msg = f"a pickle that cannot be read: {fault}"
        raise ValueError(msg) from fault


def check_storages(storages: list[Storage], members: Mapping[str, ZipInfo], folder: str) -> None:
    """Raise unless each storage is a file of an archive, of the size that the pickle says.

    A reader that believes a pickle of more would read what lies behind the file in memory.

    Args:
        storages: From `check_pickle`.
        members: The archive's files.
        folder: Where those of storages are.

    Raises:
        ValueError: If one is not.
    """
    for storage in storages:
        name = f"{folder}/{storage.key}"
        size = members[name].file_size if name in members else -1
        if size != storage.size_bytes:
            msg = (
                f"{name} has {size:,} bytes, the pickle says {storage.size_bytes:,}"
                if size >= 0
                else f"{name} is not in it, which the pickle names"
            )
            raise ValueError(msg)


@dataclass
class _Machine:
    """The stack of a reader of pickles that calls nothing: what a call would give is None."""

    storages: list[Storage] = field(default_factory=list)
    _stack: list[Any] = field(default_factory=list)
    _marks: list[int] = field(default_factory=list)
    _memo: dict[int, Any] = field(default_factory=dict)

    def step(self, name: str, argument: Any) -> None:
        """Do to the stack what an instruction does.

        Args:
            name: The instruction.
            argument: Its argument.

        Raises:
            ValueError: If the stack does not hold what it takes.
        """
        if name in _CONSTANTS or name in _COLLECTIONS:
            self._stack.append(argument)
        elif name == "GLOBAL":
            self._stack.append(_Named(argument))
        elif name == "MARK":
            self._marks.append(len(self._stack))
        elif name in _PUTS:
            self._put(argument)
        elif name in _GETS:
            self._get(argument)
        elif name == "TUPLE" or name in _TO_MARK:
            taken = self._take(len(self._stack) - (self._marks.pop() if self._marks else -1))
            self._stack += [taken] if name == "TUPLE" else []
            _check_keys(taken[::2] if name == "SETITEMS" else ())
        elif name in _TUPLES:
            self._stack.append(self._take(_TUPLES[name]))
        elif name == "BINPERSID":
            self.storages.append(_storage(*self._take(1)))
            self._stack.append(None)
        elif name in _TAKES or name in _CALLS:
            count, leaves = (_TAKES | _CALLS)[name]
            taken = self._take(count)
            _check_keys(taken[:1] if name == "SETITEM" else ())
            self._stack += [None] * leaves

    def _take(self, count: int) -> tuple[Any, ...]:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) - count < floor:
            msg = "a pickle that takes what it did not put down"
            raise ValueError(msg)
        taken = tuple(self._stack[len(self._stack) - count :])
        del self._stack[len(self._stack) - count :]
        return taken

    def _put(self, index: int) -> None:
        if index > len(self._memo) + 1 or not self._stack:
            msg = f"a pickle that keeps {len(self._memo):,} values and asks for place {index:,}"
            raise ValueError(msg)
        self._memo[index] = self._stack[-1]

    def _get(self, index: int) -> None:
        if index not in self._memo:
            msg = f"a pickle that reads place {index:,} before it is filled"
            raise ValueError(msg)
        self._stack.append(self._memo[index])


def _check_keys(keys: tuple[Any, ...]) -> None:
    """Raise unless keys are plain: what is nested deep ends a process that hashes it."""
    for key in keys:
        if not isinstance(key, str | int):
            msg = f"a pickle of a dictionary with a {type(key).__name__} as a key"
            raise ValueError(msg)


def _storage(reference: Any) -> Storage:
    """Read a reference to what is kept beside the pickle."""
    match reference:
        case ("storage", _Named(name), str(key), str(location), int(count)) if (
            name in STORAGE_GLOBALS and _NUMBER.fullmatch(key) and count >= 0
        ):
            item = ITEM_BYTES[name.removeprefix("torch ").removesuffix("Storage")]
            return Storage(key, location, count * item)
    msg = "a pickle that refers to something else than numbers beside it"
    raise ValueError(msg)
