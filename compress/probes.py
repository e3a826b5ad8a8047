"""What is asked of an encoder's logits: which gradients to take, and how to combine them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from tcompress.errors import CalibrationError
from tcompress.tasks import Decision

MOST_EXACT_CLASSES = 10
"""With more classes the curvature is estimated from draws."""


def check_finite(logits: Tensor) -> None:
    """Refuse answers that are no numbers.

    Args:
        logits: `(examples, classes)`, of one batch.

    Raises:
        CalibrationError: If a value is not finite.
    """
    bad = ~torch.isfinite(logits).all(-1)
    if bad.any():
        msg = (
            f"the encoder's logits are not finite for {int(bad.sum())} of {len(bad)} "
            "calibration examples of one batch; check its weights and inputs"
        )
        raise CalibrationError(msg)


def check_classes(
    classes: int, instead: str = "--criterion activation or --criterion magnitude"
) -> None:
    """Refuse an encoder that answers the same whatever it computes.

    Args:
        classes: How many it tells apart.
        instead: What to ask for.

    Raises:
        CalibrationError: If it is one.
    """
    if classes < 2:
        msg = (
            "the encoder has one class, so that its answers cannot tell what it needs; "
            f"use {instead}"
        )
        raise CalibrationError(msg)


@dataclass(frozen=True)
class Probe:
    """Which products with the Jacobian of the logits to take, and how to combine them.

    A product is the gradient of <direction, logits> in the gates, one backward pass.

    Attributes:
        directions: `(passes, examples, classes)`.
        loss: `(passes, examples)`: weights that give the gradient of the cross-entropy.
        curvature: `(rows, passes, examples)`: weights that give rows G with F = sum G^T G.
    """

    directions: Tensor
    loss: Tensor
    curvature: Tensor


def loss_probe(logits: Tensor, targets: Tensor) -> Probe:
    """Ask for the gradient of the cross-entropy alone: one pass.

    Args:
        logits: `(examples, classes)`.
        targets: Class indices, `(examples,)`.
    """
    residual = _residual(logits, targets)
    ones = residual.new_ones(1, len(residual))
    return Probe(residual[None], ones, residual.new_zeros(0, 1, len(residual)))


def exact_probe(logits: Tensor, targets: Tensor) -> Probe:
    """Ask for all logit differences to the last class: classes - 1 passes give everything.

    With D_c the product of class c (D of the last class is 0) and p = softmax(logits), the
    gradient of the cross-entropy is sum_c (p_c - y_c) D_c, and the Gauss-Newton matrix
    J^T (diag(p) - p p^T) J = sum_c p_c (D_c - sum_k p_k D_k)^T (D_c - sum_k p_k D_k).

    Args:
        logits: `(examples, classes)`.
        targets: Class indices, `(examples,)`.
    """
    p = logits.softmax(-1).T  # (classes, examples)
    unit = torch.eye(len(p), device=p.device, dtype=p.dtype)
    directions = (unit[:-1] - unit[-1]).unsqueeze(1).expand(-1, p.shape[1], -1)
    rows = p.sqrt()[:, None] * (unit[:, :-1, None] - p[None, :-1])
    return Probe(directions, _residual(logits, targets).T[:-1], rows)


def sampled_probe(logits: Tensor, targets: Tensor, uniforms: Tensor) -> Probe:
    """Ask for the gradient of the cross-entropy, and of log p at labels drawn from p.

    The mean square of the latter is an unbiased estimate of the Gauss-Newton matrix.

    Args:
        logits: `(examples, classes)`.
        targets: Class indices, `(examples,)`.
        uniforms: `(examples, draws)`, uniform in [0, 1): where each draw falls in the
            cumulated probabilities.
    """
    draws = uniforms.shape[1]
    cumulated = logits.softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulated, uniforms.to(cumulated)).clamp(max=logits.shape[1] - 1)
    residuals = [_residual(logits, labels) for labels in (targets, *drawn.T)]
    weights = torch.eye(draws + 1, device=logits.device, dtype=logits.dtype)
    weights = weights.unsqueeze(-1).expand(-1, -1, len(logits))
    return Probe(torch.stack(residuals), weights[0], weights[1:] * draws**-0.5)


def drawn_probe(
    decision: Decision,
    logits: Tensor,
    members: Tensor,
    inputs: int,
    targets: Tensor,
    draws: int,
    generator: torch.Generator,
) -> Probe:
    """Ask for the gradient of a task's loss, and for drawn directions of its curvature.

    Args:
        decision: How the task's logits are read.
        logits: `(rows, channels)`.
        members: The input of each row, `(rows,)`.
        inputs: Number of inputs.
        targets: What is right, `(rows, ...)`.
        draws: Directions per input.
        generator: Draws them.
    """
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        loss = decision.losses(leaf, targets, members, inputs).sum()
        (slope,) = torch.autograd.grad(loss, leaf)
    drawn = [decision.drawn(logits, members, generator) for _ in range(draws)]
    weights = torch.eye(draws + 1, device=logits.device, dtype=logits.dtype)
    weights = weights.unsqueeze(-1).expand(-1, -1, inputs)
    return Probe(torch.stack([slope, *drawn]), weights[0], weights[1:] * max(draws, 1) ** -0.5)


def check_slope(decision: Decision) -> None:
    """Refuse losses that an encoder's own answers make flat.

    Args:
        decision: How the task's logits are read.

    Raises:
        CalibrationError: If every encoder is right by its own answers.
    """
    if decision.flat_at_own:
        msg = (
            "without labels the loss of this task is flat at the encoder's own answers; use "
            "--criterion curvature, or give labels"
        )
        raise CalibrationError(msg)


def _residual(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.softmax(-1) - functional.one_hot(targets, logits.shape[-1])


def jacobian_products(
    logits: Tensor, gates: Sequence[Tensor], directions: Iterable[Tensor]
) -> Tensor:
    """Differentiate <direction, logits> in the gates of every example.

    Args:
        logits: `(examples, classes)`, computed with the gates.
        gates: `(examples, width)` each.
        directions: `(examples, classes)` each.

    Returns:
        `(directions, examples, units)`; units are the widths side by side.
    """
    products = [
        torch.cat(torch.autograd.grad(logits, gates, direction, retain_graph=True), dim=1)
        for direction in directions
    ]
    return torch.stack(products)
