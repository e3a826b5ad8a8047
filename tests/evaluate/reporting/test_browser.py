"""The page in a real browser, with no network to reach."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from tcompress.evaluate.reporting.html import render_html

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_BROWSER = next((path for name in _NAMES if (path := shutil.which(name))), None)
_OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND", "--disable-background-networking")
_QUIET = ("--disable-component-update", "--disable-sync", "--no-first-run", "--hide-scrollbars")
# What Chromium asks for by itself.
_OWN = re.compile(r"https?://[\w.-]+\.(google|googleapis)\.com/|chrome:|data:|file:")
_DARK = "--blink-settings=preferredColorScheme=0"

pytestmark = pytest.mark.skipif(_BROWSER is None, reason="no Chromium is installed")

Open = Callable[..., tuple[str, list[str]]]


@pytest.fixture
def page(full: dict[str, Any], tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    path.write_text(render_html(full), encoding="utf-8")
    return path


@pytest.fixture
def browse(tmp_path: Path) -> Open:
    """Open a page; return what was printed and every address that was asked for."""
    log = tmp_path / "network.json"

    def opened(page: Path, *arguments: str) -> tuple[str, list[str]]:
        # Chromium's sandbox refuses to work for root.
        user = ("--no-sandbox",) if os.geteuid() == 0 else ()
        profile = f"--user-data-dir={tmp_path / 'profile'}"
        shared = (*_OFFLINE, *_QUIET, *user, profile, "--headless", "--disable-gpu")
        logs = ("--enable-logging=stderr", f"--log-net-log={log}")
        done = subprocess.run(
            [str(_BROWSER), *shared, *logs, *arguments, page.as_uri()],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        asked = re.findall(r'"url":\s*"([^"]+)"', log.read_text("utf-8"))
        talk = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        return "\n".join([*talk, done.stdout]), [url for url in asked if not _OWN.match(url)]

    return opened


@pytest.mark.parametrize(
    "look",
    [
        pytest.param(("--window-size=1280,900",), id="light"),
        pytest.param(("--window-size=1280,900", _DARK), id="dark"),
        pytest.param(("--window-size=390,844",), id="narrow"),
    ],
)
def test_page_opens_without_a_complaint_or_a_request(
    page: Path, browse: Open, tmp_path: Path, look: tuple[str, ...]
):
    picture = tmp_path / "page.png"
    talk, asked = browse(page, *look, f"--screenshot={picture}")
    assert (talk.strip(), asked) == ("", [])
    assert picture.stat().st_size > 20_000


def test_page_prints(page: Path, browse: Open, tmp_path: Path):
    paper = tmp_path / "page.pdf"
    talk, asked = browse(page, f"--print-to-pdf={paper}")
    assert (talk.strip(), asked) == ("", [])
    assert paper.read_bytes().startswith(b"%PDF")


def test_page_of_a_phone_does_not_scroll_sideways(page: Path, browse: Open):
    # A window of Chromium is at least 500 wide, a frame in it is not.
    inner = escape(re.sub(r"<meta http-equiv[^>]+>", "", page.read_text("utf-8")))
    script = (
        "const root = frame.contentDocument.documentElement; frame.dataset.sizes ="
        "JSON.stringify([root.scrollWidth, root.clientWidth])"
    )
    frame = f'<iframe id="frame" style="width: 390px; border: 0" srcdoc="{inner}"></iframe>'
    page.write_text(f"{frame}<script>frame.onload = () => {{ {script} }}</script>", "utf-8")
    printed, _ = browse(page, "--virtual-time-budget=2000", "--dump-dom")
    found = re.search(r'data-sizes="([^"]+)"', printed)
    assert found
    needed, there = json.loads(unescape(found[1]))
    assert needed <= there == 390


def test_a_complaint_and_a_request_would_be_seen(browse: Open, tmp_path: Path):
    page = tmp_path / "bad.html"
    page.write_text("<script>console.error('x')</script><img src='http://example.invalid/x.png'>")
    talk, asked = browse(page, f"--screenshot={tmp_path / 'bad.png'}")
    assert '"x"' in talk
    assert "http://example.invalid/x.png" in asked
