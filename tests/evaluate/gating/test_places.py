import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

import numpy as np
import pytest
import yaml

from tcompress.data import Columns, read_examples
from tcompress.encoder import open_encoder
from tcompress.evaluate.gating.baseline import record_baseline
from tcompress.evaluate.gating.command import gate
from tcompress.evaluate.gating.defects import write_damaged

ROOT = Path(__file__).parents[3]
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = {step["name"]: step for step in ACTION["runs"]["steps"]}


class Repository(NamedTuple):
    """A checkout with a recorded baseline, two candidates and data."""

    directory: Path
    runner: Path


class Step(NamedTuple):
    code: int
    outputs: dict[str, str]
    summary: str
    stderr: str


@pytest.fixture(scope="module")
def repository(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Repository:
    root = tmp_path_factory.mktemp("a repository")
    inputs = np.random.default_rng(3).standard_normal((400, 6, 4), dtype=np.float32)
    encoder = open_encoder(source)
    found = encoder.predict({"inputs": inputs, "attention_mask": np.ones((400, 6), dtype=np.int64)})
    data = root / "held out.npz"
    np.savez(data, inputs=inputs, labels=np.asarray(encoder.labels)[found.argmax(1)])
    record_baseline(root / "baseline.json", source, read_examples(data, Columns())).write()
    write_damaged("zeroed layer", source, root / "zeroed; exit 0")
    (root / "same").symlink_to(source)
    runner = root / "runner"
    runner.mkdir()
    return Repository(root, runner)


def environment(**more: object) -> dict[str, str]:
    """The variables of a runner whose Python is this one."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GITHUB_")}
    return kept | {"PATH": path} | {name: str(value) for name, value in more.items()}


def judge_step(repository: Repository, **inputs: str) -> Step:
    """Run the script of the action's step as a runner would."""
    step = STEPS["Judge"]
    given = {name: declared["default"] for name, declared in ACTION["inputs"].items()} | inputs
    names = {variable: re.search(r"inputs\.([\w-]+)", v)[1] for variable, v in step["env"].items()}
    outputs, summary = (repository.runner / name for name in ("output", "summary"))
    outputs.unlink(missing_ok=True)
    summary.unlink(missing_ok=True)
    variables = {variable: given[name] for variable, name in names.items()}
    variables |= {
        "GITHUB_ACTIONS": "true",
        "GITHUB_OUTPUT": outputs,
        "RUNNER_TEMP": repository.runner,
    }
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=repository.directory,
        env=environment(**variables, GITHUB_STEP_SUMMARY=summary),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == ""
    found = dict(line.split("=", 1) for line in outputs.read_text().splitlines())
    told = summary.read_text() if summary.exists() else ""
    return Step(done.returncode, found, told, done.stderr)


def run_with(folder: Path, command: str, script: list[str], **more: str) -> Any:
    """Run a script where a command shows its arguments, one per line, and ends with 3."""
    shown = folder / command
    shown.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\nexit 3\n")
    shown.chmod(0o755)
    path = {"PATH": f"{folder}:/usr/bin:/bin"}
    return subprocess.run(
        script, cwd=folder, env=path | more, capture_output=True, text=True, check=False
    )


INPUTS = {"baseline": "baseline.json", "data": "held out.npz", "max-drop": "0.02"}


def test_action_passes_a_model_like_its_baseline(repository: Repository):
    args = "--alpha\n0.1\r\n\n--text-column=$(touch owned)\n--quiet"
    done = judge_step(repository, **INPUTS, candidate="same", args=args)
    assert done.code == 0, done.stderr
    assert not (repository.directory / "owned").exists()
    assert (done.outputs["verdict"], done.outputs["exit-code"]) == ("pass", "0")
    report = json.loads(Path(done.outputs["report"]).read_text())
    assert report["alpha"] == 0.1
    assert done.stderr.startswith("::notice title=tcompress gate::PASS: accuracy stayed the same")
    assert ET.parse(done.outputs["junit"]).getroot().get("failures") == "0"
    assert "tcompress gate --max-drop 0.02 --alpha 0.1 --baseline baseline.json" in done.summary


def test_action_fails_a_zeroed_layer(repository: Repository):
    done = judge_step(repository, **INPUTS, candidate="zeroed; exit 0", args="--quiet")
    assert done.code == 3, done.stderr
    assert (done.outputs["verdict"], done.outputs["exit-code"]) == ("regression", "3")
    assert done.stderr.startswith(
        "::error title=tcompress gate%3A accuracy_drop::regression: accuracy dropped "
    )
    assert done.summary == Path(done.outputs["markdown"]).read_text() + "\n"


def test_action_gives_no_verdict_where_the_gate_gave_none(repository: Repository):
    done = judge_step(repository, **INPUTS, candidate="same", args="--alpha=7")
    assert (done.code, done.outputs["verdict"], done.summary) == (2, "", "")


def test_no_script_of_the_action_holds_an_expression():
    scripts = [step["run"] for step in STEPS.values() if "run" in step]
    assert scripts
    assert [script for script in scripts if "${{" in script] == []


def test_action_uses_other_actions_at_a_commit():
    used = [step["uses"] for step in STEPS.values() if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", name) for name in used)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        pytest.param("", ["-c", "/at/constraints.txt", "/at"], id="the-actions-own"),
        pytest.param("tcompress==1; x", ["--", "tcompress==1; x"], id="a-requirement"),
    ],
)
def test_install_step_hands_pip_one_requirement(tmp_path: Path, asked: str, words: list[str]):
    script = ["bash", "-e", "-o", "pipefail", "-c", STEPS["Install tcompress"]["run"]]
    done = run_with(tmp_path, "python", script, INPUT_INSTALL=asked, GITHUB_ACTION_PATH="/at")
    assert done.stdout.splitlines() == ["-m", "pip", "install", *words]


def test_gitlab_job_ends_as_the_gate_and_keeps_its_junit_report(tmp_path: Path):
    job = yaml.safe_load((ROOT / "integrations" / "gitlab.yml").read_text())[".tcompress-gate"]
    chosen = {"TCOMPRESS_CANDIDATE": "a b; exit 0", "TCOMPRESS_MAX_DROP": "0.02"}
    done = run_with(
        tmp_path,
        "tcompress",
        ["sh", "-e", "-c", "\n".join(job["script"])],
        **(job["variables"] | chosen | {"CI_PROJECT_DIR": "."}),
    )
    assert done.returncode == 3
    gate_name, junit, markdown, *others = done.stdout.splitlines()
    assert (gate_name, others) == ("gate", ["--candidate=a b; exit 0", "--max-drop=0.02"])
    reports = job["artifacts"]["reports"]
    assert (junit, markdown) == (
        f"--junit=./{reports['junit']}",
        "--markdown=./tcompress-gate/gate.md",
    )
    assert (tmp_path / reports["junit"]).parent.is_dir()
    assert job["artifacts"]["when"] == "always"


def test_places_name_options_that_the_gate_has():
    scripts = [STEPS["Judge"]["run"], (ROOT / "integrations" / "gitlab.yml").read_text()]
    known = {name for option in gate.params for name in (*option.opts, *option.secondary_opts)}
    named = set(re.findall(r"(?<![\w-])--[a-z-]+", " ".join(scripts)))
    assert len(named) > 5
    assert named - known == set()


def test_hook_judges_before_a_push():
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["entry"].split() == ["tcompress", "gate"]
    assert (hook["stages"], hook["pass_filenames"]) == (["pre-push", "manual"], False)
    checked = [
        sys.executable,
        "-m",
        "pre_commit",
        "validate-manifest",
        ROOT / ".pre-commit-hooks.yaml",
    ]
    assert subprocess.run(checked, check=False).returncode == 0
