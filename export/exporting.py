"""Writing one exported artifact: file, tokenizer, configuration, and the parity check."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from tcompress.encoder import Encoder, copy_carried_files
from tcompress.errors import ExportError
from tcompress.plain import PlainEncoder
from tcompress.plan import Precision
from tcompress.preprocessing import TOKEN_TYPES, Batch, TextPreprocessor
from tcompress.runtime import (
    MODEL_FILES,
    ONNX_KIND,
    OPENVINO_KIND,
    PROGRAM_KIND,
    TORCHSCRIPT_KIND,
    open_model_file,
    serve_openvino,
)

from . import openvino_ir
from .deployment import AppliedTransforms, deploy
from .onnx_graph import expected_operators, write_onnx
from .parity import FP32_LIMITS, check_parity, limits_for
from .program import write_program
from .torchscript import write_torchscript

_TOKENIZER_CONFIG = "tokenizer_config.json"
FORMATS = (ONNX_KIND, TORCHSCRIPT_KIND, PROGRAM_KIND, OPENVINO_KIND)


def write_export(
    encoder: Encoder,
    kind: str,
    directory: Path,
    *,
    reduce_range: bool = False,
    examples: tuple[Batch, ...] = (),
    calibration: tuple[Batch, ...] = (),
) -> dict[str, Any]:
    """Write an encoder in a format, with what is needed to run it, and check its parity.

    Args:
        encoder: The encoder; its plan says in which precision, its preprocessor which inputs
            the file takes.
        kind: `onnx`, `torchscript`, `program` or `openvino`.
        directory: An existing directory, discarded by the caller if this raises.
        reduce_range: Whether int8 weights use 7 bits, for CPUs whose int8 products saturate.
        examples: Real inputs to check parity on as well.
        calibration: Real inputs to take the ranges of activations from; OpenVINO's int8 needs some.

    Returns:
        What a manifest has to say about the file.

    Raises:
        CalibrationError: If int8 needs to be calibrated and there is nothing to do it on.
        ExportError: If the encoder cannot be written in that format.
        ParityError: If the file does not compute what the encoder computes.
    """
    deployed = deploy(encoder)
    path = directory / MODEL_FILES[kind]
    _write(encoder, deployed, kind, path, reduce_range=reduce_range, calibration=calibration)
    copy_carried_files(encoder.directory, directory)
    if isinstance(encoder.preprocessor, TextPreprocessor):
        _limit_tokenizer(directory, encoder.preprocessor)
    details: dict[str, Any] = {
        "labels": list(encoder.labels),
        "input_names": list(deployed.input_names),
        "preprocessing": _preprocessing(encoder),
        "transforms": asdict(AppliedTransforms.between(encoder.anatomy, deployed)),
    }
    predict = open_model_file(kind, directory, list(deployed.input_names))
    real, limits = (*examples, *calibration), limits_for(encoder.plan)
    parity = check_parity(encoder, predict, limits, real, random_inputs=not calibration)
    details["parity"] = parity.to_json()
    if kind == ONNX_KIND:
        details["operators"] = dict(expected_operators(deployed))
        details["reduce_range"] = reduce_range
    elif kind == OPENVINO_KIND:
        planned = openvino_ir.planned_int8_weights(deployed, encoder.plan)
        details["int8_weights"] = dict(planned)
        details["reduce_range"] = reduce_range
    return details


def _write(
    encoder: Encoder,
    deployed: PlainEncoder,
    kind: str,
    path: Path,
    *,
    reduce_range: bool,
    calibration: tuple[Batch, ...],
) -> None:
    inputs = tuple(encoder.example_tensors().values())
    metadata = {
        "tcompress.plan": json.dumps(encoder.plan.summary()),
        "tcompress.precision": encoder.plan.precision,
        "tcompress.labels": json.dumps(list(encoder.labels)),
    }
    if kind == ONNX_KIND:
        write_onnx(deployed, path, metadata=metadata, reduce_range=reduce_range)
    elif kind == TORCHSCRIPT_KIND:
        write_torchscript(deployed, path, inputs)
    elif kind == PROGRAM_KIND:
        write_program(deployed, path, inputs)
    elif kind == OPENVINO_KIND:
        _write_openvino(encoder, path, metadata, calibration, reduce_range=reduce_range)
    else:
        msg = f"unknown format {kind!r}; known are: {', '.join(FORMATS)}"
        raise ExportError(msg)


def _write_openvino(
    encoder: Encoder,
    path: Path,
    metadata: dict[str, str],
    calibration: tuple[Batch, ...],
    *,
    reduce_range: bool,
) -> None:
    """Convert, and lower what converted well: int8 itself is only compared on real inputs."""
    openvino_ir.check_precisions(encoder.plan)
    source = replace(encoder, plan=encoder.plan.with_precision(Precision.FP32))
    deployed = deploy(source)
    converted = openvino_ir.convert(deployed)
    model, planned = converted.model, openvino_ir.planned_int8_weights(deployed, encoder.plan)
    if planned:
        check_parity(source, serve_openvino(model, deployed.input_names), FP32_LIMITS)
        model = openvino_ir.quantize(converted, planned, calibration, reduce_range=reduce_range)
    openvino_ir.save(model, path, metadata)


def _limit_tokenizer(directory: Path, preprocessor: TextPreprocessor) -> None:
    """Let the exported tokenizer give the file's inputs only, so that its output fits as it is."""
    if set(preprocessor.tokenizer.model_input_names) <= set(preprocessor.input_names):
        return
    path = directory / _TOKENIZER_CONFIG
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    document["model_input_names"] = list(preprocessor.input_names)
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _preprocessing(encoder: Encoder) -> dict[str, Any]:
    """Return what `open_preprocessor` needs to know about the file."""
    embedding, preprocessor = encoder.anatomy.embedding, encoder.preprocessor
    tokens = embedding.tokens
    text = preprocessor if isinstance(preprocessor, TextPreprocessor) else None
    return {
        "max_positions": embedding.max_tokens,
        "vocab_size": tokens.num_embeddings if isinstance(tokens, nn.Embedding) else 0,
        "token_types": text is not None and TOKEN_TYPES in text.input_names,
        "pairs": text is None or text.pairs,
    }
