"""OpenVINO models, before OpenVINO reads them."""

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, fromstring

from ..errors import ArtifactError

_LIMIT_BYTES = 32 << 20
_MOST_LAYERS, _MOST_DEPTH = 100_000, 64
# A definition could name other files, or unfold without end.
_DEFINITIONS = re.compile(r"<!\s*(DOCTYPE|ENTITY)", re.IGNORECASE)
# Anything else is an extension: code that someone has to load.
_OPSET = re.compile(r"opset([1-9]|1\d)")


def check_openvino(path: Path) -> None:
    """Raise unless a model's graph is plain XML whose constants lie within its file of numbers.

    Its operators are of OpenVINO's own sets, whose types OpenVINO itself knows.

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
    try:
        # as text of one encoding: the file cannot name another, which hides definitions
        text = path.read_bytes().decode("utf-8")
        if _DEFINITIONS.search(text):
            msg = "XML with definitions of its own"
            raise ValueError(msg)
        _check_layers(fromstring(text), numbers.stat().st_size)
    except (ParseError, ValueError) as error:
        msg = f"{path}: not an OpenVINO model that is safe to open: {error}; export the model again"
        raise ArtifactError(msg) from error


def _check_layers(model: Element, size: int) -> None:
    layers = [element for element in _elements(model) if element.tag == "layer"]
    if not 0 < len(layers) <= _MOST_LAYERS:
        msg = f"{len(layers)} layers"
        raise ValueError(msg)
    for layer in layers:
        if not _OPSET.fullmatch(layer.get("version", "")):
            msg = f"operators of {layer.get('version', '')[:60]!r}"
            raise ValueError(msg)
        for data in layer.findall("data"):
            _check_constant(layer.get("name", "")[:60], data, size)


def _elements(parent: Element, depth: int = 0) -> Iterator[Element]:
    """Yield an element and all within, those of graphs within graphs too."""
    if depth > _MOST_DEPTH:
        msg = f"elements within elements, more than {_MOST_DEPTH} deep"
        raise ValueError(msg)
    yield parent
    for child in parent:
        yield from _elements(child, depth + 1)


def _check_constant(name: str, data: Element, size: int) -> None:
    """Raise if a layer's attributes say that its numbers lie outside of the file of numbers."""
    if data.get("offset") is None:
        return
    offset, length = int(data.get("offset", "")), int(data.get("size", "-1"))
    if offset < 0 or length < 0 or offset + length > size:
        msg = f"the constant {name!r} lies outside of its {size} bytes of numbers"
        raise ValueError(msg)
