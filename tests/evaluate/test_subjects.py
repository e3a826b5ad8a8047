from pathlib import Path

import pytest

from tcompress.evaluate import subjects
from tcompress.evaluate.subjects import saturation_notes
from tcompress.machine import cpu_features, int8_saturates


@pytest.mark.skipif(
    int8_saturates(), reason="on this CPU an export of full range fails its parity check"
)
def test_int8_files_that_saturate_on_this_cpu_are_named(
    text_workspace: Path, tcompress, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    words = ("export", "--precision", "int8", "--workspace", text_workspace, "--output")
    for option in ("--full-range", "--reduce-range"):
        made.append(text_workspace / option.strip("-"))
        assert tcompress(*words, made[-1], option).exit_code == 0
    monkeypatch.setattr(subjects, "cpu_features", lambda: dict.fromkeys(cpu_features(), False))
    (note,) = saturation_notes([text_workspace, *made])
    assert note.startswith(f"{made[0]}: its int8 weights use 8 bits, on which this CPU saturates")
    monkeypatch.setattr(
        subjects, "cpu_features", lambda: dict.fromkeys(cpu_features(), False) | {"avx_vnni": True}
    )
    assert saturation_notes(made) == ()
