"""F2: values of weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .case import Case, Opens, Seeds
from .model_files import Build, fill, first, with_state

_LAYER = "bert.encoder.layer.1."
_ATTENTION = ("query.weight", "key.weight", "value.weight")
_FINITE = "not finite"


def _in(name: str, change: Callable[[Tensor], Tensor]) -> Build:
    def spoil(state: dict[str, Tensor]) -> None:
        state[name] = change(state[name])

    return with_state(spoil)


def _attention(change: Callable[[Tensor], Tensor]) -> Build:
    def spoil(state: dict[str, Tensor]) -> None:
        for part in _ATTENTION:
            change(state[f"{_LAYER}attention.self.{part}"])

    return with_state(spoil)


def _unused_head(state: dict[str, Tensor]) -> None:
    """Hide what is no number in a head whose output nobody reads."""
    state[f"{_LAYER}attention.output.dense.weight"][:, :8] = 0
    state[f"{_LAYER}attention.self.query.weight"][0, 0] = torch.nan


def _all(change: Callable[[Tensor], Tensor]) -> Build:
    def spoil(state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            if value.is_floating_point():
                state[name] = change(value)

    return with_state(spoil)


def _unplaced(state: dict[str, Tensor]) -> None:
    state["cls.predictions.bias"] = torch.tensor([torch.nan])


def _data(value: float) -> Build:
    def build(seeds: Seeds, directory: Path) -> Path:
        with np.load(seeds.tensors) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        found["inputs"] = found["inputs"].astype(np.float32)
        found["inputs"].flat[0] = value
        path = directory / "data.npz"
        np.savez(path, **found)
        return path

    return build


def _refused(name: str, build: Build, says: str = _FINITE) -> Case:
    return Case(name, "F2", Opens.MODEL, build, says=says)


def _runs(name: str, build: Build) -> Case:
    return Case(name, "F2", Opens.MODEL, build, codes=frozenset({0}), accepted=True)


def _overflows(name: str, build: Build) -> Case:
    """Finite weights whose answers are not: what needs no answer may work, engines may fail."""
    return Case(name, "F2", Opens.MODEL, build, codes=frozenset({1, 5}), accepted=True)


CASES = (
    _refused("NaN", _in("classifier.bias", fill(torch.nan))),
    _refused("infinity", _in("classifier.weight", first(torch.inf))),
    _refused("minus infinity", _in(f"{_LAYER}output.dense.bias", first(-torch.inf))),
    _refused("NaN in a norm", _in(f"{_LAYER}attention.output.LayerNorm.weight", first(torch.nan))),
    _refused("NaN in a head that nobody reads", with_state(_unused_head)),
    _refused("NaN in a tensor without place", with_state(_unplaced)),
    _refused("too large for float32", _in("classifier.bias", lambda t: t.double().fill_(1e300))),
    _refused("infinity in half precision", _all(lambda t: (t * 1e6 + 1e6).half())),
    _refused("whole numbers", _in("classifier.weight", lambda t: t.to(torch.int8)), "scales"),
    _runs("attention of zeros", _attention(fill(0.0))),
    _runs("denormal attention", _attention(fill(1e-40))),
    _overflows("denormal everywhere", _all(lambda t: t.sign() * 1e-40)),
    _overflows("1e38 in attention", _attention(fill(1e38))),
    _overflows("1e38 everywhere", _all(fill(1e38))),
    Case("NaN in data", "F2", Opens.TENSORS, _data(np.nan), says=_FINITE),
    Case("infinity in data", "F2", Opens.TENSORS, _data(-np.inf), says=_FINITE),
)
