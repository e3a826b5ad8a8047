"""The residual streams of a pruned encoder and of the one it was cut from, sublayer by sublayer."""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from tcompress.errors import StorageError
from tcompress.plain import PlainEncoder, attention_bias
from tcompress.preprocessing import Encoded, real_tokens

from .least_squares import NormFit
from .sublayers import Side, sides, unchanged

_STUDENT, _TEACHER, _TEACHER_AHEAD = range(3)


@dataclass(frozen=True)
class Sublayer:
    """A sublayer of the student beside the teacher's."""

    layer: int
    name: str
    student: Side
    teacher: Side


@dataclass(frozen=True)
class Pair:
    """Student and teacher.

    Attributes:
        student: The pruned encoder.
        teacher: The encoder it was cut from.
        device: Where both are.
    """

    student: PlainEncoder
    teacher: PlainEncoder
    device: torch.device

    def sublayers(self, index: int) -> Iterator[Sublayer]:
        """Yield attention and FFN of a layer.

        Args:
            index: The layer.

        Yields:
            The student's beside the teacher's.
        """
        for mine, theirs in zip(
            sides(self.student, index), sides(self.teacher, index), strict=True
        ):
            yield Sublayer(index, mine.name, mine, theirs)


class Streams:
    """The residual streams of student and teacher for every calibration batch, in files.

    Args:
        pair: Student and teacher.
        encoded: Calibration inputs.
        batch_size: Examples per batch.

    Attributes:
        equal: Whether both streams are still the same.
    """

    def __init__(self, pair: Pair, encoded: Encoded, batch_size: int) -> None:
        self.equal = True
        self._pair = pair
        self._encoded = encoded
        self._batches = [rows for rows, _ in encoded.batches(batch_size)]
        self._enter: tuple[Callable[[Tensor], Tensor], ...] = (unchanged, unchanged)
        self._shapes: dict[tuple[int, int], tuple[int, ...]] = {}
        hidden = pair.teacher.hidden_size
        sizes = [len(rows) * max(1, int(encoded.lengths[rows].max())) for rows in self._batches]
        self._offsets = np.concatenate([[0], np.cumsum(sizes)]) * hidden

    def __enter__(self) -> Self:
        """Write what the first layers read.

        Raises:
            StorageError: If there is no room for the files.
        """
        _check_room(3 * 4 * int(self._offsets[-1]))
        self._folder = tempfile.TemporaryDirectory(prefix="tcompress-")
        shape = (int(self._offsets[-1]),)
        self._files = [
            np.memmap(Path(self._folder.name) / name, np.float32, "w+", shape=shape)
            for name in ("student", "teacher", "teacher-ahead")
        ]
        for place in range(len(self._batches)):
            inputs = self._inputs(place).values()
            self._write(_STUDENT, place, self._pair.student.embed(*inputs)[0])
            self._write(_TEACHER, place, self._pair.teacher.embed(*inputs)[0])
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Delete the files."""
        del self._files
        self._folder.cleanup()

    def read(self) -> Iterator[tuple[int, tuple[Tensor, Tensor, Tensor, Tensor]]]:
        """Yield the batches.

        Yields:
            The batch's number; what the next sublayer of student and teacher reads, `(batch,
            tokens, hidden)`; the attention bias; where tokens are real, `(batch, tokens)`.
        """
        for place in range(len(self._batches)):
            x_s, x_t = (enter(self._read(i, place)) for i, enter in enumerate(self._enter))
            real = self._real(place)
            yield place, (x_s, x_t, attention_bias(real, x_s.dtype), real)

    def keep(self, place: int, stream: Tensor) -> None:
        """Keep the teacher's stream behind the next sublayer, so that `advance` finds it.

        Args:
            place: Number of the batch.
            stream: `(batch, tokens, hidden)`.
        """
        self._write(_TEACHER_AHEAD, place, stream)

    def advance(self, student: Side, teacher: Side) -> NormFit | None:
        """Move both streams behind a sublayer.

        Args:
            student: The student's sublayer, refitted.
            teacher: The teacher's.

        Returns:
            Sums to fit the norm that reads the student's stream next; None where there is none.
        """
        norm = teacher.norm
        fit = None if norm is None else NormFit(self._pair.teacher.hidden_size)
        for place, (x_s, x_t, bias, real) in self.read():
            if (_TEACHER_AHEAD, place) not in self._shapes:
                self.keep(place, teacher.behind(x_t, bias))
            stream = student.behind(x_s, bias)
            self._write(_STUDENT, place, stream)
            if fit is not None and norm is not None:
                real = real[:, : stream.shape[1]]
                ahead = self._read(_TEACHER_AHEAD, place)[real]
                plain = functional.layer_norm(stream[real], norm.normalized_shape, eps=norm.eps)
                fit.add(plain, norm(ahead))
        self._turn_over()
        self._enter = (student.stream, teacher.stream)
        return fit

    def follow(self, sublayers: Iterable[Sublayer], *, equal: bool) -> None:
        """Move both streams behind sublayers that were refitted before.

        Args:
            sublayers: The sublayers.
            equal: Whether both streams were still the same behind the last one that was refitted.
        """
        for sublayer in sublayers:
            self.advance(sublayer.student, sublayer.teacher)
        self.equal = equal

    def _turn_over(self) -> None:
        """Make what was kept ahead the teacher's stream."""
        files = self._files
        files[_TEACHER], files[_TEACHER_AHEAD] = files[_TEACHER_AHEAD], files[_TEACHER]
        for place in range(len(self._batches)):
            self._shapes[_TEACHER, place] = self._shapes.pop((_TEACHER_AHEAD, place))

    def _real(self, place: int) -> Tensor:
        fixed_tokens = self._pair.student.embedding.fixed_tokens
        real = real_tokens(self._encoded.collate(self._batches[place]), fixed_tokens)
        return torch.from_numpy(real).to(self._pair.device)

    def _inputs(self, place: int) -> dict[str, Tensor]:
        batch = self._encoded.collate(self._batches[place])
        names = self._pair.student.input_names
        return {name: torch.from_numpy(batch[name]).to(self._pair.device) for name in names}

    def _write(self, which: int, place: int, x: Tensor) -> None:
        values = x.float().cpu().numpy().ravel()
        start = self._offsets[place]
        self._files[which][start : start + values.size] = values
        self._shapes[which, place] = tuple(x.shape)

    def _read(self, which: int, place: int) -> Tensor:
        shape, start = self._shapes[which, place], self._offsets[place]
        values = self._files[which][start : start + math.prod(shape)]
        return torch.from_numpy(np.array(values)).view(shape).to(self._pair.device)


def _check_room(size: int) -> None:
    """Raise unless so many bytes fit: a mapped file on a full disk ends the process unheard."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if size > free:
        msg = (
            f"reconstruction keeps {size / 1e9:.3g} GB of temporary files, and {folder} has room "
            f"for {free / 1e9:.3g} GB; name another place in TMPDIR or lower --max-examples"
        )
        raise StorageError(msg)
