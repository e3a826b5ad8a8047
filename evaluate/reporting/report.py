"""Writing the report of `evaluate`: a page to mail, a text for a pull request, cards, numbers.

The JSON holds everything as it was measured; what people read holds no character that steers.
"""

import json
from pathlib import Path
from typing import Any

from tcompress.staging import write_text_atomically

from .html import render_html
from .markdown import render_markdown
from .model_card import render_cards

CARDS_DIRECTORY = "cards"


def write_report(document: dict[str, Any], directory: Path) -> list[Path]:
    """Write `report.html`, `report.md`, `report.json`, and a model card for every artifact.

    Args:
        document: The document of `evaluate`.
        directory: Where; created when missing.

    Returns:
        The files.

    Raises:
        StorageError: If the file system refuses.
    """
    texts = {
        "report.html": render_html(document),
        "report.md": render_markdown(document),
        # ASCII, as a name from a file may hold what UTF-8 cannot.
        "report.json": json.dumps(document, indent=2, allow_nan=False) + "\n",
    }
    cards = render_cards(document)
    texts |= {f"{CARDS_DIRECTORY}/{name}.md": text for name, text in cards.items()}
    for name, text in texts.items():
        write_text_atomically(directory / name, text)
    return [directory / name for name in texts]
