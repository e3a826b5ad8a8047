"""Writing one exported artifact: file, tokenizer, configuration, and the parity check."""

import json
from pathlib import Path
from typing import Any

from torch import nn

from tcompress.encoder import Encoder, copy_carried_files
from tcompress.errors import ExportError
from tcompress.preprocessing import Batch
from tcompress.runtime import (
    MODEL_FILES,
    ONNX_KIND,
    PROGRAM_KIND,
    TORCHSCRIPT_KIND,
    open_model_file,
)

from .deployment import DeployedEncoder, deploy
from .onnx_graph import expected_operators, write_onnx
from .parity import FP32_LIMITS, INT8_LIMITS, Parity, check_parity
from .program import write_program
from .torchscript import write_torchscript

FORMATS = (ONNX_KIND, TORCHSCRIPT_KIND, PROGRAM_KIND)


def write_export(
    encoder: Encoder,
    kind: str,
    directory: Path,
    *,
    reduce_range: bool = False,
    examples: tuple[Batch, ...] = (),
) -> dict[str, Any]:
    """Write an encoder in a format, with what is needed to run it, and check its parity.

    Args:
        encoder: The encoder; its plan says in which precision.
        kind: `onnx`, `torchscript` or `program`.
        directory: An existing directory, discarded by the caller if this raises.
        reduce_range: Whether int8 weights use 7 bits, for CPUs whose int8 products saturate.
        examples: Real inputs to check parity on as well.

    Returns:
        What a manifest has to say about the file.

    Raises:
        ExportError: If the encoder cannot be written in that format.
        ParityError: If the file does not compute what the encoder computes.
    """
    deployed = deploy(encoder)
    path = directory / MODEL_FILES[kind]
    _write(encoder, deployed, kind, path, reduce_range=reduce_range)
    copy_carried_files(encoder.directory, directory)
    details: dict[str, Any] = {
        "labels": list(encoder.labels),
        "input_names": list(deployed.input_names),
        "preprocessing": _preprocessing(encoder),
    }
    parity = _parity(encoder, kind, directory, list(deployed.input_names), examples)
    details["parity"] = parity.to_json()
    if kind == ONNX_KIND:
        details["operators"] = dict(expected_operators(deployed))
        details["reduce_range"] = reduce_range
    return details


def _write(
    encoder: Encoder, deployed: DeployedEncoder, kind: str, path: Path, *, reduce_range: bool
) -> None:
    inputs = tuple(encoder.example_tensors().values())
    if kind == ONNX_KIND:
        plan = encoder.plan.summary()
        metadata = {
            "tcompress.plan": json.dumps(plan),
            "tcompress.precision": encoder.plan.precision,
            "tcompress.labels": json.dumps(list(encoder.labels)),
        }
        write_onnx(deployed, path, metadata=metadata, reduce_range=reduce_range)
    elif kind == TORCHSCRIPT_KIND:
        write_torchscript(deployed, path, inputs)
    elif kind == PROGRAM_KIND:
        write_program(deployed, path, inputs)
    else:
        msg = f"unknown format {kind!r}; known are: {', '.join(FORMATS)}"
        raise ExportError(msg)


def _parity(
    encoder: Encoder,
    kind: str,
    directory: Path,
    input_names: list[str],
    examples: tuple[Batch, ...],
) -> Parity:
    limits = FP32_LIMITS if encoder.plan.precision == "fp32" else INT8_LIMITS
    return check_parity(encoder, open_model_file(kind, directory, input_names), limits, examples)


def _preprocessing(encoder: Encoder) -> dict[str, Any]:
    """Return what `open_preprocessor` needs to know about the model."""
    embedding = encoder.anatomy.embedding
    tokens = embedding.tokens
    return {
        "max_positions": embedding.max_tokens,
        "vocab_size": tokens.num_embeddings if isinstance(tokens, nn.Embedding) else 0,
        "token_types": embedding.token_types is not None,
    }
