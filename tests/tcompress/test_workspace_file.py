from pathlib import Path

import pytest

from tcompress.errors import WorkspaceError
from tcompress.workspace import CONFIG_FILE, Workspace

HEAD = 'schema_version = 1\nmodel = "m"\n'
DATA = '[data]\nfile = "d.csv"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(HEAD + "seed = -1\n" + DATA, "seed must be from 0", id="negative seed"),
        pytest.param(HEAD + "seed = true\n" + DATA, "seed must be of type int", id="bool"),
        pytest.param(HEAD + "max_drop = nan\n" + DATA, "max_drop must be from 0 to 1", id="nan"),
        pytest.param(HEAD + 'max_drop = "1%"\n' + DATA, "of type float, got '1%'", id="text"),
        pytest.param(HEAD + "[data]\nfile = 3\n", "file must be of type str, got 3", id="path"),
        pytest.param(
            'schema_version = 1\nmodel = "a\\u0000b"\n' + DATA,
            "model must not hold the character NUL",
            id="nul in the model",
        ),
        pytest.param(
            HEAD + '[data]\nfile = "d\\u0000.csv"\n', "file must not hold", id="nul in the data"
        ),
        pytest.param(HEAD + "data = 3\n", r"\[data\] must be a table", id="no table"),
        pytest.param(
            HEAD + DATA + "test_fraction = 7\n", "test_fraction must be from 0 to 1", id="fraction"
        ),
        pytest.param(HEAD + "x = 1\n" + DATA, "unknown key 'x'", id="unknown"),
        pytest.param("!!python/object:os.system x", "cannot be read as TOML", id="yaml tag"),
        pytest.param(f"a = {'[' * 100_000}", "cannot be read as TOML", id="deep"),
        pytest.param(f"#{'x' * (1 << 20)}", "larger than 1,048,576 bytes", id="large"),
        pytest.param("schema_version = 2", "schema_version must be 1, got 2", id="newer"),
    ],
)
def test_workspace_file_that_cannot_be_meant_is_one_line(
    tmp_path: Path, text: str, says: str
) -> None:
    (tmp_path / CONFIG_FILE).write_text(text)
    with pytest.raises(WorkspaceError, match=says) as caught:
        Workspace.open(tmp_path)
    assert str(caught.value).startswith(str(tmp_path / CONFIG_FILE))
