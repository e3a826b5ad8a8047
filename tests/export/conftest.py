import pytest

from tcompress.export.exporting import FORMATS


@pytest.fixture(params=FORMATS)
def any_format(request: pytest.FixtureRequest) -> str:
    """One export format after the other; OpenVINO's where it is installed."""
    if request.param == "openvino":
        pytest.importorskip("nncf", reason='needs pip install "tcompress[openvino]"')
    return request.param
