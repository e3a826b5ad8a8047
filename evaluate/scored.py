"""Answers as sums over examples, from which every metric of a task follows.

Each example adds a row of numbers, and a metric is a function of the rows' sum. So intervals and
drops come from drawing examples again, whatever the task is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from string import punctuation
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .metrics import Metric, Values

_BLOCK = 1024  # examples whose similarities are held in memory together
RANKS = 10
"""Ranks that count in retrieval."""

TASK_METRICS = (
    *("micro_f1", "macro_f1", "exact_match", "f1", "pearson", "spearman"),
    *("entity_f1", "entity_precision", "entity_recall", "word_accuracy"),
    *("cosine", "neighbour_agreement", f"ndcg_at_{RANKS}", f"recall_at_{RANKS}"),
)
"""What can be decided by; better when higher."""


@dataclass(frozen=True, eq=False)
class Scored:
    """What each example's answer adds to the sums that metrics are computed from.

    Attributes:
        sums: `(examples, columns)`.
        worst: The same for an answer as wrong as can be, `(examples, columns)`.
        metrics: By name, functions of sums over examples, `(..., columns)` to `(...)`; all but
            the errors are better when higher.
        main: Name of the metric that decides.
    """

    sums: Values
    worst: Values
    metrics: Mapping[str, Metric]
    main: str

    def values(self) -> dict[str, float]:
        """Return every metric on all examples."""
        total = self.sums.sum(0)
        return {name: float(metric(total)) for name, metric in self.metrics.items()}


class Entity(NamedTuple):
    """A span of words that is named.

    Attributes:
        kind: What it is.
        start: Its first word.
        stop: The word behind its last.
    """

    kind: str
    start: int
    stop: int


def scored_label_sets(truth: ArrayLike, found: ArrayLike) -> Scored:
    """Score answers that may have several labels.

    Args:
        truth: Which labels are right, `(examples, labels)`.
        found: Which labels were given, `(examples, labels)`.
    """
    right, given = np.asarray(truth, dtype=bool), np.asarray(found, dtype=bool)
    exact = (right == given).all(1)[:, None]
    # columns: examples, exact, then hits, missed and wrong labels per label
    sums = np.hstack([np.ones_like(exact), exact, right & given, right & ~given, given & ~right])
    worst = np.hstack([np.ones_like(exact), 0 * exact, 0 * right, right, ~right])
    metrics = {
        "micro_f1": partial(_label_f1, micro=True),
        "macro_f1": partial(_label_f1, micro=False),
        "exact_match": partial(_mean, column=1),
    }
    return Scored(sums.astype(np.float64), worst.astype(np.float64), metrics, "micro_f1")


def scored_numbers(truth: ArrayLike, found: ArrayLike) -> Scored:
    """Score numbers by how they go with the right ones.

    Ranks are those among all examples, also where examples are drawn again.

    Args:
        truth: Right numbers, `(examples,)`.
        found: Numbers given, `(examples,)`.
    """
    right, given = (np.asarray(x, dtype=np.float64) for x in (truth, found))
    ranks = [stats.rankdata(x) for x in (right, given)]
    error = ((right - given) ** 2)[:, None]
    opposite = given.mean() - np.sign(right - right.mean()) * np.abs(given - given.mean()).max()
    last = len(right) + 1 - ranks[0]
    rows = [
        np.hstack([np.ones_like(error), error, _moments(right, y), _moments(ranks[0], r)])
        for y, r in ((given, ranks[1]), (opposite, last))
    ]
    metrics = {
        "pearson": partial(_correlation, first=2),
        "spearman": partial(_correlation, first=7),
        "mse": partial(_mean, column=1),
    }
    return Scored(rows[0], rows[1], metrics, "pearson")


def scored_entities(truth: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> Scored:
    """Score tags by the entities that they mark: right are those of equal span and kind.

    Args:
        truth: Right tag of each word of each example.
        found: Tags given.
    """
    rows, worst = [], []
    for right, given in zip(truth, found, strict=True):
        entities = Counter(entities_of(right)), Counter(entities_of(given))
        wanted, got = (sum(side.values()) for side in entities)
        words = sum(a == b for a, b in zip(right, given, strict=True))
        rows.append([1, (entities[0] & entities[1]).total(), wanted, got, words, len(right)])
        worst.append([1, 0, wanted, max(wanted, got), 0, len(right)])
    metrics: dict[str, Metric] = {
        "entity_f1": _entity_f1,
        "entity_precision": partial(_share, part=1, whole=3),
        "entity_recall": partial(_share, part=1, whole=2),
        "word_accuracy": partial(_share, part=4, whole=5),
    }
    sums, worse = (np.asarray(x, dtype=np.float64) for x in (rows, worst))
    return Scored(sums, worse, metrics, "entity_f1")


def entities_of(tags: Sequence[str]) -> list[Entity]:
    """Return the entities that tags mark, by the rules of conlleval.

    `B-` begins an entity; `I-` continues one of its kind and else begins one; `E-`, `S-`, `L-` and
    `U-` close one; tags without a prefix mark runs of themselves, `O` marks nothing.

    Args:
        tags: Tag of each word.
    """
    found: list[Entity] = []
    begun: Entity | None = None
    before = "O"
    for word, tag in enumerate((*tags, "O")):
        prefix, kind = _tag_parts(tag)
        goes_on = begun is not None and begun.kind == kind and before not in "ESLU"
        if begun is not None and not (goes_on and prefix in "IEL"):
            found.append(begun._replace(stop=word))
            begun = None
        if begun is None and prefix != "O":
            begun = Entity(kind, word, word)
        before = prefix
    return found


def entity_words(entity: Entity, words: Sequence[str]) -> str:
    """Return an entity for people: its kind and its words.

    Args:
        entity: The entity.
        words: Words of the example.
    """
    return f"{entity.kind}: {' '.join(words[entity.start : entity.stop])}"


def matches_answer(rights: Sequence[str], given: str) -> bool:
    """Say whether an answer is one of the right ones, as exact match does.

    Args:
        rights: Right answers to a question; none, or an empty one, where there is none.
        given: The answer, empty for none.
    """
    return any(_answer_scores(right, given)[0] == 1 for right in (rights or ("",)))


def scored_answers(truth: Sequence[Sequence[str]], found: Sequence[str]) -> Scored:
    """Score answers to questions, each by the right answer that it is closest to.

    Args:
        truth: Right answers to each question; none, or an empty one, where there is none.
        found: Answers given, empty for none.

    Reference:
        SQuAD, Rajpurkar et al. 2016, arXiv:1606.05250, section 6.1.
    """
    rows = [
        [1.0, *np.max([_answer_scores(right, given) for right in (rights or ("",))], axis=0)]
        for rights, given in zip(truth, found, strict=True)
    ]
    sums = np.asarray(rows, dtype=np.float64)
    worst = np.hstack([np.ones((len(sums), 1)), np.zeros((len(sums), 2))])
    metrics = {"f1": partial(_mean, column=2), "exact_match": partial(_mean, column=1)}
    return Scored(sums, worst, metrics, "f1")


def scored_vectors(baseline: ArrayLike, candidate: ArrayLike) -> Scored:
    """Score vectors by how close they are to the baseline's, and whether neighbours stay.

    Args:
        baseline: The baseline's vectors, `(examples, width)`.
        candidate: The vectors, likewise.
    """
    before, after = (_unit(np.asarray(x, dtype=np.float64)) for x in (baseline, candidate))
    cosine = (before * after).sum(1)
    same = nearest_neighbours(before) == nearest_neighbours(after)
    one = np.ones(len(before))
    metrics = {"cosine": partial(_mean, column=1), "neighbour_agreement": partial(_mean, column=2)}
    sums, worst = np.stack([one, cosine, same], 1), np.stack([one, -one, 0 * one], 1)
    return Scored(sums, worst, metrics, "cosine")


def nearest_neighbours(vectors: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the position of each vector's nearest other one, `(examples,)`.

    Args:
        vectors: Of length 1, `(examples, width)`.
    """
    found = np.zeros(len(vectors), dtype=np.int64)
    for start in range(0, len(vectors), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(vectors)))
        similarity = vectors[rows] @ vectors.T
        similarity[rows - start, rows] = -np.inf
        found[rows] = similarity.argmax(1)
    return found


def scored_retrieval(relevance: ArrayLike, similarity: ArrayLike) -> Scored:
    """Score how documents are ranked for queries.

    Args:
        relevance: How relevant each document is, `(queries, documents)`, not negative.
        similarity: How close it was found, `(queries, documents)`.
    """
    wanted, given = np.asarray(relevance, dtype=np.float64), np.asarray(similarity)
    ranked = np.take_along_axis(wanted, np.argsort(-given, axis=1, kind="stable"), 1)[:, :RANKS]
    ideal = -np.sort(-wanted, axis=1)[:, :RANKS]
    weights = 1 / np.log2(np.arange(2, ranked.shape[1] + 2))
    gain = (ranked @ weights) / np.maximum(ideal @ weights, np.finfo(float).tiny)
    recall = (ranked > 0).sum(1) / np.maximum((wanted > 0).sum(1), 1)
    one = np.ones(len(wanted))
    metrics = {
        f"ndcg_at_{RANKS}": partial(_mean, column=1),
        f"recall_at_{RANKS}": partial(_mean, column=2),
    }
    sums, worst = np.stack([one, gain, recall], 1), np.stack([one, 0 * one, 0 * one], 1)
    return Scored(sums, worst, metrics, f"ndcg_at_{RANKS}")


def _tag_parts(tag: str) -> tuple[str, str]:
    """Return prefix and kind of a tag; one without prefix goes on as long as it stays the same."""
    if tag == "O":
        return "O", ""
    prefix, dash, kind = tag.partition("-")
    return (prefix, kind) if dash and prefix in tuple("BIESLU") else ("I", tag)


def _answer_scores(right: str, given: str) -> tuple[float, float]:
    """Return exact match and F1 over words."""
    ours, theirs = (_answer_words(text) for text in (given, right))
    if not ours or not theirs:
        return (float(ours == theirs),) * 2
    shared = (Counter(ours) & Counter(theirs)).total()
    return float(ours == theirs), 2 * shared / (len(ours) + len(theirs))


def _answer_words(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in punctuation)
    return [word for word in kept.split() if word not in ("a", "an", "the")]


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: NDArray[np.float64] = vectors / np.maximum(lengths, np.finfo(float).tiny)
    return found


def _moments(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    # A correlation is the same whatever both are shifted by; small numbers keep it exact.
    x, y = x - x.mean(), y - y.mean()
    return np.stack([x, y, x * x, y * y, x * y], axis=1)


def _correlation(sums: Values, first: int) -> Any:
    n = sums[..., 0]
    x, y, xx, yy, xy = (sums[..., first + i] / n for i in range(5))
    spread = (xx - x * x) * (yy - y * y)
    known = spread > 0
    return np.where(known, (xy - x * y) / np.sqrt(np.where(known, spread, 1.0)), np.nan)


def _mean(sums: Values, column: int) -> Any:
    return sums[..., column] / sums[..., 0]


def _share(sums: Values, part: int, whole: int) -> Any:
    return _divided(sums[..., part], sums[..., whole])


def _entity_f1(sums: Values) -> Any:
    return _divided(2 * sums[..., 1], sums[..., 2] + sums[..., 3])


def _label_f1(sums: Values, micro: bool) -> Any:
    hits, missed, wrong = np.split(sums[..., 2:], 3, axis=-1)
    if micro:
        hits, missed, wrong = (x.sum(-1) for x in (hits, missed, wrong))
    scores = _divided(2 * hits, 2 * hits + missed + wrong)
    return scores if micro else scores.mean(-1)


def _divided(numerator: Values, denominator: Values) -> Values:
    """Divide; 0 of nothing is 0."""
    found: Values = np.zeros(np.shape(denominator))
    np.divide(numerator, denominator, out=found, where=denominator > 0)
    return found
