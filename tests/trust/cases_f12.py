"""F12: recipes and command lines."""

import shutil
from collections.abc import Callable
from pathlib import Path

from .case import Case, Opens, Seeds

Build = Callable[[Seeds, Path], Path]
WRONG = frozenset({2})
CONFIG, POLICY = "tcompress.toml", "tcompress-gate.toml"
BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"
PRUNE = ("prune", "--criterion", "random", "--model", "{input}")


def _workspace(change: Callable[[str], str]) -> Build:
    def build(seeds: Seeds, directory: Path) -> Path:
        target = directory / "workspace"
        target.mkdir()
        text = (seeds.workspace / CONFIG).read_text()
        (target / CONFIG).write_text(change(text))
        return target

    return build


def _adding(line: str) -> Build:
    return _workspace(lambda text: f"{line}\n{text}")


def _policy(text: str) -> Build:
    def build(seeds: Seeds, directory: Path) -> Path:
        (directory / POLICY).write_text(text)
        return directory / POLICY

    return build


def _model(seeds: Seeds, directory: Path) -> Path:
    return Path(shutil.copytree(seeds.bert, directory / "model"))


def _numbered(line: str) -> str:
    return "model = 3" if line.startswith("model") else line


def _refused(name: str, build: Build, says: str) -> Case:
    return Case(name, "F12", Opens.WORKSPACE, build, codes=WRONG, says=says)


def _typed(name: str, build: Build, says: str, *words: str, codes: frozenset[int] = WRONG) -> Case:
    return Case(name, "F12", Opens.WORDS, build, codes=codes, says=says, words=words)


def _of_policy(name: str, text: str, says: str) -> Case:
    words = ("gate", "--policy", "{input}", "--baseline", "x", "--candidate", "y", "--data", "z")
    return _typed(name, _policy(text), says, *words, codes=frozenset({5}))


CASES = (
    _refused("object of YAML", _workspace(lambda _: "a: !!python/object:os.system x\n"), "TOML"),
    _refused("aliases of YAML", _workspace(lambda _: BOMB), "TOML"),
    _refused("deep", _workspace(lambda _: f"a = {'[' * 100_000}"), "TOML"),
    _refused("two megabytes", _workspace(lambda text: f"#{'x' * (2 << 20)}\n{text}"), "larger"),
    _refused("unknown key", _adding("surprise = 1"), "unknown key 'surprise'"),
    _refused("newer", _workspace(lambda t: t.replace("version = 1", "version = 9")), "got 9"),
    _refused("negative seed", _workspace(lambda t: t.replace("seed = 0", "seed = -1", 1)), "seed"),
    _refused("limit not a number", _workspace(lambda t: t.replace("0.01", "nan", 1)), "max_drop"),
    _refused(
        "model of no name",
        _workspace(lambda text: "\n".join(_numbered(line) for line in text.splitlines())),
        "model must be of type str",
    ),
    _typed(
        "negative ratio", _model, "--heads", *PRUNE, "--heads", "-0.3", "--output", "{output}/p"
    ),
    _typed("ratio above 1", _model, "--heads", *PRUNE, "--heads", "30", "--output", "{output}/p"),
    _typed(
        "ratio not a number", _model, "--heads", *PRUNE, "--heads", "nan", "--output", "{output}/p"
    ),
    Case(
        "all heads",
        "F12",
        Opens.WORDS,
        _model,
        codes=frozenset({0, 2}),
        accepted=True,
        words=(*PRUNE, "--heads", "1.0", "--output", "{output}/p"),
    ),
    _typed("negative draw", _model, "--seed", *PRUNE, "--heads", "0.3", "--seed", "-1"),
    *(
        _typed(
            f"output {name}",
            _model,
            "the model directory or inside it",
            *(*PRUNE, "--heads", "0.3", *force, "--output", place),
        )
        for name, place, force in (
            ("is the input", "{input}", ()),
            ("is the input, by force", "{input}", ("--force",)),
            ("in the input", "{input}/pruned", ()),
            ("in the input, by a detour", "{input}/../model/a/../b", ()),
        )
    ),
    _typed(
        "output in the way", _model, "exists", *PRUNE, "--heads", "0.3", "--output", "{input}/.."
    ),
    _of_policy("unknown limit", "max_dorp = 0.01\n", "did you mean 'max_drop'"),
    _of_policy("limit that nothing meets", "max_drop = nan\n", "max_drop must be"),
    _of_policy("limit of 400 digits", f"max_drop = 1{'0' * 400}\n", "max_drop must be"),
    _of_policy("policy of YAML", BOMB, "TOML"),
)
