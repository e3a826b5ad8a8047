"""Least squares after pruning: what is left of the encoder makes up for what is gone.

The pruned encoder (student) is walked through bottom-up beside the encoder it came from (teacher).
At every sublayer the last projection is solved for again, from what the student's own, already
repaired, lower part gives it, towards the teacher's stream; then the next norm is fitted; at the
end the head. No labels and no gradients.
"""

from dataclasses import asdict, dataclass, field
from typing import Self, cast

import torch
from torch import Tensor, nn

from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError
from tcompress.machine import threads_for
from tcompress.plain import PlainEncoder, plain
from tcompress.preprocessing import Encoded

from .checkpoint import Checkpoint
from .least_squares import Fitting
from .progress import Progress, silent
from .questions import real_rows
from .streams import Pair, Streams, Sublayer


@dataclass(frozen=True)
class Refit:
    """What the reconstruction of one sublayer gave.

    Attributes:
        layer: Its layer.
        sublayer: `attention` or `feed-forward`.
        error: Mean squared error of the stream behind it, as a fraction of the variance of what
            it had to add.
        error_before: The same with the weights as they were cut.
        ridge: The ridge that was chosen.
    """

    layer: int
    sublayer: str
    error: float
    error_before: float
    ridge: float


@torch.no_grad()
def reconstruct_(
    student: Encoder,
    teacher: Encoder,
    encoded: Encoded,
    *,
    batch_size: int = 64,
    progress: Progress = silent,
    checkpoint: Checkpoint | None = None,
) -> list[Refit]:
    """Refit a pruned encoder to the one it came from, in place, sublayer by sublayer.

    With x_S, x_T the streams before a sublayer, y_T the teacher's output and f what the student's
    last projection reads, W and b minimise |x_S + f W + b - (x_T + y_T)|^2 + ridge |W - W_0|^2
    over the real tokens, W_0 being the weights as they were cut: what went wrong below is made up
    for on the way. Every channel of the norm that reads the stream is then fitted to the
    teacher's by linear regression, and each linear stage of the head to the teacher's.

    Memory holds sums whose size depends on the widths only; the streams lie in temporary files.

    Args:
        student: The pruned encoder, on the CPU or a GPU.
        teacher: The encoder it was cut from.
        encoded: Calibration inputs.
        batch_size: Examples per batch.
        progress: Shows progress over the layers.
        checkpoint: Where the student is kept after each layer; a run of the same key continues
            from there, to the same weights. The caller removes it.

    Returns:
        What each sublayer gave, bottom-up; nothing for those below the first that was cut, which
        stay as they are, to the bit. Nothing at all where layers are applied several times:
        refitted for one place they would be off in the others.

    Raises:
        CalibrationError: If there are no examples, or something is not finite.

    Reference:
        The asymmetric target is that of K-prune, Park et al. 2024, arXiv:2308.03449, section 3.4,
        without its columns for the bias, the ridge and the norms.
    """
    if len(encoded.lengths) == 0:
        msg = "calibration needs at least one example"
        raise CalibrationError(msg)
    if teacher.anatomy.shared_order:
        return []
    done = _Done.of(student, checkpoint)
    pair = Pair(plain(student), plain(teacher), student.device)
    depth = len(pair.student.layers)
    if done.stages > depth:
        return done.refits
    with threads_for(teacher.parameters), Streams(pair, encoded, batch_size) as streams:
        for index in progress(range(depth), "reconstructing layers", depth):
            if index < done.stages:
                streams.follow(pair.sublayers(index), equal=done.equal)
                continue
            refits = [_refit_(sublayer, streams) for sublayer in pair.sublayers(index)]
            done.add([refit for refit in refits if refit is not None], equal=streams.equal)
        if not streams.equal:
            _refit_head_(pair, streams)
        done.add([], equal=streams.equal)
    return done.refits


@dataclass
class _Done:
    """What is done of a reconstruction.

    Attributes:
        student: The student.
        checkpoint: Where this is kept, or None.
        refits: What each sublayer gave.
        stages: Layers that are done; one more with the head.
        equal: Whether the streams were still the same behind them.
    """

    student: Encoder
    checkpoint: Checkpoint | None
    refits: list[Refit] = field(default_factory=list)
    stages: int = 0
    equal: bool = True

    @classmethod
    def of(cls, student: Encoder, checkpoint: Checkpoint | None) -> Self:
        """Bring the student to where it was, if anything was kept."""
        state = None if checkpoint is None else checkpoint.read()
        if checkpoint is None or state is None:
            return cls(student, checkpoint)
        student.model.load_state_dict(state["model"])
        refits = [Refit(**refit) for refit in state["refits"]]
        checkpoint.tell(f"prune: reconstruction continues after layer {state['stages'] - 1}")
        return cls(student, checkpoint, refits, state["stages"], state["equal"])

    def add(self, refits: list[Refit], *, equal: bool) -> None:
        """Take one stage for done."""
        self.refits += refits
        self.stages, self.equal = self.stages + 1, equal
        if self.checkpoint is not None:
            state = {
                "model": self.student.model.state_dict(),
                "refits": [asdict(refit) for refit in self.refits],
                "stages": self.stages,
                "equal": self.equal,
            }
            self.checkpoint.write(state)


def _refit_(sublayer: Sublayer, streams: Streams) -> Refit | None:
    """Refit one sublayer of the student and the norm behind it; move both streams behind it."""
    student, teacher = sublayer.student, sublayer.teacher
    if streams.equal and student.linear.in_features == teacher.linear.in_features:
        streams.advance(student, teacher)
        return None
    streams.equal = False
    fitting = Fitting(student.linear)
    for place, (x_s, x_t, bias, real) in streams.read():
        target = teacher.behind(x_t, bias)
        streams.keep(place, target)
        f = student.features(x_s, bias)
        real = real[:, : f.shape[1]]
        fitting.add(place, f[real], (target - student.carried(x_s))[real])
    before, after, ridge = fitting.solve_()
    norms = streams.advance(student, teacher)
    if norms is not None and student.norm is not None:
        norms.apply_(student.norm)
    return Refit(sublayer.layer, sublayer.name, after, before, ridge)


def _refit_head_(pair: Pair, streams: Streams) -> None:
    """Refit the linear stages of the head, first to last, each on what the one before gives."""
    stages = zip(pair.student.head.linears, pair.teacher.head.linears, strict=True)
    for depth, (mine, theirs) in enumerate(stages):
        fitting = Fitting(cast("nn.Linear", mine))
        for place, (x_s, x_t, _, real) in streams.read():
            wanted = theirs(_reach(pair.teacher, x_t, real, depth))
            fitting.add(place, _reach(pair.student, x_s, real, depth), wanted)
        fitting.solve_()


def _reach(module: PlainEncoder, x: Tensor, real: Tensor, depth: int) -> Tensor:
    """Return what a linear stage of the head reads, `(rows, channels)`."""
    x = x if module.final_norm is None else module.final_norm(x)
    return real_rows(module.head.climb(module.head.pool(x, real), depth), real)[0]
