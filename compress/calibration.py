"""The examples that scoring looks at, and the scores that a workspace already has."""

from collections.abc import Sequence
from functools import partial

from tcompress.console import Console
from tcompress.encoder import Encoder
from tcompress.errors import ArtifactError
from tcompress.stage_key import Reads, StageKey
from tcompress.stages import DataSource, StageRun, encode_with_warning
from tcompress.tasks import decision_of
from tcompress.workspace import reference_to

from .criteria import Criterion, Settings
from .evidence import LabelledBatch
from .questions import batch_rows, targets_of
from .scores import HeadScores, read_scores
from .scoring import Ranking, rank_units

BATCH_SIZE = 32


def known_scores(run: StageRun, criterion: str, max_examples: int) -> HeadScores | None:
    """Return what `score` wrote, if it is what scoring again would give.

    Args:
        run: The stage that wants scores.
        criterion: How importance is to be measured.
        max_examples: How many calibration examples at most.
    """
    workspace = run.data.workspace
    if workspace is None or not workspace.scores_file.is_file():
        return None
    try:
        document = read_scores(workspace.scores_file)
    except ArtifactError:
        return None  # by another version, or damaged: scored again
    scores, model = HeadScores.from_json(document), document["model"].get("digest")
    now = StageKey.of("score", reference_to(run.directory).digest, {}, Reads())
    kept = document["key"]
    if (model, kept.get("versions"), kept.get("code")) != (now.model, now.versions, now.code):
        return None
    calibration = {}
    if scores.criterion.needs_data:
        calibration["digest"] = run.data.training_examples(max_examples, run.seed).digest
    same = scores.calibration.get("digest") == calibration.get("digest")
    same &= scores.calibration.get("seed", run.seed) == run.seed
    if not same or scores.criterion != criterion:
        return None
    run.console.say(f"prune: by the scores in {workspace.scores_file}")
    return scores


def score_on_examples(
    encoder: Encoder,
    criterion: str,
    max_examples: int,
    source: DataSource,
    seed: int,
    console: Console,
) -> HeadScores:
    """Score an encoder on calibration examples, where the criterion looks at any.

    Args:
        encoder: The encoder.
        criterion: How to measure.
        max_examples: How many examples at most.
        source: Where they come from.
        seed: Seed of their draw.
        console: Where to show progress.
    """
    return rank_on_examples(encoder, [criterion], max_examples, source, seed, console)[0].scores


def rank_on_examples(
    encoder: Encoder,
    criteria: Sequence[str],
    max_examples: int,
    source: DataSource,
    seed: int,
    console: Console,
) -> list[Ranking]:
    """Score an encoder by several criteria on the same calibration examples, in one pass.

    Args:
        encoder: The encoder.
        criteria: How to measure; the others are compared with the first. Those that follow a
            loss which is flat without labels are left out.
        max_examples: How many examples at most.
        source: Where they come from.
        seed: Seed of their draw.
        console: Where to show progress.

    Raises:
        CalibrationError: If the first follows such a loss.
    """
    kinds = [Criterion(criterion) for criterion in criteria]
    settings = Settings(seed=seed)
    if not any(kind.needs_data for kind in kinds):
        return rank_units(encoder, kinds, settings=settings)
    examples = source.training_examples(max_examples, seed)
    encoded = encode_with_warning(encoder.preprocessor, examples, console)
    targets = targets_of(encoder, examples, encoded)
    if targets is None:
        kinds = _with_slope(encoder, kinds, console)
    others = f" and {len(kinds) - 1} more" if len(kinds) > 1 else ""
    batches = console.track(
        encoded.batches(BATCH_SIZE),
        f"scoring by {criteria[0]}{others}",
        -(-len(encoded.lengths) // BATCH_SIZE),
    )
    labelled = (
        LabelledBatch(
            batch,
            None if targets is None else targets[encoded.row_numbers(positions)],
            partial(batch_rows, encoded, positions),
        )
        for positions, batch in batches
    )
    calibration = {
        "examples": len(examples),
        "digest": examples.digest,
        "labels": "the model's own predictions" if targets is None else "data",
        "seed": seed,
    }
    return rank_units(encoder, kinds, labelled, calibration, settings)


def _with_slope(encoder: Encoder, kinds: list[Criterion], console: Console) -> list[Criterion]:
    """Leave out what cannot be compared with the first criterion, as there are no labels."""
    if not decision_of(encoder.task).flat_at_own:
        return kinds
    flat = [kind for kind in kinds[1:] if kind.follows_loss]
    if flat:
        console.say(f"score: without {', '.join(flat)}, which need labels for {encoder.task}")
    return [kind for kind in kinds if kind not in flat]
