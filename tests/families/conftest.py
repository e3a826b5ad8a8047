from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import transformers

from tcompress.data import Examples
from tcompress.encoder import Encoder, open_encoder

from .family_fixture import FamilyFixture
from .fixtures import FAMILIES

COUNT = 60


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "cell(column): the column of docs/support.md that the test stands for"
    )
    # DeBERTa and ModernBERT of transformers 4 compile functions while they are imported
    config.addinivalue_line("filterwarnings", "ignore:`torch.jit.script:DeprecationWarning")


@pytest.fixture(scope="session", autouse=True)
def _versions(record_testsuite_property: Callable[[str, object], None]) -> None:
    record_testsuite_property("transformers", transformers.__version__)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> FamilyFixture:
    """One family after the other; the report names the cell that the test stands for."""
    found: FamilyFixture = FAMILIES[request.param]
    cells = [("cell", mark.args[0]) for mark in request.node.iter_markers("cell")]
    # not record_property: it warns about the default form of the report, which has properties too
    request.node.user_properties += [
        ("family", found.name), ("limitations", found.limitations), *cells,
    ]  # fmt: skip
    return found


@pytest.fixture(scope="session")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Callable[[FamilyFixture], Path]:
    """Write a family's model once."""
    root = tmp_path_factory.mktemp("families")

    def get(family: FamilyFixture) -> Path:
        directory = root / family.name
        if not directory.exists():
            family.write(directory, 0)
        return directory

    return get


@pytest.fixture
def directory(family: FamilyFixture, directories: Callable[[FamilyFixture], Path]) -> Path:
    return directories(family)


@pytest.fixture
def encoder(directory: Path) -> Encoder:
    return open_encoder(directory)


@pytest.fixture
def data_file(family: FamilyFixture, tmp_path: Path) -> Path:
    """The family's labelled examples as a file that every command reads."""
    examples = family.examples(COUNT)
    if examples.texts is not None:
        path = tmp_path / "data.csv"
        pd.DataFrame({"text": examples.texts, "label": examples.labels}).to_csv(path, index=False)
        return path
    path = tmp_path / "data.npz"
    np.savez(path, **_arrays(examples))
    return path


def _arrays(examples: Examples) -> dict[str, np.ndarray]:
    found = {"inputs": examples.inputs, "mask": examples.mask, "labels": examples.labels}
    return {name: np.asarray(value) for name, value in found.items() if value is not None}
