import json

import pytest

from tcompress.errors import ArtifactError
from tcompress.plan import CompressionPlan, LayerPlan, Precision


def test_a_plan_survives_json(uneven_plan: CompressionPlan) -> None:
    plan = uneven_plan.with_precision(Precision.INT8)
    assert CompressionPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_sparsity_is_the_fraction_removed(uneven_plan: CompressionPlan) -> None:
    assert uneven_plan.head_sparsity == pytest.approx(1 - 4 / 12)
    assert CompressionPlan.dense((4, 4), (8, 8)).head_sparsity == 0


@pytest.mark.parametrize(
    "heads", [pytest.param((0, 9), id="too-large"), pytest.param((2, 1), id="not-ascending")]
)
def test_indices_that_do_not_exist_are_refused(heads: tuple[int, ...]) -> None:
    with pytest.raises(ArtifactError, match="layer 0 heads must be ascending indices below 4"):
        CompressionPlan((LayerPlan(heads, (0,)),), (4,), (1,))


@pytest.mark.parametrize("neurons", [[[0, 10**12]], [[3, 2]], [[-1, 2]], "x", [["a", "b"]]])
def test_a_broken_document_is_refused(uneven_plan: CompressionPlan, neurons: object) -> None:
    document = uneven_plan.to_json()
    document["layers"][0]["neurons"] = neurons
    with pytest.raises(ArtifactError, match="not a compression plan"):
        CompressionPlan.from_json(document)
