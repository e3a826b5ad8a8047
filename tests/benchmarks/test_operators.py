from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner

from tcompress.encoder import Encoder

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
TOKENS = 16


@pytest.fixture(scope="module")
def operators() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import operators

        return operators


@pytest.fixture(params=("fp32", "int8"))
def exported(
    request: pytest.FixtureRequest, model_directories: Callable, tmp_path: Path, tcompress: Callable
) -> tuple[str, Path]:
    target = tmp_path / "onnx"
    model = model_directories("bert")
    result = tcompress("export", "--model", model, "--precision", request.param, "--output", target)
    assert result.exit_code == 0, result.output
    return request.param, target / "model.onnx"


def test_products_in_the_profile_are_those_of_the_encoder(
    operators: ModuleType, exported: tuple[str, Path], bert: Encoder
) -> None:
    precision, path = exported
    found = operators.profile(path, threads=1, batch=2, tokens=TOKENS, calls=5)
    last, width = bert.anatomy.layers[-1], bert.anatomy.hidden_size
    inner = last.num_heads * last.head_size
    # of the last layer only the first token is computed, and behind it pooler and classifier
    for_one = 2 * width * inner + 2 * TOKENS * inner + 2 * width * last.num_neurons
    spared = (TOKENS - 1) * for_one
    head = width * (width + len(bert.labels))
    assert found.int8_macs + found.float_macs == 2 * (bert.anatomy.macs(TOKENS) - spared + head)
    attention = 2 * TOKENS * inner * (2 * TOKENS + 1) * 2  # always in floating point
    assert (found.int8_macs > 0) == (precision == "int8")
    assert found.float_macs >= attention
    assert min(found.products_ms, found.run_ms) > 0


def test_report_sets_the_run_beside_the_floor(
    operators: ModuleType, exported: tuple[str, Path]
) -> None:
    words = [str(exported[1]), "--tokens", str(TOKENS), "--calls", "5", "--threads", "1"]
    result = CliRunner().invoke(operators.main, words)
    assert result.exit_code == 0, result.output
    product = {"fp32": "MatMul", "int8": "DynamicQuantizeMatMul"}[exported[0]]
    assert f"\n{product} " in result.output
    assert "floor: " in result.output
