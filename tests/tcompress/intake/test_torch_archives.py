import io
import json
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tcompress.errors import ArtifactError
from tcompress.intake.program_archives import check_program
from tcompress.intake.torch_operators import check_operator
from tcompress.intake.torchscript_archives import check_torchscript


class Branching(nn.Module):
    """What own modules may do that the plain encoder does not."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute."""
        halves = x.chunk(2, dim=-1)
        y = torch.einsum("bi,bj->bij", halves[0], halves[1]).softmax(-1)
        y = torch.cat([y.sum(1), y.mean(1), y.new_zeros(x.shape[0], 1)], dim=-1)
        return torch.where(y > 0.1, y, torch.full_like(y, 0.5)).clamp(0, 1)


def scripted(module: nn.Module, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.freeze(torch.jit.trace(module.eval(), (torch.ones(2, 4),)))
        traced.save(str(path))
    return path


def test_modules_of_users_pass(tmp_path: Path) -> None:
    check_torchscript(scripted(Branching(), tmp_path / "model.pt"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch")
        program = torch.export.export(
            Branching(), (torch.ones(2, 4),), dynamic_shapes=({0: batch},)
        )
        torch.export.save(program, tmp_path / "model.pt2")
    check_program(tmp_path / "model.pt2")


class Writing(nn.Module):
    """A module that writes a file each time it is called."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: Tensor) -> Tensor:
        """Write."""
        torch.save(x, self.path)
        return x


def test_a_module_that_writes_files_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Writing(str(tmp_path / "canary"))).save(str(tmp_path / "model.pt"))
    with pytest.raises(ArtifactError, match="'aten::save', which is not for computing"):
        check_torchscript(tmp_path / "model.pt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", ["save", "from_file", "warn", "_print", "set_", "wait", "no_such"])
def test_operators_that_do_more_than_compute_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"aten::{name}"):
        check_operator("aten", name)


@pytest.mark.parametrize(
    "name", ["einsum", "gelu", "scaled_dot_product_attention", "conv1d", "cat"]
)
def test_operators_that_compute_pass(name: str) -> None:
    check_operator("aten", name)


def edited(path: Path, change: Callable[[dict], object]) -> Path:
    """Change the graph of a program."""
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(stream, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("models/model.json"):
                document = json.loads(content)
                change(document)
                content = json.dumps(document).encode()
            target.writestr(name, content)
    path.write_bytes(stream.getvalue())
    return path


@pytest.fixture
def program(tmp_path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(nn.Linear(4, 2), (torch.ones(2, 4),))
        torch.export.save(exported, tmp_path / "model.pt2")
    return tmp_path / "model.pt2"


def test_a_program_that_was_packed_again_still_passes(program: Path) -> None:
    check_program(edited(program, lambda document: None))
    torch.export.load(program)


@pytest.mark.parametrize(
    "guard",
    [
        "L['x'].__class__",
        "(lambda: 1)()",
        "[x for x in ()]",
        "f'{L}'",
        "9**9**9",
        "torch.hub.os.system('x') == 0",
        "L['x\"'].size()[0] == 1",
        "1 if L else 2",
    ],
)
def test_guards_that_are_more_than_comparisons_are_refused(program: Path, guard: str) -> None:
    edited(program, lambda document: document.update(guards_code=[guard]))
    with pytest.raises(ArtifactError, match=r"evaluates|the name"):
        check_program(program)
