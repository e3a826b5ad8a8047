"""F4: pickled weights, and the archives that they come in."""

import io
import json
import os
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from .case import Case, Opens, Seeds
from .model_files import WEIGHTS, copied
from .torch_files import (
    START,
    STOP,
    archive,
    calling,
    named,
    saved,
    state,
    storage,
    tensor,
    text,
)

PICKLED = "pytorch_model.bin"
INIT = ("init", "{input}", "--data", "{texts}", "--allow-pickle-weights", "--workspace", "{output}")
Content = bytes | Callable[[Seeds], bytes]
MANY = 100_000
LARGEST = (1 << 31) - 1


def _model(content: Content, name: str = PICKLED) -> Callable[[Seeds, Path], Path]:
    """Build a tiny BERT whose only weights are these bytes."""

    def build(seeds: Seeds, directory: Path) -> Path:
        model = copied(seeds.bert, directory)
        (model / WEIGHTS).unlink()
        (model / name).write_bytes(content(seeds) if callable(content) else content)
        return model

    return build


def _unasked(name: str, content: Content, file: str = PICKLED, says: str = "a pickle") -> Case:
    return Case(name, "F4", Opens.MODEL, _model(content, file), says=says)


def _asked(name: str, content: Content, says: str) -> Case:
    return Case(name, "F4", Opens.WORDS, _model(content), says=says, words=INIT)


def _placed(name: str, place: Callable[[Seeds, Path], object], says: str) -> Case:
    """Build a tiny BERT with something else where its weights should be."""

    def build(seeds: Seeds, directory: Path) -> Path:
        model = copied(seeds.bert, directory)
        (model / WEIGHTS).unlink()
        place(seeds, model)
        return model

    return Case(name, "F4", Opens.WORDS, build, says=says, words=INIT)


def _harmless(name: str, write: Callable[[dict[str, torch.Tensor], Path], object]) -> Case:
    """Build a tiny BERT whose weights are saved in a way that is fine."""

    def build(seeds: Seeds, directory: Path) -> Path:
        model = copied(seeds.bert, directory)
        write(load_file(model / WEIGHTS), model)
        (model / WEIGHTS).unlink()
        return model

    codes = frozenset({0})
    return Case(name, "F4", Opens.WORDS, build, codes=codes, accepted=True, words=INIT)


def _code(seeds: Seeds) -> str:
    return f"open({str(seeds.canary)!r}, 'w').close()"


def _calls(module: str, name: str) -> Callable[[Seeds], bytes]:
    return lambda seeds: saved(state(calling(module, name, _code(seeds))))


def _raw_call(seeds: Seeds) -> bytes:
    return state(calling("builtins", "exec", _code(seeds)))


def _by_name_from_stack(seeds: Seeds) -> bytes:
    call = text("builtins") + text("exec") + b"\x93(" + text(_code(seeds)) + b"tR"
    return saved(state(call))


def _by_instance(seeds: Seeds) -> bytes:
    return saved(state(b"(" + text(_code(seeds)) + b"ibuiltins\nexec\n"))


def _by_object(seeds: Seeds) -> bytes:
    return saved(state(b"(" + named("builtins", "exec") + text(_code(seeds)) + b"o"))


def _by_class(seeds: Seeds) -> bytes:
    arguments = b"(" + text("/bin/touch") + text(str(seeds.canary)) + b"l\x85"
    return saved(state(named("subprocess", "Popen") + arguments + b"\x81"))


def _by_state(seeds: Seeds) -> bytes:
    made = named("torch.nn", "Module") + b")\x81}"
    hook = text("__setstate__") + calling("builtins", "exec", _code(seeds)) + b"sb"
    return saved(state(made + hook))


def _nested(seeds: Seeds) -> bytes:
    inner = START + calling("builtins", "exec", _code(seeds)) + STOP
    packed = b"C" + bytes([len(inner)]) + inner if len(inner) < 256 else b""
    return saved(state(named("pickle", "loads") + packed + b"\x85R"))


def _old_magic(seeds: Seeds) -> bytes:
    """Begin as files before zip did, so that scanners stop, and go on with code."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
    info = pickle.dumps({"little_endian": True}, protocol=2)
    return magic + pickle.dumps(1001, protocol=2) + info + _raw_call(seeds)


def _old_form(seeds: Seeds) -> bytes:
    stream = io.BytesIO()
    weights = load_file(seeds.bert / WEIGHTS)
    torch.save(weights, stream, _use_new_zipfile_serialization=False)
    return stream.getvalue()


def _tar(seeds: Seeds) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as packed:
        for name in ("storages", "tensors", "pickle"):
            content = _raw_call(seeds)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            packed.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def _patched(mark: bytes, offset: int, value: bytes) -> bytes:
    """Change bytes behind the first place where an archive of good weights has a mark."""
    raw = bytearray(saved(state(tensor(4, 4))))
    at = raw.index(mark) + offset
    raw[at : at + len(value)] = value
    return bytes(raw)


def _flags(bits: int) -> bytes:
    """Set flags in the directory and in front of the member."""
    raw = bytearray(saved(state(tensor(4, 4))))
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = raw.index(mark) + offset
        raw[at : at + 2] = struct.pack("<H", bits)
    return bytes(raw)


def _twice(first: str, second: str) -> Callable[[Seeds], bytes]:
    """Show a scanner one pickle, and PyTorch another."""

    def build(seeds: Seeds) -> bytes:
        good, bad = state(tensor(4, 4)), _raw_call(seeds)
        return archive(((f"a/{first}", good), (f"a/{second}", bad), ("a/data/0", bytes(16))))

    return build


def _renamed(seeds: Seeds) -> bytes:
    """Call the evil pickle something else in front of it than in the directory."""
    raw = archive((("a/data.pkl", _raw_call(seeds)), ("a/data/0", bytes(16))))
    return raw.replace(b"a/data.pkl", b"a/data.txt", 1)


def _bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a/data.pkl", state(tensor(4, 4)))
        packed.writestr("a/data/0", bytes(64 << 20))
    return stream.getvalue()


def _overlapping() -> bytes:
    """Let two members have the same bytes."""
    first = bytearray(archive((("a/data/0", bytes(16)), ("a/data/1", bytes(16)))))
    second = first.rindex(b"PK\1\2")
    first[second + 42 : second + 46] = bytes(4)
    return bytes(first)


def _linked() -> bytes:
    link = zipfile.ZipInfo("archive/data/1")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    files = ("archive/data.pkl", state(tensor(4, 4))), ("archive/data/0", bytes(16))
    return archive((*files, (link, b"/etc/passwd")))


def _crowded() -> bytes:
    members = ((f"a/data/{i}", b"") for i in range(MANY))
    return archive((("a/data.pkl", state(tensor(4, 4))), *members))


def _script(seeds: Seeds) -> bytes:
    return (seeds.torchscript / "model.pt").read_bytes()


def _deep() -> bytes:
    """Use as a key what takes a million calls to hash, each inside the other."""
    return saved(state(b"K\x01", key=b"N" + b"\x85" * 100_000))


def _index(*parts: object) -> Callable[[Seeds, Path], None]:
    def place(_seeds: Seeds, model: Path) -> None:
        names = {f"weight{i}": part for i, part in enumerate(parts)}
        (model / f"{PICKLED}.index.json").write_text(json.dumps({"weight_map": names}))

    return place


def _outside(_seeds: Seeds, model: Path) -> None:
    (model.parent / "elsewhere").write_bytes(saved(state(tensor(4, 4))))
    (model / PICKLED).symlink_to(model.parent / "elsewhere")


def _parts(weights: dict[str, torch.Tensor], model: Path) -> None:
    names, listed = sorted(weights), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"pytorch_model-0000{i + 1}-of-00002.bin"
        torch.save({name: weights[name] for name in part}, model / file)
        listed |= dict.fromkeys(part, file)
    (model / f"{PICKLED}.index.json").write_text(json.dumps({"weight_map": listed}))


def _in_half(weights: dict[str, torch.Tensor], model: Path) -> None:
    torch.save(
        {name: w.half() if w.is_floating_point() else w for name, w in weights.items()},
        model / PICKLED,
    )


def _shared(weights: dict[str, torch.Tensor], model: Path) -> None:
    """Keep all weights in one storage, and one of them under two names."""
    first = next(name for name, value in weights.items() if value.ndim == 2)
    torch.save(weights | {"tied": weights[first].T}, model / PICKLED)


def _from_pipe(_seeds: Seeds, model: Path) -> None:
    os.mkfifo(model / PICKLED)


def _missing_part(_seeds: Seeds, model: Path) -> None:
    shutil.copy(model / "config.json", model / "other.bin")
    _index("other.bin", "absent.bin")(_seeds, model)


GOOD = saved(state(tensor(4, 4)))
CASES = (
    _unasked("calls without being asked", _raw_call),
    _unasked("archive without being asked", _calls("builtins", "exec")),
    _unasked("calls under another name", _raw_call, "model.pth"),
    _unasked("TorchScript as weights", _script),
    _unasked("pickle called safetensors", _raw_call, WEIGHTS, "damaged or not safetensors"),
    _unasked("archive called safetensors", _calls("os", "system"), WEIGHTS, "not safetensors"),
    _asked("calls exec", _calls("builtins", "exec"), "builtins.exec"),
    _asked("calls os.system", _calls("os", "system"), "os.system"),
    _asked("calls posix.system", _calls("posix", "system"), "posix.system"),
    _asked("calls what scanners forget", _calls("torch.utils.collect_env", "run"), "collect_env"),
    _asked("calls a library's loader", _calls("torch.serialization", "load"), "torch.serial"),
    _asked("calls a method by its path", _calls("torch", "hub.os.system"), "hub.os.system"),
    _asked("names from the stack", _by_name_from_stack, "STACK_GLOBAL"),
    _asked("INST", _by_instance, "INST"),
    _asked("OBJ", _by_object, "builtins.exec"),
    _asked("NEWOBJ", _by_class, "names"),
    _asked("BUILD", _by_state, "torch.nn.Module"),
    _asked("extension", saved(state(b"\x82\x01")), "EXT1"),
    _asked("pickle in a pickle", _nested, "pickle.loads"),
    _asked("bare pickle", _raw_call, "no zip archive"),
    _asked("magic number, then code", _old_magic, "no zip archive"),
    _asked("form before zip", _old_form, "no zip archive"),
    _asked("tar", _tar, "no zip archive"),
    _asked("empty", b"", "no zip archive"),
    _asked("encrypted", _flags(0x01), "flags 0x1"),
    _asked("patched", _flags(0x20), "flags 0x20"),
    _asked("strongly encrypted", _flags(0x40), "flags 0x40"),
    _asked("flags in the directory only", _patched(b"PK\1\2", 8, b"\x01\x00"), "flags 0x1"),
    _asked("checksum", _patched(b"PK\1\2", 16, bytes(4)), "contradict"),
    _asked("damaged member", GOOD.replace(b"data/0" + bytes(8), b"data/0" + b"\1" * 8), "checksum"),
    _asked("unknown compression", _patched(b"PK\1\2", 10, b"\x63\x00"), "method 99"),
    _asked("two pickles", _twice("data.pkl", "data.pkl"), "two members"),
    _asked("two pickles but for case", _twice("data.pkl", "DATA.PKL"), "two members"),
    _asked("two names of one member", _renamed, "contradict"),
    _asked("bomb", _bomb(), "compressed"),
    _asked("overlapping members", _overlapping(), "to two"),
    _asked("member that leads out", saved(state(tensor(4, 4)), **{"../../x": b"x"}), "called"),
    _asked("member that is a link", _linked(), "link"),
    _asked("crowded", lambda _seeds: _crowded(), "members in a directory"),
    _asked("polyglot before", b"#!/bin/sh\n" + GOOD, "its directory is at"),
    _asked("polyglot behind", GOOD + b"\nexit 1\n", "no zip archive"),
    _asked("truncated", GOOD[:-30], "no zip archive"),
    _asked("other folder", archive((("a/data.pkl", b""), ("b/data/0", b""))), "folders"),
    _asked("storage beyond its file", saved(state(tensor(1 << 20, 4))), "the pickle says"),
    _asked("storage of another file", saved(state(storage(4, key="7"))), "is not in it"),
    _asked("storage by a path", saved(state(storage(4, key="../version"))), "refers"),
    _asked("tensor beyond its storage", saved(state(tensor(4, 4000))), "cannot be read"),
    _asked("negative size", saved(state(tensor(4, -4))), "cannot be read"),
    _asked("tensor that unfolds", saved(state(tensor(4, 1 << 40, 0))), "unfold"),
    _asked("entry of a tensor", saved(START + tensor(4, 4) + text("x") + b"Ns."), "cannot be read"),
    _asked("memo bomb", saved(state(b"Nr" + struct.pack("<I", LARGEST))), "asks for place"),
    _asked("memo never filled", saved(state(b"h\x07")), "before it is filled"),
    _asked("stack under nothing", saved(START + b"R."), "did not put down"),
    _asked("code behind the end", saved(state(tensor(4, 4)) + b"cos\nsystem\n"), "early"),
    _asked("no end", saved(state(tensor(4, 4))[:-1]), "pickle"),
    _asked("key too deep to hash", lambda _seeds: _deep(), "as a key"),
    _asked("list", saved(START + b"](" + tensor(4, 4) + b"e."), "expected tensors by name"),
    _asked("text in it", saved(state(text("\x1b[31m[/red]"))), "expected dense tensors"),
    _asked(
        "name with control characters", saved(state(b"N", key=text("\x1b[2J"))), "expected dense"
    ),
    _asked("TorchScript read as weights", _script, "not weights"),
    _placed("link out of the directory", _outside, "leads out"),
    _placed("named pipe", _from_pipe, "not a regular file"),
    _placed("index that leads out", _index("../x.bin"), "no name of a .bin"),
    _placed("index of numbers", _index(1), "no name of a .bin"),
    _placed("index of parts that are not there", _index("absent.bin"), "is not there"),
    _placed("index of a bad part", _missing_part, "no zip archive"),
    _harmless("in parts", _parts),
    _harmless("half precision", _in_half),
    _harmless("shared storage", _shared),
)
