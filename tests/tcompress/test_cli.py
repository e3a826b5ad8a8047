import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from tcompress.cli import _COMMANDS, cli
from tcompress.errors import DataError, MissingExtraError, RequestError, TcompressError

COMMANDS = list(_COMMANDS)
README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_answers_without_torch(name: str) -> None:
    words = [name, "--help"] if name else ["--help"]
    script = (
        "import sys\nfrom tcompress.cli import cli\n"
        f"cli({words!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'numpy', 'onnx', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout


def _command(name: str) -> click.Command:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    return command


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_an_example_and_a_place_in_the_readme(name: str) -> None:
    command = _command(name)
    assert command.help
    assert f"tcompress {name}" in command.help.split("Example:")[1]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name}: {parameter.opts[0]} has no help"
    assert f"tcompress {name}" in README.read_text()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_the_common_options(name: str) -> None:
    options = {opt for parameter in _command(name).params for opt in parameter.opts}
    assert {"--json", "--quiet", "--seed", "--workspace"} <= options


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestError("x"), 2),
        (DataError("x"), 5),
        (MissingExtraError("demo", "x"), 6),
        (OSError(28, "No space left on device"), 6),
        (TcompressError("x"), 1),
        (ZeroDivisionError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_what_is_raised_becomes_one_line_and_an_exit_code(
    tcompress, monkeypatch, error: BaseException, code: int
) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(_command("doctor"), "callback", fail)
    result = tcompress("doctor")
    assert result.exit_code == code
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_a_missing_extra_prints_the_line_that_installs_it() -> None:
    assert 'pip install "tcompress[demo]"' in str(MissingExtraError("demo", "the demo"))


def test_the_readme_lists_the_exit_codes_that_help_lists(tcompress) -> None:
    listed = re.findall(r"^ +(\d+)  ", tcompress("--help").stdout, re.MULTILINE)
    assert listed == ["0", "1", "2", "3", "4", "5", "6", "129", "130", "143"]
    for code in listed:
        assert re.search(rf"^\| {code} \|", README.read_text(), re.MULTILINE)


def test_inspect_names_a_changed_file(text_workspace: Path, tcompress) -> None:
    tcompress("quantize", "--workspace", text_workspace)
    artifact = text_workspace / "artifacts/quantize"
    assert json.loads(tcompress("inspect", artifact, "--json").stdout)["verified"] is True
    with (artifact / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, 2)
        stream.write(b"\x01")
    result = tcompress("inspect", artifact, "--json")
    assert result.exit_code == 5
    assert json.loads(result.stdout)["verified"] is False
    assert "model.safetensors differs from the manifest" in result.stderr
    refused = tcompress("export", "--model", artifact, "--output", text_workspace / "x")
    assert refused.exit_code == 5


def test_init_checks_model_and_data_at_once(tcompress, model_directories, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(
        "text,label\n" + "".join(f"film {i},great\n" for i in range(20))
    )
    model = model_directories("bert")
    for words, code, message in (
        ([model, "--data", tmp_path / "d.csv"], 5, "label 'great' is not known to the model"),
        ([model], 2, "name the examples with --data FILE"),
        ([tmp_path / "none", "--data", tmp_path / "d.csv"], 5, "no such model directory"),
        (["--demo", "digits", "--data", tmp_path / "d.csv"], 2, "leave MODEL and the data"),
        ([model, "--train", tmp_path / "d.csv"], 2, "missing: --validation, --test"),
    ):
        result = tcompress("init", *words, "--workspace", tmp_path / "w")
        assert result.exit_code == code, result.output
        assert message in result.stderr
    assert not (tmp_path / "w").exists()


def test_a_workspace_file_with_an_unknown_key_is_refused(tcompress, text_workspace: Path) -> None:
    path = text_workspace / "tcompress.toml"
    path.write_text(path.read_text() + '\n[data2]\nfile = "x"\n')
    result = tcompress("score", "--workspace", text_workspace)
    assert result.exit_code == 2
    assert "unknown key 'data2'" in result.stderr
