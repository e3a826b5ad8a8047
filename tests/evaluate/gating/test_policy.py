from dataclasses import fields
from pathlib import Path

import pytest

from tcompress.errors import InputError, RequestError
from tcompress.evaluate.gating.policy import (
    POLICY_FILE,
    Policy,
    find_policy,
    make_policy,
    read_values,
)
from tcompress.evaluate.gating.verdict import OnInconclusive

SECTIONED = """
[quality]
min_retained = "99.9%"
slice_columns = ["topic"]
max_slice_drop = 0.05
[latency]
min_speedup = 2
batch = 8
[evidence]
on_inconclusive = "warn"
"""
FLAT = """
min_retained = 0.999
slice_columns = ["topic"]
max_slice_drop = 0.05
min_speedup = 2.0
batch = 8
on_inconclusive = "warn"
"""


def write(directory: Path, text: str, name: str = POLICY_FILE) -> Path:
    path = directory / name
    path.write_text(text)
    return path


def test_sections_and_flat_keys_say_the_same(tmp_path: Path):
    one, other = (make_policy(read_values(write(tmp_path, t))) for t in (SECTIONED, FLAT))
    assert one == other
    assert one == Policy(
        min_retained=0.999,
        slice_columns=("topic",),
        max_slice_drop=0.05,
        min_speedup=2.0,
        batch=8,
        on_inconclusive=OnInconclusive.WARN,
    )
    assert one.limits == {"min_retained": 0.999, "max_slice_drop": 0.05, "min_speedup": 2.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_dropp = 0.1", r"unknown key 'max_dropp'; did you mean 'max_drop'\?"),
        ("[qualiti]\nmax_drop = 0.1", r"unknown key 'qualiti'; did you mean 'quality'\?"),
        ("zzz = 1", "unknown key 'zzz'; known are: metric, max_drop"),
        ("[size]\nmax_drop = 0.1", r"max_drop stands in \[size\], it belongs in \[quality\]"),
        ("max_drop = 0.1\n[quality]\nmax_drop = 0.2", "max_drop is given twice"),
        ("max_drop = 1", "max_drop must be a number above 0 and below 1, got 1"),
        ("max_drop = nan", "max_drop must be a number above 0 and below 1, got nan"),
        ("min_speedup = inf", "min_speedup must be a number above 0, got inf"),
        ("max_drop = '1'", "max_drop must be a number above 0 and below 1, got '1'"),
        ("min_retained = '101%'", "min_retained must be a number above 0 and below 1, got 1.01"),
        ("max_drop = true", "max_drop must be a number above 0 and below 1, got True"),
        ("batch = 1.5", "batch must be a whole number above 0, got 1.5"),
        ("slice_columns = 'topic'", "slice_columns must be a list of names, got 'topic'"),
        ("on_inconclusive = 'pass'", "on_inconclusive must be one of fail, warn, got 'pass'"),
        ("metric = 'acuracy'", "metric must be one of accuracy, .*, got 'acuracy'"),
        ("max_drop = ", "cannot be read as TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_the_file(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, text)
    with pytest.raises(InputError, match=message) as caught:
        read_values(path)
    assert str(caught.value).startswith(str(path))


def test_a_policy_that_limits_nothing_is_refused():
    with pytest.raises(RequestError, match="nothing is limited"):
        make_policy({"alpha": 0.01, "slice_columns": ("topic",), "budget_s": 3.0})


def test_two_margins_of_one_source_are_refused_and_a_later_one_replaces_an_earlier():
    with pytest.raises(RequestError, match="max_drop and min_retained limit the same"):
        make_policy({"max_drop": 0.01, "min_retained": 0.99})
    found = make_policy({"max_drop": 0.01, "alpha": 0.1}, {"min_retained": "99%", "alpha": None})
    assert (found.max_drop, found.min_retained, found.alpha) == (None, 0.99, 0.1)


def test_one_policy_is_found_and_two_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_policy(None, None) is None
    config = write(workspace, 'model = "m"\n[gate]\nmax_drop = 0.03\n', "tcompress.toml")
    assert find_policy(None, workspace) == config
    assert read_values(config) == {"max_drop": 0.03}
    own = write(workspace, "max_drop = 0.01")
    with pytest.raises(InputError, match="both hold a policy"):
        find_policy(None, workspace)
    assert find_policy(own, workspace) == own


def test_every_key_is_checked(tmp_path: Path):
    for item in fields(Policy):
        with pytest.raises(InputError, match=f"{item.name} must be"):
            read_values(write(tmp_path, f"{item.name} = {{}}"))
