"""`tcompress quantize`."""

from typing import TYPE_CHECKING, Any

import click

from tcompress.options import CONTEXT, Common, StageOptions, common_options, stage_options

if TYPE_CHECKING:
    from tcompress.encoder import Encoder


@click.command(context_settings=CONTEXT, short_help="Plan int8 for every sublayer.")
@click.option(
    "--precision", type=click.Choice(("int8", "fp32")), default="int8", help="Of all sublayers."
)
@stage_options
@common_options
def quantize(precision: str, stage: StageOptions, common: Common) -> None:
    """Write dynamic int8 into the plan; export makes it real for a format.

    The weights stay as they are, so that one artifact feeds every format.

    \b
    Example:
      tcompress quantize
      tcompress quantize && tcompress export --format onnx
    """
    from tcompress.plan import Precision
    from tcompress.stages import StageRun

    run = StageRun.open("quantize", common, stage, builds_on=("prune", "finetune"))

    def work(encoder: "Encoder") -> dict[str, Any]:
        encoder.plan = encoder.plan.with_precision(Precision(precision))
        return {}

    done = run.transform({"precision": precision}, work)
    run.show(done, f"quantize: every sublayer planned in {precision}")
