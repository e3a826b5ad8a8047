"""F11: manifests, and what else tcompress wrote and reads again."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import Case, Opens, Seeds

Build = Callable[[Seeds, Path], Path]
OK = frozenset({0})
MANIFEST = "manifest.json"
GATE = ("gate", "--baseline", "{bert}", "--candidate", "{input}", "--data", "{texts}")
ENTRY = {"sha256": "0" * 64, "size_bytes": 1}


def _exported(**preprocessing: Any) -> Build:
    def build(seeds: Seeds, directory: Path) -> Path:
        target = Path(shutil.copytree(seeds.onnx, directory / "artifact"))
        document = json.loads((target / MANIFEST).read_text())
        document["details"]["preprocessing"] |= preprocessing
        document.pop("seal")
        (target / MANIFEST).write_text(json.dumps(document))
        return target

    return build


def _artifact(change: Callable[[Path], object]) -> Build:
    def build(seeds: Seeds, directory: Path) -> Path:
        target = Path(shutil.copytree(seeds.pruned, directory / "artifact"))
        change(target)
        return target

    return build


def _manifest(change: Callable[[Any], object]) -> Build:
    def edit(target: Path) -> None:
        document = json.loads((target / MANIFEST).read_text())
        change(document)
        (target / MANIFEST).write_text(json.dumps(document))

    return _artifact(edit)


def _empty(target: Path) -> None:
    """Leave a manifest that lists nothing, and nothing else."""
    for path in target.iterdir():
        if path.name != MANIFEST:
            path.unlink()
    _set(target, files={})


def _without(*names: str) -> Build:
    """Take files out of an artifact and of what it lists."""

    def take(target: Path) -> None:
        files = json.loads((target / MANIFEST).read_text())["files"]
        for name in names:
            (target / name).unlink()
            files.pop(name)
        _set(target, files=files)

    return _artifact(take)


def _unsealed(**values: Any) -> Build:
    """Say other things in a manifest that is as one from before manifests had a seal."""
    return _artifact(lambda target: _set(target, **values))


def _of_key(**values: Any) -> Build:
    def change(target: Path) -> None:
        key = json.loads((target / MANIFEST).read_text())["key"]
        _set(target, key=key | values)

    return _artifact(change)


def _set(target: Path, **values: Any) -> None:
    document = json.loads((target / MANIFEST).read_text()) | values
    document.pop("seal", None)
    (target / MANIFEST).write_text(json.dumps(document))


def _raw(content: bytes) -> Build:
    return _artifact(lambda target: (target / MANIFEST).write_bytes(content))


def _cut(target: Path) -> None:
    whole = (target / MANIFEST).read_bytes()
    (target / MANIFEST).write_bytes(whole[: len(whole) // 2])


def _flip(target: Path) -> None:
    path = target / "model.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


def _link_outside(target: Path) -> None:
    path = target / "config.json"
    elsewhere = target.parent / "config.json"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _pipe(target: Path) -> None:
    (target / "config.json").unlink()
    os.mkfifo(target / "config.json")


def _linked(seeds: Seeds, directory: Path) -> Path:
    target = directory / "link"
    target.symlink_to(seeds.pruned)
    return target


def _wide(document: Any) -> None:
    layer = document["plan"]["layers"][0] | {"neurons": [[0, 1_000_000]]}
    document["plan"] |= {
        "layers": [layer] * 1000,
        "source_heads": [1_000_000] * 1000,
        "source_neurons": [1_000_000] * 1000,
    }


def _workspace(change: Callable[[Path], object]) -> Build:
    def build(seeds: Seeds, directory: Path) -> Path:
        target = directory / "workspace"
        shutil.copytree(seeds.workspace, target)
        change(target)
        return target

    return build


def _broken_neighbour(target: Path) -> None:
    (target / "artifacts" / "broken").mkdir(parents=True)
    (target / "artifacts" / "broken" / MANIFEST).write_text('{"schema_version": 1,')


def _baseline(change: Callable[[bytes], bytes]) -> Build:
    def build(seeds: Seeds, directory: Path) -> Path:
        target = directory / "baseline.json"
        target.write_bytes(change(seeds.baseline.read_bytes()))
        return target

    return build


def _refused(name: str, build: Build, says: str) -> Case:
    return Case(name, "F11", Opens.ARTIFACT, build, says=says)


def _harmless(name: str, build: Build, opens: Opens = Opens.ARTIFACT) -> Case:
    return Case(name, "F11", opens, build, codes=OK, accepted=True)


def _asked(name: str, build: Build, says: str) -> Case:
    words = (*GATE, "--max-drop", "0.5", "--no-github")
    return Case(name, "F11", Opens.WORDS, build, says=says, words=words)


def _of_baseline(name: str, change: Callable[[bytes], bytes], says: str) -> Case:
    return Case(name, "F11", Opens.BASELINE, _baseline(change), says=says)


def _workspace_of(name: str, change: Callable[[bytes], bytes], says: str) -> Case:
    def edit(target: Path) -> None:
        path = target / "tcompress.toml"
        path.write_bytes(change(path.read_bytes()))

    build = _workspace(edit)
    return Case(name, "F11", Opens.WORKSPACE, build, codes=frozenset({2}), says=says)


CASES = (
    _refused("flipped bit", _artifact(_flip), "model.safetensors differs"),
    _refused(
        "digest of another file",
        _manifest(lambda d: d["files"]["config.json"].update(sha256="0" * 64)),
        "config.json differs",
    ),
    _refused(
        "file above the directory", _manifest(lambda d: d["files"].update({"../x": ENTRY})), "../x"
    ),
    _refused(
        "absolute file",
        _manifest(lambda d: d["files"].update({"/etc/hosts": ENTRY})),
        "/etc/hosts",
    ),
    _refused(
        "lists itself", _manifest(lambda d: d["files"].update({MANIFEST: ENTRY})), "must not name"
    ),
    _refused(
        "file that is not listed",
        _artifact(lambda target: (target / "extra.py").write_text("")),
        "extra.py is not in the manifest",
    ),
    _refused(
        "file that is missing",
        _artifact(lambda target: (target / "config.json").unlink()),
        "config.json is missing",
    ),
    _refused("file that is a link", _artifact(_link_outside), "config.json differs"),
    _refused("file that is a pipe", _artifact(_pipe), "config.json differs"),
    _refused("older", _manifest(lambda d: d.update(schema_version=0)), "schema_version 0"),
    _refused("newer", _manifest(lambda d: d.update(schema_version=99)), "upgrade tcompress"),
    _refused("truncated", _artifact(_cut), "not valid JSON"),
    _refused("empty", _raw(b""), "empty"),
    _refused("list", _raw(b"[]"), "expected an object"),
    _refused("deep", _raw(b'{"a":' * 50_000), "deep"),
    _refused("not a number", _raw(b'{"schema_version": NaN}'), "NaN"),
    _refused("key twice", _raw(b'{"kind": 1, "kind": 2}'), "twice"),
    _refused("UTF-16", _raw("{}".encode("utf-16")), "UTF-8"),
    _refused("wrong type", _manifest(lambda d: d.update(recipe=[])), "recipe"),
    _refused("unknown key", _manifest(lambda d: d.update(surprise=1)), "surprise"),
    _refused("plan of a billion neurons", _manifest(_wide), "heads and neurons"),
    _refused(
        "negative size",
        _manifest(lambda d: d["files"]["config.json"].update(size_bytes=-1)),
        "size_bytes",
    ),
    _refused(
        "parent of no name", _manifest(lambda d: d["parent"].update(path=3)), "must give path"
    ),
    _refused(
        "parent with a NUL", _unsealed(parent={"path": "a\0b", "digest": "0"}), "no system has"
    ),
    _refused(
        "source with a NUL", _unsealed(source={"path": "a\0b", "digest": "0"}), "no system has"
    ),
    _refused("versions as numbers", _unsealed(versions={"torch": 2}), "'versions' must be"),
    _refused("CPU as text", _unsealed(cpu_features={"avx2": "no"}), "'cpu_features' must be"),
    _refused("key with a list of versions", _of_key(versions=[1]), "'key.versions' must be"),
    _refused("key with inputs as text", _of_key(inputs="x"), "'key.inputs' must be"),
    _refused("key with no input", _of_key(inputs={"data": None}), "'key.inputs' must be"),
    _refused("key with a number as CPU", _of_key(cpu_features=7), "'key.cpu_features' must be"),
    _refused("no files", _artifact(_empty), "'files' names none"),
    _refused("no weights", _without("model.safetensors"), "model.safetensors"),
    _refused("no configuration", _without("config.json"), "neither config.json"),
    _workspace_of(
        "workspace with a NUL in the model",
        lambda raw: re.sub(rb"(?m)^model = .*$", rb'model = "a\\u0000b"', raw),
        "must not hold the character NUL",
    ),
    _asked("unit of no name", _exported(unit="x"), "not a valid Unit"),
    _asked("no vocabulary", _exported(vocab_size=None), "vocab_size is None"),
    _harmless("read-only", _artifact(lambda target: target.chmod(0o555))),
    _harmless("directory that is a link", _linked),
    _harmless("neighbour that cannot be read", _workspace(_broken_neighbour), Opens.WORKSPACE),
    _harmless(
        "scores that are damaged",
        _workspace(lambda target: (target / "scores.json").write_bytes(b"[" * 100_000)),
        Opens.WORKSPACE,
    ),
    _of_baseline("truncated baseline", lambda raw: raw[: len(raw) // 2], "not valid JSON"),
    _of_baseline(
        "changed baseline",
        lambda raw: raw.replace(b'"device": "cpu"', b'"device": "gpu"'),
        "change",
    ),
    _of_baseline("baseline of another kind", lambda raw: b"{}", "kind"),
)
