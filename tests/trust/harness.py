"""Runs commands on bad inputs, and looks at everything that they left and did.

Which commands open what stands in `COMMANDS`; `{input}` is the case's, `{output}` a path that does
not exist yet, names of `Seeds` are those.
"""

import json
import os
import re
import shutil
import sys
import zlib
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import psutil

from tcompress.digests import file_digest

from .audit import Bounds
from .case import Case, Opens, Seeds
from .counts import KINDS
from .processes import Ended, Zygote
from .zygote import FORKED_ENGINES

COUNTS = "TCOMPRESS_TEST_COUNTS"
SECONDS = 20.0
"""A refusal that takes longer, twice, is a fault; the slowest start an engine and wait for it."""
MEMORY_BYTES = 6 << 30
"""Address space of a command, torch and its libraries included."""
CODES = frozenset({0, 2, 3, 4, 5, 6})
"""What a command may end with, where an input is accepted."""
REPOSITORY = Path(__file__).parents[2]
_SYSTEM = ("/usr", "/lib", "/proc", "/sys", "/dev/null", "/dev/urandom", "/dev/shm", "/etc/ssl")
_SYSTEM_FILES = ("/etc/localtime", "/etc/mime.types", "/etc/os-release", "/etc/nsswitch.conf")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")
_LAST_WORDS = 6000
_QUICK = ("--budget-s", "1", "--no-mix", "--output", "{output}")
_LENIENT = ("--max-drop", "0.5", "--no-github")
_GATE = ("--data", "{texts}", *_LENIENT)
_EVALUATE = ("--data", "{texts}", *_QUICK)
_PRUNE = ("--heads", "0.3", "--criterion", "magnitude", "--output", "{output}")

COMMANDS: dict[Opens, tuple[tuple[str, ...], ...]] = {
    Opens.MODEL: (
        ("inspect", "{input}"),
        ("init", "{input}", "--data", "{texts}", "--workspace", "{output}"),
        ("score", "--model", "{input}", "--data", "{texts}", "--output", "{output}"),
        ("prune", "--model", "{input}", *_PRUNE),
        ("quantize", "--model", "{input}", "--output", "{output}"),
        ("export", "--model", "{input}", "--output", "{output}"),
        ("export", "--model", "{input}", "--format", "torchscript", "--output", "{output}"),
        ("evaluate", "--compare", "{bert}", "{input}", *_EVALUATE),
        ("gate", "--baseline", "{input}", "--candidate", "{bert}", *_GATE),
        ("gate", "--baseline", "{bert}", "--candidate", "{input}", *_GATE),
        ("finetune", "--teacher", "{input}", "--workspace", "{workspace}", "--output", "{output}"),
    ),
    Opens.ARTIFACT: (
        ("inspect", "{input}"),
        ("evaluate", "--compare", "{bert}", "{input}", *_EVALUATE),
        ("gate", "--baseline", "{bert}", "--candidate", "{input}", *_GATE),
        ("gate", "--baseline", "{input}", "--candidate", "{bert}", *_GATE),
        ("export", "--model", "{input}", "--output", "{output}"),
        ("quantize", "--model", "{input}", "--output", "{output}"),
    ),
    Opens.DATA: (
        ("init", "{bert}", "--data", "{input}", "--workspace", "{output}"),
        ("score", "--model", "{bert}", "--data", "{input}", "--output", "{output}"),
        ("prune", "--model", "{bert}", "--data", "{input}", *_PRUNE),
        ("gate", "--baseline", "{bert}", "--candidate", "{pruned}", "--data", "{input}", *_LENIENT),
        ("evaluate", "--compare", "{bert}", "{pruned}", "--data", "{input}", *_QUICK),
    ),
    Opens.TENSORS: (
        ("init", "{torch}", "--data", "{input}", "--workspace", "{output}"),
        ("score", "--model", "{torch}", "--data", "{input}", "--output", "{output}"),
        ("prune", "--model", "{torch}", "--data", "{input}", *_PRUNE),
        ("gate", "--baseline", "{torch}", "--candidate", "{torch}", "--data", "{input}", *_LENIENT),
    ),
    Opens.WORKSPACE: (
        ("score", "--workspace", "{input}"),
        ("prune", "--workspace", "{input}", "--heads", "0.3"),
        ("finetune", "--workspace", "{input}"),
        ("quantize", "--workspace", "{input}"),
        ("export", "--workspace", "{input}"),
        ("evaluate", "--workspace", "{input}", "--budget-s", "1", "--no-mix"),
        ("gate", "--workspace", "{input}", "--max-drop", "0.5", "--no-github"),
        ("run", "--workspace", "{input}"),
    ),
    Opens.BASELINE: (
        ("gate", "--baseline", "{input}", "--candidate", "{bert}", *_GATE),
        ("gate", "--baseline", "{input}", "--candidate", "{pruned}", *_GATE),
    ),
}


@dataclass
class Outcome:
    """What one command did with one input.

    Attributes:
        words: The command line.
        ended: How it ended.
        executions: Code that ran, processes and connections that were not its own.
        outside: What it read or wrote where it has no business.
        deaths: Signals that killed it, and limits that it ran into.
        tracebacks: Tracebacks on stderr.
        partial: What it left behind.
        wrong: What else is not as promised.
    """

    words: tuple[str, ...]
    ended: Ended
    executions: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    deaths: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    partial: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    @property
    def faults(self) -> list[str]:
        """Everything that broke a promise, in words."""
        return [f"{name}: {line}" for name in KINDS for line in getattr(self, name)]

    def count(self, family: str, name: str, **others: float) -> None:
        """Append a JSON line to the file that TCOMPRESS_TEST_COUNTS names, if it does.

        Args:
            family: Of the input.
            name: Of the input.
            **others: What else to say; the seconds, in place of the command's.
        """
        if (path := os.environ.get(COUNTS)) is None:
            return
        line = {"family": family, "name": name, "command": self.words[0]}
        line |= {"seconds": self.ended.seconds, "code": self.ended.code}
        line |= {kind: len(getattr(self, kind)) for kind in KINDS} | others
        with Path(path).open("a") as file:
            file.write(json.dumps(line) + "\n")


class Harness:
    """Runs commands in forks of a process that has imported everything, one at a time.

    Args:
        folder: A directory for outputs and temporary files.
        seeds: Valid inputs, that cases are made from.
    """

    def __init__(self, folder: Path, seeds: Seeds) -> None:
        self._folder = folder.resolve()
        self._seeds = seeds
        self._zygote = Zygote(self._folder, {FORKED_ENGINES: "1"})

    def close(self) -> None:
        """End the process."""
        self._zygote.__exit__(None, None, None)

    def outcomes(self, case: Case, most: int | None = None) -> list[Outcome]:
        """Build a case, and run the commands that open it.

        Args:
            case: The case.
            most: How many commands; which ones depends on the case's name. None for all.
        """
        directory = self._folder / "case"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        given = case.build(self._seeds, directory)
        commands = _commands(case, most)
        found = []
        for words in commands:
            if case.opens is Opens.WORKSPACE and found:  # a command writes into it
                shutil.rmtree(directory)
                directory.mkdir()
                given = case.build(self._seeds, directory)
            outcome = self.outcome(case, directory, given, words)
            if outcome.ended.seconds > _seconds(words):  # a command that hangs, or a busy machine
                outcome = self.outcome(case, directory, given, words)
            found.append(outcome)
        return found

    def outcome(self, case: Case, directory: Path, given: Path, words: tuple[str, ...]) -> Outcome:
        """Run one command on a case.

        Args:
            case: The case.
            directory: Where it was built.
            given: What it is.
            words: The command line, with names in braces.
        """
        output, scratch, log = self._fresh()
        names = {f.name: str(getattr(self._seeds, f.name)) for f in fields(Seeds)}
        names |= {"input": str(given), "output": str(output), "case": str(directory)}
        line = tuple(_filled(word, names) for word in words)
        writes = case.opens in (Opens.WORKSPACE, Opens.WORDS)
        bounds = self._bounds(log, directory, (output.parent, scratch), writes=writes)
        before = _content(directory, self._seeds)
        ended = self._run(line, scratch, bounds, _seconds(words))
        outcome = Outcome(line, ended)
        _look_at_findings(outcome, log, self._seeds)
        _look_at_words(outcome, case)
        left = {} if writes else _changed(before, _content(directory, self._seeds))
        _look_at_files(outcome, left, output.parent, scratch)
        return outcome

    def fuzz(self, target: str, inputs: int, seconds: float) -> Outcome:
        """Open spoiled inputs, each in the same process, as `fuzz.py` says.

        Args:
            target: Which of its targets.
            inputs: How many.
            seconds: How long they may take together.
        """
        output, scratch, log = self._fresh()
        bounds = self._bounds(log, scratch / "fuzz", (output.parent, scratch), writes=False)
        words = (str(self._seeds.bert.parent), str(inputs))
        ended = self._run(words, scratch, bounds, seconds, instead=("fuzz", target))
        outcome = Outcome(("fuzz", target), ended)
        _look_at_findings(outcome, log, self._seeds)
        if ended.code:
            outcome.wrong.append(f"exit code {ended.code}: {ended.stderr[-_LAST_WORDS:]}")
        return outcome

    def _fresh(self) -> tuple[Path, Path, Path]:
        """Make room for an output, and for temporary files, and for findings."""
        output, scratch = self._folder / "output" / "out", self._folder / "scratch"
        for path in (output.parent, scratch):
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
        log = self._folder / "findings"
        log.unlink(missing_ok=True)
        return output, scratch, log

    def _run(
        self,
        line: tuple[str, ...],
        scratch: Path,
        bounds: Bounds,
        seconds: float,
        **request: object,
    ) -> Ended:
        running = self._zygote.start(
            *line,
            cwd=scratch,
            env=bounds.environment()
            | {"HOME": str(scratch), "XDG_CACHE_HOME": str(scratch), "TMPDIR": str(scratch)},
            audit=asdict(bounds),
            limits={"memory_bytes": MEMORY_BYTES, "seconds": seconds},
            **request,
        )
        if not running.ends_within(seconds):
            for child in running.kill():
                with suppress(psutil.NoSuchProcess):
                    child.kill()
        return running.wait()

    def _bounds(
        self, log: Path, directory: Path, writable: tuple[Path, ...], *, writes: bool
    ) -> Bounds:
        own = [str(directory)] if writes else []
        prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, str(REPOSITORY)}
        seeds = str(self._seeds.bert.parent)
        return Bounds(
            str(log),
            str(directory),
            tuple(os.path.realpath(p) for p in (*prefixes, seeds, *_SYSTEM, *_SYSTEM_FILES)),
            (*map(str, writable), *own),
        )


def _seconds(words: tuple[str, ...]) -> float:
    """Return how long a command may take; `run` stands for seven."""
    return SECONDS * (7 if words[0] == "run" else 1)


def _commands(case: Case, most: int | None) -> tuple[tuple[str, ...], ...]:
    if case.opens is Opens.WORDS:
        return (case.words,)
    commands = COMMANDS[case.opens]
    start = zlib.crc32(case.name.encode()) % len(commands)
    return (*commands[start:], *commands[:start])[:most]


def _filled(word: str, names: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda found: names[found[1]], word)


def _content(directory: Path, seeds: Seeds) -> dict[str, str]:
    """Return what lies in a case's directory and in the seeds."""
    found = {}
    for root in (directory, seeds.bert.parent):
        for path in root.rglob("*"):
            if path.is_symlink():
                found[str(path)] = f"link to {path.readlink()}"
            elif path.is_file():
                large = path.stat().st_size > 1 << 20
                found[str(path)] = str(path.stat().st_size) if large else file_digest(path)
            else:
                found[str(path)] = "directory" if path.is_dir() else "special"
    return found


def _changed(before: dict[str, str], after: dict[str, str]) -> dict[str, str]:
    return {
        path: after.get(path, "gone")
        for path in before.keys() | after.keys()
        if before.get(path) != after.get(path)
    }


def _look_at_findings(outcome: Outcome, log: Path, seeds: Seeds) -> None:
    lines = log.read_text().splitlines() if log.is_file() else []
    for line in dict.fromkeys(lines):
        kind = line.split(" ", 1)[0]
        outside = kind in ("read", "write") or (kind.startswith("os.") and "/" in line)
        (outcome.outside if outside else outcome.executions).append(line)
    if seeds.canary.exists():
        outcome.executions.append("the canary was created")
        seeds.canary.unlink()


def _look_at_words(outcome: Outcome, case: Case) -> None:
    ended = outcome.ended
    if ended.code < 0:
        outcome.deaths.append(f"signal {-ended.code}")
    if ended.seconds > (most := _seconds(outcome.words)):
        outcome.deaths.append(f"took more than {most:.0f} s")
    if "Traceback" in ended.stderr or "Traceback" in ended.stdout:
        outcome.tracebacks.append(ended.stderr[-2000:])
    allowed = case.codes | (CODES if case.accepted else frozenset())
    if ended.code not in allowed:
        outcome.wrong.append(f"exit code {ended.code}, not of {sorted(allowed)}: {ended.stderr}")
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    if ended.code in (0, 3, 4):
        return
    usage = ended.code == 2
    errors += [line for line in ended.stderr.splitlines() if usage and line.startswith("Error: ")]
    if len(errors) != 1:
        outcome.wrong.append(f"{len(errors)} lines of errors: {ended.stderr}")
    elif _CONTROL.search(errors[0]):
        outcome.wrong.append(f"control characters: {errors[0]!r}")
    elif case.says.lower() not in errors[0].lower() and not case.accepted:
        outcome.wrong.append(f"does not say {case.says!r}: {errors[0]}")


def _look_at_files(outcome: Outcome, left: dict[str, str], output: Path, scratch: Path) -> None:
    outcome.partial += [f"{path}: {what}" for path, what in left.items()]
    refused = outcome.ended.code not in (0, 3, 4)
    if refused and any(output.iterdir()):
        outcome.partial.append(f"left {[p.name for p in output.rglob('*')]}")
    stray = (*output.rglob(".tcompress-*.tmp"), *scratch.glob("tcompress-*"))
    outcome.partial += [f"left {path}" for path in stray]
