"""OpenVINO models: what is looked at before OpenVINO reads them."""

from pathlib import Path

import pytest

from tcompress.encoder import Encoder
from tcompress.errors import ArtifactError
from tcompress.export.exporting import write_export
from tcompress.intake.openvino_files import check_openvino

_LAYER = '<layer name="w" type="Const" version="opset1"><data offset="0" size="8"/></layer>'
_BODY = '<layer version="opset8"><then_body><layers>{}</layers></then_body></layer>'


def _write(text: str | bytes, directory: Path) -> Path:
    (directory / "model.bin").write_bytes(bytes(8))
    path = directory / "model.xml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def _net(*layers: str) -> str:
    return f'<?xml version="1.0"?><net><layers>{"".join(layers)}</layers></net>'


def test_an_export_passes(bert: Encoder, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason='needs pip install "tcompress[openvino]"')
    write_export(bert, "openvino", tmp_path)
    check_openvino(tmp_path / "model.xml")


def test_a_constant_ends_where_the_numbers_end(tmp_path: Path) -> None:
    check_openvino(_write(_net(_LAYER), tmp_path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(_net(_LAYER.replace('"8"', '"9"')), "'w' lies outside", id="too long"),
        pytest.param(_net(_LAYER.replace('"0"', '"-1"')), "'w' lies outside", id="before"),
        pytest.param(_net(_LAYER.replace('"0"', '"0x0"')), "invalid literal", id="no number"),
        pytest.param(_net(_LAYER.replace('"8"', f'"{1 << 70}"')), "'w' lies outside", id="huge"),
        pytest.param(
            _net(_BODY.format(_LAYER.replace('"8"', '"9"'))), "'w' lies outside", id="in a branch"
        ),
        pytest.param(_net(_LAYER.replace("opset1", "extension")), "'extension'", id="extension"),
        pytest.param(_net(_LAYER.replace("opset1", "")), "operators of ''", id="no operator set"),
        pytest.param(
            _net(_LAYER).replace("<net", "<!DOCTYPE net [<!ENTITY a 'b'>]><net"),
            "definitions",
            id="entity",
        ),
        pytest.param(
            _net(_LAYER).replace("<net", "<!DOCTYPE net SYSTEM 'file:///etc/passwd'><net"),
            "definitions",
            id="other file",
        ),
        pytest.param(
            _net(_LAYER).replace("<net", "<!DOCTYPE net><net").encode("utf-16"),
            "utf-8",
            id="definition in UTF-16",
        ),
        pytest.param("<a>" * 100 + "</a>" * 100, "more than 64 deep", id="depth"),
        pytest.param(_net(), "0 layers", id="nothing"),
        pytest.param(_net(_LAYER)[:-5], "no element found|unclosed token", id="truncated"),
        pytest.param("", "no element found", id="empty"),
    ],
)
def test_what_openvino_does_not_get_to_see(text: str | bytes, says: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=rf"model\.xml: not an OpenVINO model .*({says})"):
        check_openvino(_write(text, tmp_path))


def test_both_files_must_be_there(tmp_path: Path) -> None:
    path = _write(_net(_LAYER), tmp_path)
    (tmp_path / "model.bin").unlink()
    with pytest.raises(ArtifactError, match=r"model\.bin: missing"):
        check_openvino(path)
