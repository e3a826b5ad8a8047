"""OpenVINO models, before OpenVINO reads them."""

import re
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, fromstring

from ..errors import ArtifactError

_LIMIT_BYTES = 64 << 20
_MOST_LAYERS = 100_000
# A definition could name other files, or unfold without end.
_DEFINITIONS = re.compile(rb"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)


def check_openvino(path: Path) -> None:
    """Raise unless a model's graph is plain XML whose constants lie within its file of numbers.

    Args:
        path: The graph, `model.xml`; its numbers are in `model.bin` beside it.

    Raises:
        ArtifactError: If it is not.
    """
    numbers = path.with_suffix(".bin")
    for file, limit in ((path, _LIMIT_BYTES), (numbers, None)):
        if not file.is_file() or (limit is not None and file.stat().st_size > limit):
            msg = f"{file}: missing, or larger than a model's graph; export the model again"
            raise ArtifactError(msg)
    text = path.read_bytes()
    if _DEFINITIONS.search(text):
        raise ArtifactError(_refused(path, "XML with definitions of its own"))
    try:
        layers = fromstring(text).findall("./layers/layer")
        _check_layers(layers, numbers.stat().st_size)
    except (ParseError, ValueError) as error:
        raise ArtifactError(_refused(path, error)) from error


def _check_layers(layers: list[Element], size: int) -> None:
    if not 0 < len(layers) <= _MOST_LAYERS:
        msg = f"{len(layers)} layers"
        raise ValueError(msg)
    for layer in layers:
        data = layer.find("data")
        if data is None or "offset" not in data.keys():  # noqa: SIM118 - an Element is no mapping
            continue
        offset, length = int(data.get("offset", -1)), int(data.get("size", -1))
        if offset < 0 or length < 0 or offset + length > size:
            msg = f"the constant {layer.get('name')!r} lies outside of its {size} bytes of numbers"
            raise ValueError(msg)


def _refused(path: Path, why: object) -> str:
    return f"{path}: not an OpenVINO model that is safe to open: {why}; export the model again"
