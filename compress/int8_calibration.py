"""An encoder made ready for int8 on calibration examples; its weights stay fp32.

What int8 loses is lost in activations first: one step per tensor, set by its largest channel.
Channels are centred and evened out where that changes no answer, so that one artifact serves
every format.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch

from tcompress.encoder import Encoder
from tcompress.errors import CalibrationError
from tcompress.machine import threads_for
from tcompress.plain import plain
from tcompress.preprocessing import Batch, Encoded

from .judging import predict_all
from .precision import runtime_int8
from .product_inputs import channel_extremes
from .questions import Questions, collect
from .shifting import shift_
from .smoothing import fold_value_biases_, smooth_

_BATCH_SIZE = 32


@dataclass(frozen=True)
class Int8Calibration:
    """What calibration did.

    Attributes:
        divergence: Mean KL from the fp32 answers to those in ONNX Runtime's dynamic int8, in nats,
            on held-out examples, with channels evened out; lower is better.
        divergence_before: The same without.
        held_out: How many examples that is.
    """

    divergence: float
    divergence_before: float
    held_out: int

    @property
    def kept(self) -> bool:
        """Whether the encoder was changed: it loses less that way."""
        return self.divergence < self.divergence_before

    def to_json(self) -> dict[str, Any]:
        """Return the numbers as a JSON document."""
        return asdict(self) | {"kept": self.kept}


@torch.no_grad()
def calibrate_int8_(encoder: Encoder, encoded: Encoded, held_out: Encoded) -> Int8Calibration:
    """Make an encoder lose less in int8, in place; its fp32 answers stay, up to rounding.

    Args:
        encoder: The encoder, on the CPU; its plan says what runs in int8. Where that loses no
            less, only its value biases move, as they do in every export.
        encoded: Calibration inputs.
        held_out: Other inputs, to tell what that brought.

    Raises:
        CalibrationError: If there are no examples, or something is not finite.
    """
    if not min(len(encoded.lengths), len(held_out.lengths)):
        msg = "calibration needs examples, and others to tell what it brought; give it more data"
        raise CalibrationError(msg)
    batches = [batch for _, batch in encoded.batches(_BATCH_SIZE)]
    with threads_for(encoder.parameters):
        answers = predict_all(encoder, held_out, _BATCH_SIZE)
        asked = Questions.of(encoder, held_out)

        def divergence() -> float:
            return asked.divergence(answers, _int8_answers(encoder, held_out))

        fold_value_biases_(encoder)  # as every export does
        before, original = divergence(), copy.deepcopy(encoder.model.state_dict())
        shift_(encoder, channel_extremes(plain(encoder), batches))
        fold_value_biases_(encoder)
        smooth_(encoder, channel_extremes(plain(encoder), batches))
        found = Int8Calibration(divergence(), before, len(held_out.lengths))
        if not found.kept:
            encoder.model.load_state_dict(original)
    return found


def _int8_answers(encoder: Encoder, encoded: Encoded) -> torch.Tensor:
    """Return the logits with the int8 sublayers of the plan in int8, `(rows, channels)`."""
    module = runtime_int8(plain(encoder))

    def predict(batch: Batch) -> torch.Tensor:
        answers: torch.Tensor = module(*(torch.from_numpy(batch[n]) for n in module.input_names))
        return answers

    return collect(predict, encoded, _BATCH_SIZE)
