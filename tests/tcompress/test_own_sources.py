"""Which files the digest of a user's module covers."""

import sys
from pathlib import Path

import pytest

from tcompress.own_sources import source_digest

_FILES = {
    "mine/__init__.py": "",
    "mine/model.py": "import torch\nfrom . import layers\nfrom .sizes import WIDTH\n",
    "mine/layers.py": "def late():\n    import spaced.deep.further\n",
    "mine/sizes.py": "WIDTH = 3\n",
    "mine/unused.py": "",
    "spaced/deep/further.py": "import mine.model, nowhere, json\n",
    "site-packages/installed.py": "",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in _FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for place in (tmp_path, tmp_path / "site-packages"):
        monkeypatch.syspath_prepend(place)
    for package in ("mine", "spaced", "spaced.deep"):  # of another test's folder
        sys.modules.pop(package, None)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "covered"),
    [
        ("mine/__init__.py", True),
        ("mine/model.py", True),
        ("mine/layers.py", True),
        ("mine/sizes.py", True),
        ("spaced/deep/further.py", True),
        ("mine/unused.py", False),
        ("site-packages/installed.py", False),
    ],
)
def test_what_is_imported_counts_unless_it_is_installed(
    root: Path, name: str, covered: bool
) -> None:
    (root / "mine" / "sizes.py").write_text("WIDTH = 3\nimport installed\n")
    before = source_digest("mine.model")
    assert before is not None
    (root / name).write_text((root / name).read_text() + "# edited\n")
    assert (source_digest("mine.model") != before) is covered


def test_what_cannot_be_found_or_read_has_no_digest_or_no_imports(root: Path) -> None:
    assert source_digest("nowhere.at.all") is None
    (root / "mine" / "layers.py").write_text("this is no Python")
    assert source_digest("mine.layers") is not None
    assert source_digest("installed") is not None, "the factory's own file, wherever it is"
