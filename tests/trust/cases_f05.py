"""F5: TorchScript files and torch.export programs."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .case import Case, Opens, Seeds
from .torch_files import START, STOP, artifact_with, calling, reseal, saved, state, text

SCRIPT, PROGRAM = "model.pt", "model.pt2"
MODEL = "archive/models/model.json"
WEIGHTS = "archive/data/weights/model_weights_config.json"
CONSTANTS = "archive/data/constants/model_constants_config.json"
SAMPLES = "archive/data/sample_inputs/model.pt"
Members = dict[str, bytes]
# `inspect` opens no engine, so that it may say what such a file is.
GATE = ("gate", "--baseline", "{bert}", "--candidate", "{input}", "--data", "{texts}")
WORDS = (*GATE, "--max-drop", "0.5", "--no-github")


def _script(name: str, change: Callable[[Members, Seeds], object], says: str) -> Case:
    build = artifact_with("torchscript", SCRIPT, change)
    return Case(f"script: {name}", "F5", Opens.WORDS, build, says=says, words=WORDS)


def _program(name: str, change: Callable[[Members, Seeds], object], says: str) -> Case:
    build = artifact_with("program", PROGRAM, change)
    return Case(f"program: {name}", "F5", Opens.WORDS, build, says=says, words=WORDS)


def _statement(line: str) -> Callable[[Members, Seeds], None]:
    """Put a statement before the first one of `forward`."""

    def change(members: Members, seeds: Seeds) -> None:
        name = next(name for name in members if name.endswith("plain.py") or "mangle" in name)
        source = members[name].decode()
        at = source.index("-> Tensor:\n") + len("-> Tensor:\n")
        filled = line.format(canary=json.dumps(str(seeds.canary)))
        members[name] = f"{source[:at]}    {filled}\n{source[at:]}".encode()

    return change


def _member(name: str, content: bytes = b"x") -> Callable[[Members, Seeds], None]:
    return lambda members, _seeds: members.update({f"archive/{name}": content})


def _swapped(name: str, old: bytes, new: bytes) -> Callable[[Members, Seeds], None]:
    def change(members: Members, _seeds: Seeds) -> None:
        assert old in members[name]
        members[name] = members[name].replace(old, new)

    return change


def _code(seeds: Seeds) -> str:
    return f"open({str(seeds.canary)!r}, 'w').close()"


def _pickled(name: str, *, whole: bool = False) -> Callable[[Members, Seeds], None]:
    """Put a pickle that calls something in the place of a member."""

    def change(members: Members, seeds: Seeds) -> None:
        call = START + calling("builtins", "exec", _code(seeds)) + STOP
        members[name] = saved(call) if whole else call

    return change


def _edited(
    change: Callable[[Any, Seeds], object], name: str = MODEL
) -> Callable[[Members, Seeds], None]:
    def edit(members: Members, seeds: Seeds) -> None:
        document = json.loads(members[name])
        change(document, seeds)
        members[name] = json.dumps(document).encode()

    return edit


def _node(document: Any) -> Any:
    return document["graph_module"]["graph"]["nodes"][0]


def _signature(document: Any) -> Any:
    entries = document["graph_module"]["module_call_graph"]
    return next(entry["signature"] for entry in entries if entry["signature"])


def _target(name: str) -> Callable[[Any, Seeds], None]:
    """Call a function of Python's with the canary."""

    def change(document: Any, seeds: Seeds) -> None:
        argument = {"name": "", "arg": {"as_string": f"touch {seeds.canary}"}, "kind": 1}
        _node(document).update(target=name, inputs=[argument])

    return change


def _size(document: Any, seeds: Seeds) -> None:
    values = document["graph_module"]["graph"]["sym_int_values"]
    next(iter(values.values()))["as_expr"]["expr_str"] = f"exec({_code(seeds)!r})"


def _power(document: Any, _seeds: Seeds) -> None:
    values = document["graph_module"]["graph"]["sym_int_values"]
    power = "Pow(Integer(9), Integer(99999999))"
    next(iter(values.values()))["as_expr"]["expr_str"] = power


def _guard(document: Any, seeds: Seeds) -> None:
    document["guards_code"] = [f"exec({_code(seeds)!r}) is None"]


def _guard_name(document: Any, seeds: Seeds) -> None:
    signature = _signature(document)
    signature["forward_arg_names"][0] = f'x" + str(exec({_code(seeds)!r})) + "'


def _weight_name(document: Any, _seeds: Seeds) -> None:
    specs = document["graph_module"]["signature"]["input_specs"]
    next(s for s in specs if "parameter" in s)["parameter"]["parameter_name"] = 'a" + x + "'


def _structure(document: Any, _seeds: Seeds) -> None:
    factory = {"default_factory_module": "antigravity", "default_factory_name": "x"}
    form = {"type": "collections.defaultdict", "context": factory, "children_spec": []}
    _signature(document)["in_spec"] = json.dumps([1, form])


def _payload(change: dict[str, Any], listing: str = WEIGHTS) -> Callable[[Members, Seeds], None]:
    def edit(document: Any, _seeds: Seeds) -> None:
        next(iter(document["config"].values())).update(change)

    return _edited(edit, listing)


def _unpickled_weight(members: Members, seeds: Seeds) -> None:
    _payload({"use_pickle": True})(members, seeds)
    _pickled("archive/data/weights/weight_0", whole=True)(members, seeds)


def _opaque(members: Members, seeds: Seeds) -> None:
    entry = {
        "path_name": "opaque_obj_0",
        "is_param": False,
        "use_pickle": True,
        "tensor_meta": None,
    }
    members[CONSTANTS] = json.dumps({"config": {"x": entry}}).encode()
    _pickled("archive/data/constants/opaque_obj_0")(members, seeds)


def _samples(members: Members, seeds: Seeds) -> None:
    members[SAMPLES] = saved(state(calling("builtins", "exec", _code(seeds))))


def _library(members: Members, _seeds: Seeds) -> None:
    members["archive/data/aotinductor/model/model.so"] = b"\x7fELF"


def _altered(kind: str, file: str, change: Callable[[Path], object], *, seal: bool = True) -> Any:
    """Change the file as a whole."""

    def build(seeds: Seeds, directory: Path) -> Path:
        target = Path(shutil.copytree(getattr(seeds, kind), directory / "artifact"))
        change(target / file)
        if seal:
            reseal(target, file)
        return target

    return build


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


def _whole(name: str, kind: str, file: str, change: Callable[[Path], object], says: str) -> Case:
    build = _altered(kind, file, change)
    return Case(name, "F5", Opens.WORDS, build, says=says, words=WORDS)


CASES = (
    _script("saves", _statement("_ = torch.save(1, {canary})"), "aten::save"),
    _script("maps a file", _statement("_ = torch.from_file({canary}, True, 8)"), "from_file"),
    _script("saves by a method", _statement("_ = (input).save({canary})"), "aten::save"),
    _script("other namespace", _statement("_ = ops.profiler._x({canary})"), "profiler"),
    _script("takes all operators", _statement("o = ops.prim"), "whole module"),
    _script("prints", _statement("print({canary})"), "calls print"),
    _script("code that is hidden", _statement('"""'), "code"),
    _script("extra payload", _member("extra/run.sh"), "extra/run.sh"),
    _script("member of another producer", _member("producer"), "producer"),
    _script("constants that call", _pickled("archive/constants.pkl"), "builtins.exec"),
    _script("data that call", _pickled("archive/data.pkl"), "builtins.exec"),
    _script(
        "other device",
        _swapped("archive/constants.pkl", text("cpu"), text("cuda:0")),
        "device",
    ),
    _script("constant cut off", _member("constants/0"), "the pickle says"),
    _program("function of Python", _edited(_target("torch.hub.os.system")), "os.system"),
    _program(
        "operator that maps", _edited(_target("torch.ops.aten.from_file.default")), "from_file"
    ),
    _program("size that calls", _edited(_size), "evaluates"),
    _program("size without end", _edited(_power), "evaluates"),
    _program("guard that calls", _edited(_guard), "evaluates"),
    _program("name that calls", _edited(_guard_name), "the name"),
    _program("weight's name that calls", _edited(_weight_name), "the name"),
    _program("structure that imports", _edited(_structure), "defaultdict"),
    _program("pickled weight", _unpickled_weight, "a pickle"),
    _program("opaque constant", _opaque, "opaque_obj_0"),
    _program("sample inputs that call", _samples, "builtins.exec"),
    _program("weight elsewhere", _payload({"path_name": "../../version"}), "not in it"),
    _program("compiled library", _library, "model.so"),
    _whole("script cut off", "torchscript", SCRIPT, _cut, "no zip archive"),
    _whole("program cut off", "program", PROGRAM, _cut, "no zip archive"),
    Case(
        "other digest",
        "F5",
        Opens.ARTIFACT,
        _altered("torchscript", SCRIPT, _flip, seal=False),
        says="model.pt differs",
    ),
)
