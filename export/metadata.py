"""What a deployable file says about itself, wherever it ends up."""

import json
from dataclasses import asdict, dataclass

import tcompress
from tcompress.encoder import Encoder
from tcompress.plain import PlainEncoder
from tcompress.plan import Precision
from tcompress.workspace import reference_to


@dataclass(frozen=True)
class Int8Scheme:
    """How a file represents numbers in int8.

    Attributes:
        activations: Inputs of the products.
        weights: Matrices of the products.
        tables: Tables whose rows are looked up: of tokens, and in an ONNX file of positions.
        reduce_range: Whether weights use 7 of the 8 bits.
    """

    activations: str
    weights: str
    tables: str
    reduce_range: bool

    @classmethod
    def of(cls, *, static: bool, reduce_range: bool) -> "Int8Scheme":
        """Return the scheme of a file.

        Args:
            static: Whether scales of activations are fixed ahead of time.
            reduce_range: Whether int8 weights use 7 bits.
        """
        activations = f"{'static' if static else 'dynamic'} u8 per tensor"
        return cls(activations, "s8 per output channel", "s8 per row", reduce_range)


def file_metadata(
    encoder: Encoder, deployed: PlainEncoder, *, static: bool, reduce_range: bool
) -> dict[str, str]:
    """Return what a file is to say about itself: equal input, equal text.

    Args:
        encoder: The encoder.
        deployed: What is written of it.
        static: Whether scales of int8 activations are fixed ahead of time.
        reduce_range: Whether int8 weights use 7 bits.
    """
    metadata = {
        "tcompress.version": tcompress.__version__,
        "tcompress.parent": reference_to(encoder.directory).digest,
        "tcompress.plan": json.dumps(encoder.plan.summary()),
        "tcompress.precision": encoder.plan.precision,
        "tcompress.labels": json.dumps(list(encoder.labels)),
    }
    if deployed.linears_in(Precision.INT8):
        scheme = Int8Scheme.of(static=static, reduce_range=reduce_range)
        metadata["tcompress.int8"] = json.dumps(asdict(scheme))
    return metadata
