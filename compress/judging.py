"""What an encoder answers, and how close that is to right or to another encoder."""

import torch
from torch import Tensor
from torch.nn import functional

from tcompress.encoder import Encoder
from tcompress.preprocessing import Encoded


def predict_all(encoder: Encoder, encoded: Encoded, batch_size: int = 64) -> Tensor:
    """Return the logits of all examples, in their order.

    Args:
        encoder: The encoder.
        encoded: The examples.
        batch_size: Examples per batch.

    Returns:
        `(examples, labels)`, float32, on the CPU.
    """
    logits = torch.empty(len(encoded.lengths), len(encoder.labels))
    for rows, batch in encoded.batches(batch_size):
        logits[rows] = torch.from_numpy(encoder.predict(batch))
    return logits


def agreement(logits: Tensor, classes: Tensor) -> float:
    """Return the fraction of examples whose highest logit is that of their class, 0 to 1.

    Args:
        logits: `(examples, classes)`.
        classes: Class indices, `(examples,)`.
    """
    return int((logits.argmax(-1) == classes).sum()) / len(classes)


def mean_divergence(logits: Tensor, changed: Tensor) -> float:
    """Return the mean KL(softmax(logits) || softmax(changed)) in nats.

    Args:
        logits: `(examples, classes)`.
        changed: Likewise.
    """
    teacher, student = (z.double().log_softmax(-1) for z in (logits, changed))
    return float(functional.kl_div(student, teacher, reduction="batchmean", log_target=True))
