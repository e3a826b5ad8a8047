import json
import re
from pathlib import Path
from typing import Any

from tcompress.evaluate.reporting.markdown import LONGEST_BYTES, render_markdown
from tcompress.evaluate.reporting.report import write_report

Document = dict[str, Any]


def test_names_from_files_are_only_ever_code(
    document: Document, hostile: tuple[str, ...], tmp_path: Path
):
    source, other = document["measurements"][0], document["measurements"][3]
    document["measurements"] = [source] + [other | {"artifact": name} for name in hostile]
    document["notes"] = list(hostile)
    document["data"]["origin"] = "".join(hostile)
    _, text, numbers, *cards = (p.read_text("utf-8") for p in write_report(document, tmp_path))
    for name in hostile[:-1]:
        shown = re.sub(r"[\x1b\u202e\ud800]", "\N{REPLACEMENT CHARACTER}", name.replace("\n", " "))
        as_code = shown.replace("`", "'").replace("|", "¦")
        assert text.count(f"`{as_code}`") >= 2
    outside = re.sub(r"`[^`\n]*`", "", text)
    assert not re.search(r"<(script|img)|::|@all|\[red\]|\*\*d", outside)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202a-\u202e]", "".join((text, *cards)))
    assert {line.count("|") for line in text.splitlines() if line.startswith("|")} == {12}
    assert json.loads(numbers)["notes"] == list(hostile)


def test_text_always_fits_a_comment_and_says_where_it_was_cut(full: Document):
    assert "_Cut here" not in render_markdown(full)
    full["notes"] = ["ä" * 500] * 300
    text = render_markdown(full)
    assert len(text.encode()) <= LONGEST_BYTES
    assert text.startswith("**On cpu, batch 1, 128 tokens: Ship")
    assert "_Cut here: the rest is in report.html and report.json._" in text
    assert text.count("<details>") == text.count("</details>")


def test_hundreds_of_measurements_still_fit(full: Document):
    first = full["measurements"][:5]
    full["measurements"] = [e | {"tokens": n} for n in range(8, 108) for e in first]
    text = render_markdown(full)
    assert len(text.encode()) <= LONGEST_BYTES
    assert text.count("<details>") == text.count("</details>")
