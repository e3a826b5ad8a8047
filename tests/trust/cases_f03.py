"""F3: weights in parts, and the index that lists them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from .case import Case, Opens, Seeds
from .model_files import Build, bert_with, edit, write_parts

PARTS = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]


def _parts(spoil: Callable[[Path], object]) -> Build:
    """Build a tiny BERT of two parts, whose directory is then spoiled."""

    def change(model: Path) -> None:
        write_parts(model)
        spoil(model)

    return bert_with(change)


def _index(change: Callable[[Any], object]) -> Build:
    return bert_with(lambda model: edit(write_parts(model), change))


def _named(part: Any) -> Build:
    """Let the index name another file for the first tensor."""

    def change(document: Any) -> None:
        weight_map = document["weight_map"]
        weight_map[next(iter(weight_map))] = part

    return _index(change)


def _tensors(model: Path, part: str, change: Callable[[dict[str, Any]], object]) -> None:
    state = load_file(model / part)
    change(state)
    save_file(state, model / part)


def _in_both(model: Path) -> None:
    other = load_file(model / PARTS[1])
    name = next(iter(other))
    _tensors(model, PARTS[0], lambda state: state.update({name: other[name].clone()}))


def _unlisted(model: Path) -> None:
    _tensors(model, PARTS[0], lambda s: s.update(extra=s[next(iter(s))].clone()))


def _lacking(model: Path) -> None:
    _tensors(model, PARTS[1], lambda state: state.pop(next(iter(state))))


def _twice(model: Path) -> None:
    index = model / "model.safetensors.index.json"
    text = index.read_text().replace('"weight_map": {', '"weight_map": {"classifier.bias": "x", ')
    index.write_text(text)


def _replaced(make: Callable[[Path, Path], object], name: str = PARTS[0]) -> Build:
    """Replace a part, or the index, by something else made of it."""

    def build(seeds: Seeds, directory: Path) -> Path:
        model = Path(shutil.copytree(seeds.bert, directory / "model"))
        write_parts(model)
        moved = (model / name).rename(directory / "elsewhere")
        make(model / name, moved)
        return model

    return build


def _inside(path: Path, moved: Path) -> None:
    path.symlink_to(moved.rename(path.with_name("part.safetensors")).name)


def _parent_link(seeds: Seeds, directory: Path) -> Path:
    """Name a part below a folder of the model that leads out of it."""
    model = _named("below/x.safetensors")(seeds, directory)
    (model / "below").symlink_to(directory)
    return model


def _refused(name: str, build: Build, says: str) -> Case:
    return Case(name, "F3", Opens.MODEL, build, says=says)


def _works(name: str, build: Build) -> Case:
    return Case(name, "F3", Opens.MODEL, build, codes=frozenset({0}), accepted=True)


_NAME = "no name of a safetensors file"
CASES = (
    _works("two parts", _parts(lambda model: None)),
    _works("link within the directory", _replaced(_inside)),
    _refused("part in the parent", _named("../x.safetensors"), _NAME),
    _refused("absolute part", _named("/etc/x.safetensors"), _NAME),
    _refused("part on a drive", _named("C:\\x.safetensors"), _NAME),
    _refused("part below a linked folder", _parent_link, _NAME),
    _refused("NUL in a part's name", _named("x\x00.safetensors"), _NAME),
    _refused("part that is a pickle", _named("pytorch_model.bin"), _NAME),
    _refused("part that is a number", _named(1), _NAME),
    _refused("linked part", _replaced(lambda path, moved: path.symlink_to(moved)), "leads out"),
    _refused(
        "link to itself", _replaced(lambda path, moved: path.symlink_to(path)), "leads to itself"
    ),
    _refused("missing part", _named("model-00003.safetensors"), "is not there"),
    _refused("tensor listed twice", _parts(_twice), "stands twice"),
    _refused("tensor in two parts", _parts(_in_both), "listed to be in"),
    _refused("tensor that is not listed", _parts(_unlisted), "not listed"),
    _refused("tensor that is listed only", _parts(_lacking), "does not hold"),
    _refused("list as map", _index(lambda d: d.update(weight_map=[])), "'weight_map' must"),
    _refused("no map", _index(lambda d: d.pop("weight_map")), "'weight_map' must"),
    _refused("empty map", _index(lambda d: d.update(weight_map={})), "'weight_map' must"),
    _refused(
        "2,000 parts",
        _index(lambda d: d.update(weight_map={f"{i}": f"x{i}.safetensors" for i in range(2_000)})),
        "2,000 parts",
    ),
    _refused("part that is a FIFO", _replaced(lambda path, moved: os.mkfifo(path)), "FIFO"),
    _refused("part that is a directory", _replaced(lambda p, moved: p.mkdir()), "directory"),
    _refused(
        "index that is a FIFO",
        _replaced(lambda path, moved: os.mkfifo(path), "model.safetensors.index.json"),
        "FIFO",
    ),
    _refused(
        "index that leads out",
        _replaced(lambda path, moved: path.symlink_to(moved), "model.safetensors.index.json"),
        "leads out",
    ),
)
