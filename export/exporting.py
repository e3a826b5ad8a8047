"""Writing one exported artifact: file, tokenizer, configuration, and the parity check."""

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from tcompress import storage
from tcompress.compress.static_inputs import static_inputs
from tcompress.encoder import Encoder, copy_carried_files
from tcompress.errors import ExportError
from tcompress.machine import int8_saturates
from tcompress.own_module import OwnModule
from tcompress.plan import Precision
from tcompress.preprocessing import TOKEN_TYPES, Batch, TensorPreprocessor, TextPreprocessor
from tcompress.runtime import (
    MODEL_FILES,
    ONNX_KIND,
    OPENVINO_KIND,
    PROGRAM_KIND,
    TORCHSCRIPT_KIND,
)

from . import openvino_ir
from .deployment import AppliedTransforms, deploy
from .metadata import file_metadata
from .onnx_graph import expected_operators, write_onnx
from .parity import FP32_LIMITS, check_executed, check_parity, limits_for
from .program import write_program
from .serving import Opener, served_here
from .torchscript import write_torchscript
from .traced import write_traced

_TOKENIZER_CONFIG = "tokenizer_config.json"
FORMATS = (ONNX_KIND, TORCHSCRIPT_KIND, PROGRAM_KIND, OPENVINO_KIND)
REDUCIBLE = (ONNX_KIND, OPENVINO_KIND)
"""Formats whose int8 weights may use 7 bits; torch's kernels keep activations to 7 instead."""


def write_export(
    encoder: Encoder,
    kind: str,
    directory: Path,
    *,
    reduce_range: bool | None = None,
    examples: tuple[Batch, ...] = (),
    calibration: tuple[Batch, ...] = (),
    opener: Opener = served_here,
) -> dict[str, Any]:
    """Write an encoder in a format, with what is needed to run it, and check its parity.

    Args:
        encoder: The encoder; its plan says in which precision, its preprocessor which inputs
            the file takes.
        kind: `onnx`, `torchscript`, `program` or `openvino`.
        directory: An existing directory, discarded by the caller if this raises.
        reduce_range: Whether int8 weights use 7 bits, for CPUs whose int8 products saturate; None
            for what this CPU needs.
        examples: Real inputs to check parity on as well.
        calibration: Real inputs to fix the scales of int8 activations on. OpenVINO's int8 needs
            some; an ONNX file takes its scales in each call where there are none.
        opener: Where files are opened to be checked; a `ServedProcess` may crash and harm nothing.

    Returns:
        What a manifest has to say about the file.

    Raises:
        CalibrationError: If int8 needs to be calibrated and there is nothing to do it on.
        ExportError: If the encoder cannot be written in that format, or the engine fails on the
            file or does not execute what the plan asks for.
        ParityError: If the file does not compute what the encoder computes.
    """
    if kind not in FORMATS:
        msg = f"unknown format {kind!r}; known are: {', '.join(FORMATS)}"
        raise ExportError(msg)
    reduce_range = int8_saturates() if reduce_range is None else reduce_range
    deployed = deploy(encoder)
    metadata = file_metadata(encoder, deployed, static=bool(calibration), reduce_range=reduce_range)
    path, traced = directory / MODEL_FILES[kind], not encoder.anatomy.plain
    if traced:
        write_traced(encoder, kind, path, metadata)
    elif kind == OPENVINO_KIND:
        model = _openvino_model(encoder, calibration, opener, reduce_range=reduce_range)
        openvino_ir.save(model, path, metadata)
    elif kind == ONNX_KIND:
        static = None
        if calibration:
            # fixed scales hold for real inputs only: the graph is tried on random ones in fp32
            source = replace(encoder, plan=encoder.plan.with_precision(Precision.FP32))
            write_onnx(deploy(source), path, metadata={})
            with opener(kind, directory, deployed.input_names) as served:
                check_parity(source, served.predict, FP32_LIMITS)
            static = static_inputs(deployed, calibration)
        write_onnx(deployed, path, metadata=metadata, reduce_range=reduce_range, static=static)
    else:
        write = {TORCHSCRIPT_KIND: write_torchscript, PROGRAM_KIND: write_program}[kind]
        write(deployed, path, tuple(encoder.example_tensors().values()))
    copy_carried_files(encoder.directory, directory)
    if isinstance(encoder.preprocessor, TextPreprocessor):
        _limit_tokenizer(directory, encoder.preprocessor)
    details: dict[str, Any] = {
        "labels": list(encoder.labels),
        "input_names": list(deployed.input_names),
        "preprocessing": _preprocessing(encoder),
    }
    if not traced:
        details["transforms"] = asdict(AppliedTransforms.between(encoder.anatomy, deployed))
    real, limits = (*examples, *calibration), limits_for(encoder.plan, encoder.task)
    with opener(kind, directory, deployed.input_names) as served:
        parity = check_parity(encoder, served.predict, limits, real, random_inputs=not calibration)
        executed = served.operators()
    details["parity"] = parity.to_json()
    if traced:
        return details
    if kind == ONNX_KIND:
        expected = expected_operators(deployed)
        check_executed(executed, expected)
        details["operators"] = {**expected, "executed": executed}
    elif kind == OPENVINO_KIND:
        planned = openvino_ir.planned_int8_weights(deployed, encoder.plan)
        details["int8_weights"] = dict(planned)
    if kind in REDUCIBLE and deployed.linears_in(Precision.INT8):
        details["reduce_range"] = reduce_range
    return details


def _openvino_model(
    encoder: Encoder, calibration: tuple[Batch, ...], opener: Opener, *, reduce_range: bool
) -> Any:
    """Convert, and lower what converted well: int8 itself is only compared on real inputs."""
    openvino_ir.check_precisions(encoder.plan)
    source = replace(encoder, plan=encoder.plan.with_precision(Precision.FP32))
    deployed = deploy(source)
    converted = openvino_ir.convert(deployed)
    planned = openvino_ir.planned_int8_weights(deployed, encoder.plan)
    if not planned:
        return converted.model
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / MODEL_FILES[OPENVINO_KIND]
        openvino_ir.save(converted.model, path, {"tcompress.precision": source.plan.precision})
        with opener(OPENVINO_KIND, path.parent, deployed.input_names) as served:
            check_parity(source, served.predict, FP32_LIMITS)
    return openvino_ir.quantize(converted, planned, calibration, reduce_range=reduce_range)


def _limit_tokenizer(directory: Path, preprocessor: TextPreprocessor) -> None:
    """Let the exported tokenizer give the file's inputs only, so that its output fits as it is."""
    if set(preprocessor.tokenizer.model_input_names) <= set(preprocessor.input_names):
        return
    path = directory / _TOKENIZER_CONFIG
    document = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    document["model_input_names"] = list(preprocessor.input_names)
    storage.write_text(path, json.dumps(document, indent=2) + "\n")


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
        **({} if text is None else {"unit": text.unit.value}),
        **({} if embedding.patches is None else {"patches": embedding.patches}),
        **_of_own_module(encoder),
    }


def _of_own_module(encoder: Encoder) -> dict[str, Any]:
    """Return what else it has to know of a user's own module, which no configuration says."""
    if not isinstance(encoder.model, OwnModule):
        return {}
    preprocessor = encoder.preprocessor
    tensors = isinstance(preprocessor, TensorPreprocessor)
    return {
        "masked": encoder.model.masked,
        **({"tensors": asdict(encoder.model.inputs)} if tensors else {}),
    }
