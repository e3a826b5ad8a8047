"""Checkpoints of one line of transformers in the other; TCOMPRESS_OTHER_PYTHON is its Python."""

import os
import subprocess
from pathlib import Path

import pytest

from .checkpoints import LIMIT, compare, write
from .fixtures import FAMILIES

ROOT = Path(__file__).parents[2]
VARIABLE = "TCOMPRESS_OTHER_PYTHON"
pytestmark = pytest.mark.skipif(VARIABLE not in os.environ, reason=f"needs {VARIABLE}")


def in_the_other_line(command: str, root: Path) -> None:
    words = (os.environ[VARIABLE], "-W", "ignore", "-m", "tests.families.checkpoints")
    done = subprocess.run(
        [*words, command, str(root)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_what_the_other_line_wrote_answers_the_same_here(tmp_path: Path) -> None:
    in_the_other_line("write", tmp_path)
    differences = compare(tmp_path)
    assert {name.split("/")[0] for name in differences} == set(FAMILIES)
    assert max(differences.values()) <= LIMIT, differences


def test_what_this_line_wrote_answers_the_same_there(tmp_path: Path) -> None:
    write(tmp_path)
    in_the_other_line("compare", tmp_path)
