"""`tcompress quantize`."""

from typing import TYPE_CHECKING, Any

import click

from tcompress.options import (
    CONTEXT,
    Common,
    StageOptions,
    common_options,
    refuse_typed,
    stage_options,
)

if TYPE_CHECKING:
    from tcompress.artifact import Artifact
    from tcompress.console import Console
    from tcompress.encoder import Encoder
    from tcompress.stages import StageRun

    from .cost import OpenMeter


@click.command(context_settings=CONTEXT, short_help="Plan a precision for every sublayer.")
@click.option(
    "--precision",
    type=click.Choice(("int8", "bf16", "fp16", "fp32", "mixed")),
    default="int8",
    help="Of all sublayers; mixed chooses for each.",
)
@click.option(
    "--engine",
    type=click.Choice(("onnxruntime", "pytorch", "cuda")),
    help="Engine that will serve; mixed is measured in it.  [default: onnxruntime for mixed]",
)
@click.option("--batch", type=click.IntRange(min=1), default=1, help="Examples per call there.")
@click.option("--tokens", type=click.IntRange(min=1), default=128, help="Tokens per example there.")
@click.option(
    "--max-drop",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="For mixed: largest accuracy drop, as a fraction; else the workspace's.",
)
@click.option(
    "--calibrate",
    is_flag=True,
    help="For int8: even out channels on training examples, kept where int8 then loses less.",
)
@click.option(
    "--max-examples",
    type=click.IntRange(min=1),
    default=256,
    help="For mixed and --calibrate: calibration examples, drawn from the training split.",
)
@stage_options
@common_options
@click.pass_obj
def quantize(
    open_meter: "OpenMeter",
    /,
    precision: str,
    engine: str | None,
    batch: int,
    tokens: int,
    max_drop: float | None,
    calibrate: bool,
    max_examples: int,
    stage: StageOptions,
    common: Common,
) -> None:
    """Write precisions into the plan; export makes them real for a format.

    The weights stay fp32, so that one artifact feeds every format. Norms, the residual stream and
    the head stay in fp32.

    --calibrate is for encoders whose channels differ much in size. It moves their offsets and
    scales between weights and biases, which changes no fp32 answer.

    mixed lowers each sublayer as far as the answers allow and the engine gains: it measures both
    for every sublayer and precision, takes the fastest combination, and confirms it on the
    validation split within --max-drop.

    \b
    Example:
      tcompress quantize
      tcompress quantize && tcompress export --format onnx
      tcompress quantize --precision mixed --max-drop 0.005
    """
    from tcompress.machine import usable_cpus
    from tcompress.stages import StageRun

    from .cost import Engine, Serving

    if precision != "mixed":
        why = f"goes with --precision mixed, not {precision}"
        refuse_typed(("max_drop", "batch", "tokens"), why)
        if not calibrate:
            refuse_typed(("max_examples",), "goes with --precision mixed or --calibrate")
    if calibrate and precision != "int8":
        msg = f"--calibrate goes with --precision int8, not {precision}"
        raise click.UsageError(msg)
    run = StageRun.open("quantize", common, stage, builds_on=("prune", "finetune"))
    serving = None
    if engine is not None or precision == "mixed":
        kind = Engine(engine or "onnxruntime")
        serving = Serving(kind, precision, batch, tokens, usable_cpus())
    if calibrate:
        done = _calibrated(run, max_examples)
        run.show(done, _calibration_summary(done))
        return
    if precision != "mixed" or serving is None:
        run.show(_uniform(run, precision), f"quantize: every sublayer planned in {precision}")
        return
    from .mixed_stage import MixedStage

    done = MixedStage(run, serving, max_drop, max_examples, open_meter).artifact()
    run.show(done, *_summary(done))
    if not common.console.as_json:
        _show_options(common.console, done)


def _uniform(run: "StageRun", precision: str) -> "Artifact":
    from tcompress.plan import Precision

    def work(encoder: "Encoder") -> dict[str, Any]:
        encoder.plan = encoder.plan.with_precision(Precision(precision))
        return {}

    return run.transform(run.key({"precision": precision}), work)


def _calibrated(run: "StageRun", count: int) -> "Artifact":
    from tcompress.errors import RequestError
    from tcompress.plan import Precision
    from tcompress.stage_key import Reads

    from .int8_calibration import calibrate_int8_

    if run.data.workspace is None:
        msg = (
            "--calibrate draws on a workspace's training split; start one with "
            "`tcompress init MODEL --data FILE`"
        )
        raise RequestError(msg)
    drawn = run.data.training_examples(2 * count, run.seed)
    examples = drawn.sample(len(drawn) // 2, run.seed)
    held_out = drawn.without(examples)

    def work(encoder: "Encoder") -> dict[str, Any]:
        encoder.plan = encoder.plan.with_precision(Precision.INT8)
        with run.console.step("quantize: evening out channels"):
            calibration = calibrate_int8_(
                encoder, run.encode(encoder, examples), run.encode(encoder, held_out)
            )
        return {"calibration": {"digest": examples.digest} | calibration.to_json()}

    digests = {"data": examples.digest, "held_out": held_out.digest}
    recipe = {"precision": "int8", "calibrate": True} | digests
    return run.transform(run.key(recipe, Reads(cpu=True)), work)


def _calibration_summary(artifact: "Artifact") -> str:
    found = artifact.manifest.details["calibration"]
    before, after = found["divergence_before"], found["divergence"]
    verdict = "kept" if found["kept"] else "left as they were"
    return (
        f"quantize: every sublayer planned in int8; divergence {before:.3g} nats, {after:.3g} with "
        f"channels evened out ({found['held_out']} held-out examples): {verdict}"
    )


def _summary(artifact: "Artifact") -> list[str]:
    details = artifact.manifest.details
    chosen = [option for option in details["options"] if option["chosen"]]
    serving, judged = details["serving"], details["selection"]
    line = (
        f"quantize: {len(chosen)} sublayers lowered, {sum(o['saved_ms'] for o in chosen):.2f} ms "
        f"saved in {serving['engine']} at ({serving['batch']}, {serving['tokens']})"
    )
    if judged["accuracy"] is None:
        return [line]
    what = "accuracy" if judged["labels"] == "data" else "agreement"
    return [
        line,
        f"{what} on {judged['examples']} validation examples: "
        f"{judged['accuracy_before']:.4f} before, {judged['accuracy']:.4f} after; divergence "
        f"{judged['divergence']:.3g} nats",
    ]


def _show_options(console: "Console", artifact: "Artifact") -> None:
    rows = [
        (
            f"{option['layer']} {option['part']}",
            option["precision"],
            "overflows" if option["divergence"] is None else f"{1000 * option['divergence']:.3f}",
            f"{option['saved_ms']:.3f}",
            "yes" if option["chosen"] else "",
        )
        for option in artifact.manifest.details["options"]
    ]
    console.table(("sublayer", "precision", "KL x 1000", "ms saved", "chosen"), rows)
