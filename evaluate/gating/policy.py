"""What the gate holds a candidate to: limits, from a file that stands beside the code.

The file is `tcompress-gate.toml`, or the table `[gate]` of a workspace's `tcompress.toml`. Keys are
named as the options are, and stand at the top or in the section that they belong to::

    [quality]
    max_drop = 0.01             # or min_retained = "99%"
    max_class_drop = 0.05

    [latency]
    min_speedup = 1.5
    batch = 1
    tokens = 128

    [size]
    max_size_ratio = 0.5
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from typing import Any

from tcompress.errors import InputError, RequestError
from tcompress.intake import read_toml
from tcompress.workspace import CONFIG_FILE

from ..metrics import CLASSIFICATION
from ..scored import TASK_METRICS
from .verdict import OnInconclusive

POLICY_FILE = "tcompress-gate.toml"
TABLE = "gate"
"""Table of a workspace's file that is a policy."""
MARGINS = ("max_drop", "min_retained")
"""The two ways to limit what is lost of the task's metric."""
_LARGEST = sys.float_info.max


class Section(StrEnum):
    """Part of a policy file."""

    QUALITY = "quality"
    LATENCY = "latency"
    SIZE = "size"
    MEMORY = "memory"
    EVIDENCE = "evidence"


@dataclass(frozen=True)
class _Key:
    """What a key may hold.

    Attributes:
        section: Where it belongs.
        kind: Its type.
        below: Numbers are above 0 and below this.
        is_limit: Whether it is a limit, and not how one is looked at.
    """

    section: Section
    kind: type = float
    below: float = math.inf
    is_limit: bool = True

    def checked(self, name: str, value: Any) -> Any:
        """Return a value as the policy holds it.

        Args:
            name: The key.
            value: What was given.

        Raises:
            RequestError: If it is of another type or out of range.
        """
        if name == "min_retained" and isinstance(value, str):
            value = _share(value)
        wanted, fits = self._wanted(value)
        if not fits:
            msg = f"{name} must be {wanted}, got {value!r:.80}"
            raise RequestError(msg)
        return self.kind(value)

    def _wanted(self, value: Any) -> tuple[str, bool]:
        """Say what is wanted, and whether a value is that."""
        if self.kind is tuple:
            is_list = isinstance(value, list | tuple)
            return "a list of names", is_list and all(isinstance(name, str) for name in value)
        if self.kind is str:
            known = list(dict.fromkeys((*CLASSIFICATION, *TASK_METRICS)))
            return f"one of {', '.join(known)}", value in known
        if self.kind is OnInconclusive:
            return f"one of {', '.join(OnInconclusive)}", value in list(OnInconclusive)
        number = "a whole number" if self.kind is int else "a number"
        upper = "" if self.below == math.inf else f" and below {self.below:g}"
        is_number = type(value) in (int, self.kind)
        return f"{number} above 0{upper}", is_number and 0 < value < min(self.below, _LARGEST)


_KEYS = {
    "metric": _Key(Section.QUALITY, str, is_limit=False),
    "max_drop": _Key(Section.QUALITY, below=1),
    "min_retained": _Key(Section.QUALITY, below=1),
    "max_class_drop": _Key(Section.QUALITY, below=1),
    "max_slice_drop": _Key(Section.QUALITY, below=1),
    "slice_columns": _Key(Section.QUALITY, tuple, is_limit=False),
    "max_flip_rate": _Key(Section.QUALITY, below=1),
    "max_divergence": _Key(Section.QUALITY),
    "min_agreement": _Key(Section.QUALITY, below=1),
    "min_speedup": _Key(Section.LATENCY),
    "max_latency_ratio": _Key(Section.LATENCY),
    "min_throughput_ratio": _Key(Section.LATENCY),
    "max_load_ms": _Key(Section.LATENCY),
    "batch": _Key(Section.LATENCY, int, is_limit=False),
    "tokens": _Key(Section.LATENCY, int, is_limit=False),
    "budget_s": _Key(Section.LATENCY, is_limit=False),
    "max_size_bytes": _Key(Section.SIZE, int),
    "max_size_ratio": _Key(Section.SIZE),
    "max_memory_bytes": _Key(Section.MEMORY, int),
    "max_memory_ratio": _Key(Section.MEMORY),
    "alpha": _Key(Section.EVIDENCE, below=0.5, is_limit=False),
    "on_inconclusive": _Key(Section.EVIDENCE, OnInconclusive, is_limit=False),
    "min_examples": _Key(Section.EVIDENCE, int, is_limit=False),
}
_TIMED = ("min_speedup", "max_latency_ratio", "min_throughput_ratio")


@dataclass(frozen=True)
class Policy:
    """What a candidate has to keep to; a limit that is None is not looked at.

    Attributes:
        metric: The task's metric; `accuracy` stands for the one that decides in other tasks.
        max_drop: Smallest drop of it that is not acceptable.
        min_retained: Part of the baseline's metric that has to be kept, instead of `max_drop`.
        max_class_drop: Smallest drop in the recall of a class that is not acceptable.
        max_slice_drop: Smallest drop in accuracy in a slice that is not acceptable.
        slice_columns: Columns whose values make the slices.
        max_flip_rate: Most examples, as a fraction, that may turn from right to wrong or back.
        max_divergence: Largest mean divergence of the answers from the baseline's, in nats.
        min_agreement: Fewest answers, as a fraction, that must be the baseline's.
        min_speedup: The baseline's latency over the candidate's must be at least this.
        max_latency_ratio: The candidate's latency over the baseline's must be at most this.
        min_throughput_ratio: As `min_speedup`, for large batches.
        max_load_ms: Longest time from the start of a process to its first answer.
        batch: Examples per call that is timed.
        tokens: Tokens per example that is timed; else 128, or the longest input.
        budget_s: Seconds for the timing.
        max_size_bytes: Largest model file.
        max_size_ratio: Largest size, as a fraction of the baseline's.
        max_memory_bytes: Most memory that the engine's process may hold.
        max_memory_ratio: The same, as a fraction of the baseline's.
        alpha: Error probability of a wrong pass and of a wrong regression.
        on_inconclusive: Whether an inconclusive verdict fails.
        min_examples: Fewest examples to judge by.

    Raises:
        RequestError: If a value is out of range, two contradict each other, or nothing is limited.
    """

    metric: str = "accuracy"
    max_drop: float | None = None
    min_retained: float | None = None
    max_class_drop: float | None = None
    max_slice_drop: float | None = None
    slice_columns: tuple[str, ...] = ()
    max_flip_rate: float | None = None
    max_divergence: float | None = None
    min_agreement: float | None = None
    min_speedup: float | None = None
    max_latency_ratio: float | None = None
    min_throughput_ratio: float | None = None
    max_load_ms: float | None = None
    batch: int = 1
    tokens: int | None = None
    budget_s: float = 12.0
    max_size_bytes: int | None = None
    max_size_ratio: float | None = None
    max_memory_bytes: int | None = None
    max_memory_ratio: float | None = None
    alpha: float = 0.05
    on_inconclusive: OnInconclusive = OnInconclusive.FAIL
    min_examples: int | None = None

    def __post_init__(self) -> None:
        """Check every value, and that they make a policy."""
        for name, key in _KEYS.items():
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, key.checked(name, value))
        if all(getattr(self, name) is not None for name in MARGINS):
            msg = f"{MARGINS[0]} and {MARGINS[1]} limit the same; leave one of them out"
            raise RequestError(msg)
        if not self.limits:
            msg = "nothing is limited; say which drop is not acceptable by --max-drop"
            raise RequestError(msg)

    @property
    def limits(self) -> dict[str, float]:
        """What is limited, by key."""
        found = {name: getattr(self, name) for name, key in _KEYS.items() if key.is_limit}
        return {name: limit for name, limit in found.items() if limit is not None}

    @property
    def times(self) -> bool:
        """Whether anything is to be timed at a shape."""
        return bool(self.limits.keys() & _TIMED)

    def to_json(self) -> dict[str, Any]:
        """Return what was asked for as a JSON document."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


def find_policy(named: Path | None, workspace: Path | None) -> Path | None:
    """Return the file that holds the policy, if there is one.

    Args:
        named: File from `--policy`, or None.
        workspace: Directory of the workspace, or None.

    Raises:
        InputError: If there are two, as neither can be left out in silence.
    """
    if named is not None:
        return named
    directories = [Path.cwd()] if workspace is None else [Path.cwd(), workspace]
    found = {path.resolve(): path for d in directories if (path := d / POLICY_FILE).is_file()}
    if workspace is not None and TABLE in read_toml(config := workspace / CONFIG_FILE, InputError):
        found[config.resolve()] = config
    if len(found) > 1:
        first, second, *_ = found.values()
        msg = f"{first} and {second} both hold a policy; keep one, or name it with --policy"
        raise InputError(msg)
    return next(iter(found.values()), None)


def read_values(path: Path) -> dict[str, Any]:
    """Read the values that a policy file gives.

    Args:
        path: A policy file, or a `tcompress.toml` with a table `[gate]`.

    Raises:
        InputError: If it cannot be read, or a key or value in it is wrong.
    """
    document = read_toml(path, InputError)
    if path.name == CONFIG_FILE:
        table = document.get(TABLE)
        if not isinstance(table, dict):
            msg = f"{path}: no table [{TABLE}] in it"
            raise InputError(msg)
        document = table
    try:
        values: dict[str, Any] = {}
        for name, value in _flat(document):
            if name in values:
                msg = f"{name} is given twice"
                raise RequestError(msg)
            values[name] = _KEYS[name].checked(name, value)
    except RequestError as error:
        msg = f"{path}: {error}"
        raise InputError(msg) from error
    return values


def make_policy(*sources: Mapping[str, Any]) -> Policy:
    """Put a policy together; a later source overrides an earlier one.

    Args:
        sources: Values by key; None counts as not given.

    Raises:
        RequestError: If they make no policy.
    """
    merged: dict[str, Any] = {}
    for source in sources:
        given = {name: value for name, value in source.items() if value not in (None, ())}
        if given.keys() & set(MARGINS):  # the two limit the same
            merged = {name: value for name, value in merged.items() if name not in MARGINS}
        merged |= given
    if unknown := merged.keys() - _KEYS.keys():
        msg = f"no such limits: {', '.join(sorted(unknown))}; there are: {', '.join(_KEYS)}"
        raise RequestError(msg)
    return Policy(**merged)


def _flat(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield keys and values, out of their sections."""
    for name, value in document.items():
        if name in list(Section) and isinstance(value, dict):
            for inner in value:
                _check_known(inner, Section(name))
            yield from value.items()
        else:
            _check_known(name)
            yield name, value


def _check_known(name: str, section: Section | None = None) -> None:
    if name not in _KEYS:
        near = get_close_matches(name, [*_KEYS, *map(str, Section)], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(_KEYS)}"
        msg = f"unknown key {name!r}; {hint}"
        raise RequestError(msg)
    if section not in (None, right := _KEYS[name].section):
        msg = f"{name} stands in [{section}], it belongs in [{right}]"
        raise RequestError(msg)


def _share(text: str) -> Any:
    """Read a share written as `0.99` or `99%`; anything else is left for the check to refuse."""
    try:
        if text.endswith("%"):
            # Not float(text) / 100: 99.9 / 100 is not 0.999.
            return float(f"{text.removesuffix('%')}e-2")
        return float(text)
    except ValueError:
        return text
