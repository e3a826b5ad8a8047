"""Whether lowering the rank inside heads pays, beside removing whole heads at the same cost.

Inside a head, values reach the stream through V_h O_h and scores come from Q_h K_h^T, both of rank
head_size. Truncating them to rank r saves multiply-accumulates like removing heads does. For every
layer on its own, half of the head's rank (values, scores, or both) is taken away, by the best
truncation in the metric of the activations, and the divergence of the answers is measured; beside
it the heads that cost as much are removed (`obs`) and the output projection is refitted.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from tcompress.compress.cost import Engine, Serving
from tcompress.compress.demo import prepare_demo
from tcompress.compress.judging import mean_divergence, predict_all
from tcompress.compress.pruning import prune_
from tcompress.compress.reconstruction import reconstruct_
from tcompress.compress.surgeon import Surgeon
from tcompress.console import Console
from tcompress.data import Columns, read_examples
from tcompress.encoder import Encoder, open_encoder
from tcompress.evaluate.costing import EngineMeter
from tcompress.families import anatomy_of
from tcompress.machine import usable_cpus
from tcompress.plain import attention_bias, plain
from tcompress.plan import CompressionPlan
from tcompress.preprocessing import Encoded

_BATCH_SIZE = 32


def truncated(product: tuple[Tensor, Tensor], left: Tensor, right: Tensor, rank: int) -> Tensor:
    """Return A B truncated to a rank, best in the norm |L^T (A B - X) R|.

    With L and R invertible that is L^-T [L^T A B R]_r R^-1, [.]_r keeping the largest singular
    values (Eckart and Young).

    Args:
        product: A and B.
        left: L, from a Cholesky factor of the second moments of what multiplies from the left.
        right: R, likewise from the right.
        rank: Rank to keep.
    """
    a, b = product
    u, s, v = torch.linalg.svd(left.T @ a @ b @ right, full_matrices=False)
    kept = (u[:, :rank] * s[:rank]) @ v[:rank]
    return torch.linalg.solve(left.T, kept) @ torch.linalg.inv(right)


@torch.no_grad()
def input_moments(encoder: Encoder, encoded: Encoded) -> list[Tensor]:
    """Return E[x x^T] of what the heads of each layer read, x with a 1 behind it for the bias.

    Args:
        encoder: A post-norm encoder.
        encoded: Calibration inputs.
    """
    module = plain(encoder)
    width = module.hidden_size + 1
    sums = [torch.zeros(width, width, dtype=torch.float64) for _ in module.layers]
    for _, batch in encoded.batches(_BATCH_SIZE):
        x, mask = module.embed(*(torch.from_numpy(batch[n]) for n in module.input_names))
        for total, layer in zip(sums, module.layers, strict=True):
            rows = x[mask[:, : x.shape[1]] != 0].double()
            rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=torch.float64)], dim=1)
            total += rows.T @ rows
            x = layer(x, attention_bias(mask, x.dtype))
    return [total / total[-1, -1] for total in sums]


@torch.no_grad()
def lower_rank_(encoder: Encoder, index: int, moments: Tensor, rank: int, what: str) -> None:
    """Truncate the heads of one layer, in place; shapes stay, the rank falls.

    Args:
        encoder: The encoder.
        index: The layer.
        moments: Its entry of `input_moments`.
        rank: Rank to keep of each head.
        what: `values` or `scores`.
    """
    layer = encoder.anatomy.layers[index]
    size = layer.head_size
    damp = 1e-6 * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
    factor = torch.linalg.cholesky(moments + damp)
    first, second = (layer.query, layer.key) if what == "scores" else (layer.value, layer.output)
    assert first is not None
    assert second is not None
    for start in range(0, layer.num_heads * size, size):
        rows = slice(start, start + size)
        a = torch.cat([first.weight[rows], first.bias[rows, None]], dim=1).double().T
        if what == "scores":  # the key's bias does not matter to the scores
            b = torch.cat([second.weight[rows], torch.zeros(size, 1)], dim=1).double()
            right = factor
        else:
            b = second.weight[:, rows].double().T
            right = torch.eye(b.shape[1], dtype=torch.float64)
        lower = truncated((a, b), factor, right, rank)
        # back into factors of the shapes there are: zeros where rank is gone
        u, s, v = torch.linalg.svd(lower, full_matrices=False)
        new_a, new_b = u[:, :size] * s[:size].sqrt(), s[:size, None].sqrt() * v[:size]
        first.weight[rows], first.bias[rows] = new_a[:-1].T.float(), new_a[-1].float()
        if what == "scores":
            second.weight[rows] = new_b[:, :-1].float()
            second.bias[rows] = new_b[:, -1].float()
        else:
            second.weight[:, rows] = new_b.T.float()


def without_heads(
    plan: CompressionPlan, scores: list[float], index: int, gone: int
) -> CompressionPlan:
    """Return the plan without the least important heads of one layer.

    Args:
        plan: The plan.
        scores: Scores of the layer's heads.
        index: The layer.
        gone: How many go.
    """
    layer = plan.layers[index]
    order = sorted(range(len(scores)), key=lambda head: scores[head])
    kept = tuple(sorted(layer.heads[head] for head in order[gone:]))
    layers = list(plan.layers)
    layers[index] = replace(layer, heads=kept)
    return replace(plan, layers=tuple(layers))


def serving_ms(encoder: Encoder, heads: int, config: Any) -> tuple[float, float]:
    """Time an encoder of the same widths whose heads number `heads`, whole and halved.

    Args:
        encoder: Gives labels and preprocessing.
        heads: Heads per layer; together they are as wide as the stream.
        config: Its configuration.

    Returns:
        Latencies in ONNX Runtime int8 at (1, 128), in ms: with all heads, and with half of them.
    """
    config = type(config).from_dict(config.to_dict() | {"num_attention_heads": heads})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    anatomy = anatomy_of(model)
    whole = CompressionPlan.dense(anatomy.head_counts, anatomy.neuron_counts)
    half = replace(
        whole, layers=tuple(replace(x, heads=x.heads[: heads // 2]) for x in whole.layers)
    )
    serving = Serving(Engine.ONNXRUNTIME, "int8", 1, 128, usable_cpus())
    with EngineMeter(replace(encoder, model=model, plan=whole), serving) as meter:
        first, second = meter.latencies_ms([whole, half], 15.0)
    return first, second


@click.command(context_settings={"show_default": True})
@click.option("--calibration", type=click.IntRange(min=1), default=512, help="Examples.")
@click.option("--examples", type=click.IntRange(min=1), default=400, help="To judge by.")
@click.option("--latency", is_flag=True, help="Time shapes instead; wants a quiet machine.")
def main(calibration: int, examples: int, latency: bool) -> None:
    """Measure, layer by layer, and print a table of divergences in nats x 1000."""
    demo = prepare_demo("reviews", Console(as_json=False, quiet=True)).config
    encoder = open_encoder(Path(demo.model))
    if latency:
        config = encoder.model.config
        for heads, what in ((12, "12 heads of 32, or 6"), (24, "24 heads of 16, or 12")):
            whole, half = serving_ms(encoder, heads, config)
            print(f"{what:24} {whole:6.2f} ms {half:6.2f} ms")
        return
    train, judge = (
        encoder.preprocessor.encode(read_examples(Path(str(name)), Columns()).sample(count, 0))
        for name, count in ((demo.data.train, calibration), (demo.data.validation, examples))
    )
    answers = predict_all(encoder, judge)
    moments = input_moments(encoder, train)
    surgeon = Surgeon.of(encoder, (batch for _, batch in train.batches(_BATCH_SIZE)), {})

    def divergence(changed: Encoder) -> float:
        return 1000 * mean_divergence(answers, predict_all(changed, judge))

    def copied() -> Encoder:
        return replace(encoder, model=copy.deepcopy(encoder.model))

    print(
        f"{'layer':>5} {'values':>8} {'scores':>8} {'1/4 heads':>9} | {'both':>8} {'1/2 heads':>9}"
    )
    for index, layer in enumerate(encoder.anatomy.layers):
        row = []
        for kinds in (("values",), ("scores",), ("values", "scores")):
            changed = copied()
            for what in kinds:
                lower_rank_(changed, index, moments[index], layer.head_size // 2, what)
            row.append(divergence(changed))
        cut = []
        for part in (4, 2):
            changed = copied()
            scores = list(surgeon.scores.heads[index])
            prune_(changed, without_heads(encoder.plan, scores, index, layer.num_heads // part))
            reconstruct_(changed, encoder, train)
            cut.append(divergence(changed))
        print(f"{index:5} {row[0]:8.2f} {row[1]:8.2f} {cut[0]:9.2f} | {row[2]:8.2f} {cut[1]:9.2f}")


if __name__ == "__main__":
    main()
