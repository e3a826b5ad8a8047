"""Make a peer's files from a fine-tuned model, with the peer's own tools, in its environment.

`python peers_prepare.py RECIPE READ TARGET CALIBRATION`: READ is what the recipe starts from,
CALIBRATION a JSON list of model inputs, token ids by input name.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def export_optimum(read: Path, target: Path, *_: Path) -> None:
    """Export a model to ONNX with optimum.

    Args:
        read: The fine-tuned model.
        target: Where to write.
    """
    from optimum.onnxruntime import ORTModelForSequenceClassification

    ORTModelForSequenceClassification.from_pretrained(read, export=True).save_pretrained(target)


def quantize_optimum(read: Path, target: Path, *_: Path) -> None:
    """Quantize optimum's export: dynamic int8, one scale per channel.

    Args:
        read: What `export_optimum` wrote.
        target: Where to write.
    """
    from optimum.onnxruntime import ORTQuantizer
    from optimum.onnxruntime.configuration import AutoQuantizationConfig

    recipe = AutoQuantizationConfig.avx512_vnni(is_static=False, per_channel=True)
    ORTQuantizer.from_pretrained(read).quantize(save_dir=target, quantization_config=recipe)


def convert_openvino(read: Path, target: Path, *_: Path) -> None:
    """Convert optimum's export to OpenVINO's IR.

    Args:
        read: What `export_optimum` wrote.
        target: Where to write.
    """
    import openvino

    model = openvino.convert_model(read / "model.onnx")
    openvino.save_model(model, target / "model.xml", compress_to_fp16=False)


def quantize_openvino(read: Path, target: Path, calibration: Path) -> None:
    """Quantize the IR with NNCF, for transformers.

    Args:
        read: What `convert_openvino` wrote.
        target: Where to write.
        calibration: Model inputs.
    """
    import nncf
    import openvino

    model = openvino.Core().read_model(read / "model.xml")
    names = [item.get_any_name() for item in model.inputs]
    examples: list[dict[str, list[int]]] = json.loads(calibration.read_text())
    data = [{name: np.asarray([row[name]], np.int64) for name in names} for row in examples]
    quantized = nncf.quantize(
        model, nncf.Dataset(data), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(data)
    )
    openvino.save_model(quantized, target / "model.xml", compress_to_fp16=False)


def convert_ctranslate2(read: Path, target: Path, *_: Path) -> None:
    """Convert encoder and pooler for CTranslate2 in int8; keep the classifier beside them.

    Args:
        read: The fine-tuned model.
        target: Where to write.
    """
    from ctranslate2.converters import TransformersConverter
    from transformers import AutoModelForSequenceClassification

    model: Any = AutoModelForSequenceClassification.from_pretrained(read)
    converter = TransformersConverter(str(read))
    converter.convert(str(target), quantization="int8", force=True)
    head = model.classifier
    np.savez(
        target / "classifier.npz",
        weight=head.weight.detach().numpy(),
        bias=head.bias.detach().numpy(),
    )


RECIPES: dict[str, Callable[..., None]] = {
    "optimum": export_optimum,
    "optimum-int8": quantize_optimum,
    "openvino": convert_openvino,
    "openvino-int8": quantize_openvino,
    "ctranslate2-int8": convert_ctranslate2,
}


def main() -> None:
    """Follow a recipe."""
    recipe, *paths = sys.argv[1:]
    RECIPES[recipe](*map(Path, paths))


if __name__ == "__main__":
    main()
