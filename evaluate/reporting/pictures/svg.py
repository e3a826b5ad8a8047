"""SVG that stands in a page: colours that follow it, ids of its own, words for who cannot see.

Everything is drawn in the colours named here, which stand for CSS variables of the page and are
replaced by them at the end. The same input gives the same bytes.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, MUTED, LINE, ACCENT, WARN, PAGE, GOOD = (
    "#010101", "#020202", "#030303", "#040404", "#050505", "#060606", "#060605",
)  # fmt: skip
_COLOURS = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    ACCENT: "var(--accent)",
    WARN: "var(--warn)",
    PAGE: "var(--page)",
    GOOD: "var(--good)",
}
POINTS_PER_INCH = 72
FONT_SIZE = 9.0


@dataclass
class Picture:
    """A figure on its way to SVG, and the tooltip of each of its parts by gid."""

    figure: Figure
    tooltips: dict[str, str] = field(default_factory=dict)


@contextmanager
def style(salt: str) -> Iterator[None]:
    """Draw in the page's colours, with text that stays text.

    Args:
        salt: What the ids inside the picture are derived from.
    """
    settings: Any = {
        "font.size": FONT_SIZE,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": LINE,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "grid.color": LINE,
        "text.parse_math": False,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
    }
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        # The page's font shows the text, so it does not matter what matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message=r"(?s).*missing from (font|current font)")
        yield


def frame(axes: Axes, *, grid: bool = True) -> None:
    """Take away what no reader needs of a frame.

    Args:
        axes: The axes.
        grid: Whether to draw a grid.
    """
    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, pad=5)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(linewidth=0.6)


def to_svg(picture: Picture, prefix: str, title: str, description: str) -> str:
    """Return the SVG element of a figure.

    Args:
        picture: The figure and the tooltips of its parts.
        prefix: Start of every id in the picture; unique in the page.
        title: What the picture is.
        description: What it shows, for those who cannot see it.
    """
    stream = io.StringIO()
    silent = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    picture.figure.savefig(stream, format="svg", transparent=True, metadata=silent)
    root = ET.fromstring(stream.getvalue())
    _clean(root, prefix, picture.tooltips)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.attrib |= {
        "role": "img",
        "aria-labelledby": f"{prefix}-title {prefix}-desc",
        "class": "picture",
        "style": f"max-width: {picture.figure.get_figwidth() * 1.3:.2f}in",
    }
    for position, (name, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(name, {"id": f"{prefix}-{name}"})
        element.text = text
        root.insert(position, element)
    return ET.tostring(root, encoding="unicode")


def _clean(root: ET.Element, prefix: str, tooltips: dict[str, str]) -> None:
    """Make a tree that can stand in a page: no namespaces, own ids, the page's colours."""
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        for child in list(element):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):
                element.remove(child)
        element.attrib = {
            name.rpartition("}")[2]: _own(name, value, prefix)
            for name, value in element.attrib.items()
        }
        gid = element.get("id", "").removeprefix(f"{prefix}-")
        if gid in tooltips:
            tooltip = ET.Element("title")
            tooltip.text = tooltips[gid]
            element.insert(0, tooltip)
        if element.tag != "text":
            element.text = (element.text or "").strip() or None
        element.tail = None


def _own(name: str, value: str, prefix: str) -> str:
    local = name.rpartition("}")[2]
    if local in ("d", "x", "y", "points"):
        # A hundredth of a point is more than a screen shows.
        return re.sub(
            r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", " ".join(value.split())
        )
    if local == "id":
        return f"{prefix}-{value}"
    if local == "href":
        return value.replace("#", f"#{prefix}-", 1)
    if local == "clip-path":
        return value.replace("url(#", f"url(#{prefix}-", 1)
    if local != "style":
        return value
    value = re.sub(r"font:((?: (?:bold|\d+))?) ([\d.]+)px[^;]*", _font, value)
    return re.sub(r"#0[1-6]0[1-6]0[1-6]", lambda found: _COLOURS[found[0]], value)


def _font(found: re.Match[str]) -> str:
    weight = f"; font-weight:{found[1]}" if found[1] else ""
    return f"font-size: {found[2]}px{weight}"
