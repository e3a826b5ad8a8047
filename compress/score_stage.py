"""Scoring from model to file: finds the examples, and knows what was scored before."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tcompress.console import Console
from tcompress.errors import ArtifactError
from tcompress.loading import load_encoder
from tcompress.stage_key import Reads, StageKey, differences
from tcompress.stages import DataSource, still
from tcompress.staging import write_text_atomically
from tcompress.workspace import reference_to

from .calibration import rank_on_examples
from .criteria import Criterion
from .scores import read_scores, sealed


@dataclass(frozen=True)
class ScoreStage:
    """One run of the stage `score`.

    Attributes:
        directory: The model that it reads.
        criteria: How importance is measured; the others are compared with the first.
        max_examples: Calibration examples at most.
        source: Where they come from.
        seed: Seed of their draw.
        output: File to write, or None.
        console: Where it speaks.
    """

    directory: Path
    criteria: tuple[str, ...]
    max_examples: int
    source: DataSource
    seed: int
    output: Path | None
    console: Console

    def document(self) -> dict[str, Any]:
        """Score and write the file, unless that is done; returns what is in it."""
        key = self._key()
        if (document := self._written(key)) is not None:
            return document
        document = sealed(self._scored(key) | {"key": vars(key)})
        if self.output is not None:
            write_text_atomically(self.output, json.dumps(document) + "\n")
            self.console.say(f"score: wrote {self.output}")
        return document

    def _key(self) -> StageKey:
        inputs = {}
        if any(Criterion(name).needs_data for name in self.criteria):
            examples = self.source.training_examples(self.max_examples, self.seed)
            inputs["data"] = examples.digest
        recipe = {"criteria": list(self.criteria), "seed": self.seed}
        return StageKey.of("score", reference_to(self.directory).digest, recipe, Reads(inputs))

    def _written(self, key: StageKey) -> dict[str, Any] | None:
        """Return what the file has, if scoring again would give the same."""
        if self.output is None or not self.output.is_file():
            return None
        try:
            document = read_scores(self.output)
        except ArtifactError as error:
            self.console.say(f"score: not up to date: {error}")
            return None
        if changes := list(differences(document["key"], vars(key))):
            self.console.say(f"score: not up to date: {', '.join(changes)}")
            return None
        self.console.say(f"score: {self.output} is up to date")
        return document

    def _scored(self, key: StageKey) -> dict[str, Any]:
        encoder = load_encoder(self.directory)
        rankings = rank_on_examples(
            encoder, self.criteria, self.max_examples, self.source, self.seed, self.console
        )
        return rankings[0].scores.to_json() | {
            "criteria": {ranking.scores.criterion.value: ranking.to_json() for ranking in rankings},
            "model": asdict(still(self.directory, key)),
            "kept_heads": [list(layer.heads) for layer in encoder.plan.layers],
        }
