"""What to remove, and how to choose it."""

from dataclasses import asdict, dataclass
from typing import Any

from tcompress.errors import RequestError

from .cost import Serving
from .criteria import Criterion
from .selection import Scope


@dataclass(frozen=True)
class PruneRecipe:
    """What to remove, and how to choose it.

    Either `heads` and `neurons`, or one of the others.

    Attributes:
        heads: Fraction of the heads to remove.
        neurons: Fraction of the FFN neurons to remove.
        macs: Fraction of the multiply-accumulates to remove, at 128 tokens.
        speedup: Latency before over latency after, in the engine of `serving`.
        latency_ms: Latency after, at most, likewise.
        max_drop: Accuracy drop on the selection split, a fraction, that the smallest model may
            have.
        criterion: How importance is measured.
        scope: For ratios: over the whole encoder, or the same fraction of every layer.
        drop_sublayers: Whether a sublayer may lose all its units; None: yes, except for ratios.
        reconstruct: Whether what is left is refitted; None: where there are examples.
        max_examples: Calibration examples at most.
        serving: Engine and shape for `speedup` and `latency_ms`.
        seed: Seed of the draw of examples.
    """

    heads: float | None = None
    neurons: float | None = None
    macs: float | None = None
    speedup: float | None = None
    latency_ms: float | None = None
    max_drop: float | None = None
    criterion: Criterion = Criterion.OBS
    scope: Scope = Scope.GLOBAL
    drop_sublayers: bool | None = None
    reconstruct: bool | None = None
    max_examples: int = 4096
    serving: Serving | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Coerce the modes and check that the goal is one."""
        object.__setattr__(self, "criterion", Criterion(self.criterion))
        object.__setattr__(self, "scope", Scope(self.scope))
        goals = self.goals
        if not goals:
            msg = (
                "say what to remove: --heads RATIO, --neurons RATIO or both, or one of --macs "
                "RATIO, --speedup X, --latency-ms L, --max-drop D"
            )
            raise RequestError(msg)
        if len(goals) > 1 and goals != ["heads", "neurons"]:
            first, second = (f"--{name.replace('_', '-')}" for name in goals[-2:])
            msg = f"{first} and {second} contradict each other; leave one of them out"
            raise RequestError(msg)
        if self.scope is Scope.LAYER and not self.by_ratio:
            msg = "--scope layer goes with --heads and --neurons"
            raise RequestError(msg)

    @property
    def goals(self) -> list[str]:
        """Names of what was asked for."""
        names = ("heads", "neurons", "macs", "speedup", "latency_ms", "max_drop")
        return [name for name in names if getattr(self, name) is not None]

    @property
    def by_ratio(self) -> bool:
        """Whether fractions of heads and neurons were asked for."""
        return set(self.goals) <= {"heads", "neurons"}

    @property
    def may_drop(self) -> bool:
        """Whether a sublayer may lose all its units."""
        return not self.by_ratio if self.drop_sublayers is None else self.drop_sublayers

    def to_json(self) -> dict[str, Any]:
        """Return the recipe as a JSON document."""
        document = asdict(self) | {"criterion": self.criterion.value, "scope": self.scope.value}
        return document | {"serving": None if self.serving is None else self.serving.to_json()}
