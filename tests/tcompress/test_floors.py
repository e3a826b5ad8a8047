import json
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tcompress as library
from tcompress import floors
from tcompress.errors import MachineError

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    """Make importlib.metadata tell other versions; None for a library that is not there."""
    real = metadata.version

    def install(**versions: str | None) -> None:
        def version(name: str) -> str:
            found = versions[name] if name in versions else real(name)
            if found is None:
                raise metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(metadata, "version", version)

    floors.check_floors.cache_clear()
    yield install
    floors.check_floors.cache_clear()


def test_floors_are_those_that_pip_is_told() -> None:
    asked = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    ranges = {wanted.name: wanted.specifier for wanted in map(Requirement, asked)}
    for name, needs in floors.FLOORS.items():
        assert ranges[name] == Requirement(f"{name}{needs}").specifier


def test_one_line_names_all_that_is_too_old_and_what_installs_it(installed, tcompress) -> None:
    installed(torch="2.9.1+cpu", onnx=None, onnxruntime="1.24.0")
    result = tcompress("score")
    assert result.exit_code == 6
    assert result.stderr == (
        "error: too old to open files of unknown origin: onnx missing, torch 2.9.1+cpu; "
        'pip install "onnx>=1.21" "torch>=2.10"\n'
    )


def test_python_is_refused_as_the_command_line_is(installed, tmp_path: Path) -> None:
    installed(safetensors="0.7.0")
    with pytest.raises(MachineError, match=r"safetensors 0\.7\.0; pip install"):
        library.load(tmp_path)


@pytest.mark.parametrize(
    ("version", "holds"),
    [("4.56.2", False), ("4.57.6", True), ("5.0.0", False), ("5.9.0", False), ("5.10.1", True)],
)
def test_two_lines_of_transformers_hold(installed, version: str, holds: bool) -> None:
    installed(transformers=version, kernels=None)
    found = {floor.name: floor.holds for floor in floors.floors()}
    assert found["transformers"] is holds


@pytest.mark.parametrize(("version", "refused"), [("4.57.6", True), ("5.10.1", False)])
def test_the_older_line_runs_without_code_from_the_hub(
    installed, version: str, refused: bool
) -> None:
    installed(transformers=version, kernels="0.10.0")
    assert [("uninstall kernels" in line) for line in floors.faults(floors.floors())] == (
        [True] if refused else []
    )


def test_doctor_tells_what_others_refuse(installed, tcompress) -> None:
    installed(torch="2.9.1")
    told = tcompress("doctor", "--quick", "--json")
    assert told.exit_code == 0, told.stderr
    document = json.loads(told.stdout)["floors"]
    assert document["needs"] == floors.FLOORS
    assert ["torch 2.9.1" in line for line in document["faults"]] == [True]
    assert "torch 2.9.1; pip install" in tcompress("doctor", "--quick").stdout
