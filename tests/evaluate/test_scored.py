import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, ndcg_score

from tcompress.evaluate import scored
from tcompress.evaluate.scored import Entity, entities_of


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_label_sets_score_as_scikit_learn_does(rng: np.random.Generator) -> None:
    truth, found = rng.random((2, 60, 4)) < 0.4
    values = scored.scored_label_sets(truth, found).values()
    assert values["micro_f1"] == pytest.approx(f1_score(truth, found, average="micro"))
    assert values["macro_f1"] == pytest.approx(f1_score(truth, found, average="macro"))
    assert values["exact_match"] == np.mean((truth == found).all(1))


def test_numbers_score_by_correlation_wherever_they_lie(rng: np.random.Generator) -> None:
    truth = 1e6 + rng.normal(size=80)
    found = 3 * truth + rng.normal(size=80)
    values = scored.scored_numbers(truth, found).values()
    assert values["pearson"] == pytest.approx(stats.pearsonr(truth, found).statistic)
    assert values["spearman"] == pytest.approx(stats.spearmanr(truth, found).statistic)
    assert values["mse"] == pytest.approx(np.mean((truth - found) ** 2))
    assert np.isnan(scored.scored_numbers(truth, np.ones(80)).values()["pearson"])


@pytest.mark.parametrize(
    ("tags", "entities"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("B-PER B-PER I-LOC", [("PER", 0, 1), ("PER", 1, 2), ("LOC", 2, 3)]),
        ("I-PER I-PER O I-PER", [("PER", 0, 2), ("PER", 3, 4)]),
        (
            "B-PER E-PER S-LOC U-LOC B-X L-X I-X",
            [
                ("PER", 0, 2),
                ("LOC", 2, 3),
                ("LOC", 3, 4),
                ("X", 4, 6),
                ("X", 6, 7),
            ],
        ),
        ("NOUN NOUN O-RING VERB", [("NOUN", 0, 2), ("O-RING", 2, 3), ("VERB", 3, 4)]),
        ("O O", []),
    ],
)
def test_entities_are_the_spans_that_conlleval_sees(
    tags: str, entities: list[tuple[str, int, int]]
) -> None:
    assert entities_of(tags.split()) == [Entity(*entity) for entity in entities]


def test_an_entity_counts_only_with_its_span_and_kind() -> None:
    truth = [["B-PER", "I-PER", "O", "B-LOC"], ["O"]]
    found = [["B-PER", "O", "O", "B-LOC"], ["B-LOC"]]
    values = scored.scored_entities(truth, found).values()
    assert values["entity_precision"] == pytest.approx(1 / 3)
    assert values["entity_recall"] == pytest.approx(1 / 2)
    assert values["entity_f1"] == pytest.approx(2 / 5)
    assert values["word_accuracy"] == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("right", "given", "exact", "f1"),
    [
        (("The Eiffel Tower!",), "eiffel tower", 1, 1),
        (("in Paris", "Paris, France"), "Paris", 0, 2 / 3),
        ((), "", 1, 1),
        ((), "Paris", 0, 0),
        (("Paris",), "", 0, 0),
    ],
)
def test_answers_score_by_the_closest_right_one(
    right: tuple[str, ...], given: str, exact: float, f1: float
) -> None:
    values = scored.scored_answers([right], [given]).values()
    assert values == {"exact_match": exact, "f1": pytest.approx(f1)}


def test_vectors_that_are_only_stretched_keep_direction_and_neighbours(
    rng: np.random.Generator,
) -> None:
    vectors = rng.normal(size=(50, 8))
    same = scored.scored_vectors(vectors, 3 * vectors).values()
    assert same == {"cosine": pytest.approx(1.0), "neighbour_agreement": 1.0}
    other = scored.scored_vectors(vectors, rng.normal(size=(50, 8))).values()
    assert abs(other["cosine"]) < 0.2
    assert other["neighbour_agreement"] < 0.2


def test_rankings_score_as_scikit_learn_does(rng: np.random.Generator) -> None:
    relevance = (rng.random((20, 40)) < 0.1) * rng.integers(1, 4, (20, 40))
    relevance[:, 0] = 1
    similarity = rng.random((20, 40))
    values = scored.scored_retrieval(relevance, similarity).values()
    assert values["ndcg_at_10"] == pytest.approx(ndcg_score(relevance, similarity, k=10))
    found = np.argsort(-similarity, axis=1)[:, :10]
    hits = np.take_along_axis(relevance > 0, found, 1).sum(1) / (relevance > 0).sum(1)
    assert values["recall_at_10"] == pytest.approx(hits.mean())


def test_no_answer_is_worse_than_the_worst(rng: np.random.Generator) -> None:
    truth, found = rng.random((2, 60, 4)) < 0.4
    numbers = rng.normal(size=(2, 60))
    tags = [[["B-X", "O"][i] for i in row] for row in rng.integers(0, 2, (60, 5))]
    given = [["O"] * 5] * 60
    for one in (
        scored.scored_label_sets(truth, found),
        scored.scored_numbers(*numbers),
        scored.scored_entities(tags, given),
    ):
        main = one.metrics[one.main]
        assert main(one.worst.sum(0)) <= main(one.sums.sum(0))
