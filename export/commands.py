"""The `export` command."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tcompress.options import (
    CONTEXT,
    Common,
    DataOptions,
    StageOptions,
    common_options,
    data_options,
    refuse_typed,
    stage_options,
)
from tcompress.tasks import Task

if TYPE_CHECKING:
    from tcompress.console import Console
    from tcompress.data import Examples
    from tcompress.encoder import Encoder
    from tcompress.preprocessing import Batch
    from tcompress.stages import StageRun

_LIBRARIES = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino", "nncf"),
    "torchscript": (),
    "program": (),
}
_REAL_EXAMPLES = 64
_CALIBRATION_EXAMPLES = 300


@click.command(context_settings=CONTEXT, short_help="Write a deployable file, checked for parity.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(("onnx", "torchscript", "program", "openvino")),
    default="onnx",
    help="ONNX Runtime file, TorchScript file, torch.export program, or OpenVINO model.",
)
@click.option(
    "--precision",
    type=click.Choice(("plan", "int8", "bf16", "fp16", "fp32")),
    default="plan",
    help="Of the file; plan is what quantize wrote.",
)
@click.option(
    "--activations",
    type=click.Choice(("dynamic", "static")),
    default="dynamic",
    help="Scales of int8 activations in an ONNX file: taken in each call, or fixed on examples.",
)
@click.option(
    "--reduce-range/--full-range",
    default=None,
    help="Keep int8 weights to 7 bits, for CPUs that saturate.  [default: as this CPU needs]",
)
@click.option(
    "--fold-token-types/--keep-token-types",
    "fold_token_types",
    default=False,
    help="For single texts, whose token types are all 0: the file takes no token_type_ids.",
)
@stage_options
@data_options
@common_options
def export(
    kind: str,
    precision: str,
    activations: str,
    reduce_range: bool | None,
    fold_token_types: bool,
    stage: StageOptions,
    data: DataOptions,
    common: Common,
) -> None:
    """Write a deployable file, and check that it computes what its source computes.

    The file takes any batch size and length. A file that fails the check is not accepted:
    nothing is left behind, and the exit code is not zero.

    OpenVINO's int8 is calibrated on training examples of the workspace, or on --data. So is an
    ONNX file with --activations static: its answers are closer to the source's, and it is slower
    by a few percent. All others scale activations as they come and need no examples.

    \b
    Example:
      tcompress export --format onnx
      tcompress export --format onnx --activations static
      tcompress export --format openvino --precision int8
      tcompress export --format torchscript --precision fp32 --model ./my-model --output ./served
    """
    from tcompress.loading import load_encoder
    from tcompress.machine import int8_saturates
    from tcompress.plan import Precision
    from tcompress.stage_key import Reads
    from tcompress.stages import StageRun

    from .exact import without_token_types
    from .exporting import REDUCIBLE, write_export
    from .serving import ServedProcess

    if kind != "onnx":
        refuse_typed(("activations",), f"goes with --format onnx, not {kind}")
    if kind not in REDUCIBLE:
        refuse_typed(("reduce_range",), f"goes with --format {' and '.join(REDUCIBLE)}")
    stages = ("prune", "finetune", "quantize")
    run = StageRun.open(
        "export", common, stage, builds_on=stages, data=data, output=("export", kind)
    )
    has_int8 = _has_int8(run.directory, precision)
    if not has_int8:
        refuse_typed(("activations", "reduce_range"), "has nothing to act on: nothing is in int8")
    recipe: dict[str, Any] = {
        "format": kind,
        "precision": precision,
        "fold_token_types": fold_token_types,
    }
    saturates = int8_saturates()
    reduce_range = saturates if reduce_range is None else reduce_range
    if has_int8 and kind in REDUCIBLE:
        recipe |= {"reduce_range": reduce_range}
    is_static = kind == "openvino" or activations == "static"
    calibration = _calibration_examples(run, needed=is_static and has_int8)
    if calibration is not None:
        recipe |= {"calibration": calibration.digest}
    shown = _parity_examples(run)
    inputs = {} if shown is None else {"validation": shown.digest}
    # torch packs int8 weights as this CPU reads them, and calibration runs on it
    key = run.key(recipe, Reads(inputs, _LIBRARIES[kind], cpu=has_int8))
    done = run.finished(key)
    if done is None:
        encoder = load_encoder(run.directory)
        if fold_token_types:
            encoder = without_token_types(encoder)
        if precision != "plan":
            encoder.plan = encoder.plan.with_precision(Precision(precision))
        used = encoder.plan.precision
        if "reduce_range" in recipe:
            _warn_of_range(run.console, saturates=saturates, reduce_range=reduce_range)
        examples = () if shown is None else _batched(encoder, shown)
        batches = _one_by_one(run, encoder, calibration)
        with run.console.step(f"export: writing and checking {kind} in {used}"):
            done = run.write(
                kind,
                encoder,
                key,
                lambda directory: write_export(
                    encoder,
                    kind,
                    directory,
                    reduce_range=reduce_range,
                    examples=examples,
                    calibration=batches,
                    opener=ServedProcess,
                ),
                used,
            )
    parity = done.manifest.details["parity"]
    run.show(
        done,
        f"export: {kind} in {done.manifest.precision}, {done.model_bytes / 1e6:.1f} MB; parity "
        f"over {parity['examples']} inputs: {_closeness(done.manifest.task, parity)}",
    )


def _closeness(task: Task, parity: dict[str, Any]) -> str:
    """Return how close a file's answers are, in what a task's answers are compared by."""
    moved, divergence, agreement = (
        parity[key] for key in ("max_abs_difference", "mean_kl", "agreement")
    )
    if task is Task.EMBEDDING:
        return f"vectors within {moved:.2g}, mean cosine {1 - divergence:.6f}"
    if task is Task.REGRESSION:
        return f"numbers within {moved:.2g}"
    close = f"logits within {moved:.2g}, mean KL {divergence:.2g}"
    return close if agreement is None else f"{close}, clear decisions agree in {agreement:.1%}"


def _parity_examples(run: "StageRun") -> "Examples | None":
    """Return some of the workspace's validation examples; None where there are none."""
    from tcompress.errors import DataError

    workspace = run.data.workspace
    if workspace is None:
        return None
    try:
        return workspace.sample("validation", _REAL_EXAMPLES, run.seed)
    except DataError as error:
        run.console.warn(f"parity is checked on random inputs only: {error}")
        return None


def _batched(encoder: "Encoder", examples: "Examples") -> "tuple[Batch, ...]":
    return tuple(batch for _, batch in encoder.preprocessor.encode(examples).batches(16))


def _calibration_examples(run: "StageRun", *, needed: bool) -> "Examples | None":
    """Return the examples to calibrate int8 on; None where nothing needs to be calibrated.

    Raises:
        RequestError: If no example is to be had, or nobody would read those that were named.
    """
    from tcompress.errors import RequestError

    if needed:
        return run.data.training_examples(_CALIBRATION_EXAMPLES, run.seed)
    if run.data.options.data is not None:
        msg = (
            "--data is what int8 is calibrated on, in OpenVINO models and with --activations "
            "static; nothing else reads it: leave it out"
        )
        raise RequestError(msg)
    return None


def _warn_of_range(console: "Console", *, saturates: bool, reduce_range: bool) -> None:
    if saturates and reduce_range:
        console.warn("this CPU has no int8 dot products: int8 weights are kept to 7 bits")
    elif saturates:
        console.warn("this CPU has no int8 dot products: with --full-range its int8 saturates")


def _has_int8(directory: Path, precision: str) -> bool:
    """Tell whether a file of this precision would hold anything in int8."""
    from tcompress.artifact import Manifest, is_artifact
    from tcompress.plan import Precision

    if precision != "plan":
        return precision == Precision.INT8
    if not is_artifact(directory):
        return False
    return any(
        (layer.heads and layer.attention is Precision.INT8)
        or (layer.neurons and layer.feed_forward is Precision.INT8)
        for layer in Manifest.read(directory).plan.layers
    )


def _one_by_one(
    run: "StageRun", encoder: "Encoder", examples: "Examples | None"
) -> "tuple[Batch, ...]":
    """Return examples as inputs, each alone: ranges are not to be taken from padding."""
    if examples is None:
        return ()
    encoded = run.encode(encoder, examples)
    return tuple(encoded.collate([position]) for position in range(len(examples)))
