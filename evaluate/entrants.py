"""Who takes part on a device: each subject in the number formats that it is measured in."""

from collections.abc import Sequence
from dataclasses import dataclass

from tcompress.artifact import ENCODER_KIND
from tcompress.plan import Precision

from .measurement import Subject

# By the precision of an encoder's plan, the formats that it is measured in on a GPU.
_GPU_FORMATS: dict[str, tuple[str, ...]] = {
    Precision.FP32: ("fp32", "bf16"),
    Precision.BF16: ("bf16",),
    Precision.FP16: ("fp16",),
}


@dataclass(frozen=True)
class Entrant:
    """A subject in one number format: what an engine is opened for.

    Attributes:
        subject: The artifact.
        precision: Number format on the device.
        device: `cpu` or `cuda`.
    """

    subject: Subject
    precision: str
    device: str

    @property
    def key(self) -> str:
        """Name that no other entrant on the device has."""
        return f"{self.subject.name} ({self.precision})"


def enter(
    device: str, baseline: Subject, candidates: Sequence[Subject]
) -> tuple[list[Entrant], list[str]]:
    """List what runs on a device, the baseline first, and in fp32 unless its plan says otherwise.

    Exported files and int8 run on the CPU only. On a GPU an encoder runs in the format of its plan,
    and one in fp32 in bf16 too.

    Args:
        device: `cpu` or `cuda`.
        baseline: The source model.
        candidates: What is compared with it.

    Returns:
        The entrants, and the names of those that cannot run there.
    """
    subjects = (baseline, *candidates)
    if device == "cpu":
        return [Entrant(subject, subject.precision, device) for subject in subjects], []
    fitting = [subject for subject in subjects if runs_on_gpu(subject)]
    left_out = [subject.name for subject in subjects if subject not in fitting]
    return [Entrant(s, f, device) for s in fitting for f in _GPU_FORMATS[s.precision]], left_out


def runs_on_gpu(subject: Subject) -> bool:
    """Tell whether a subject can be measured on a GPU: exported files and int8 cannot.

    Args:
        subject: A subject.
    """
    return subject.kind == ENCODER_KIND and subject.precision in _GPU_FORMATS
