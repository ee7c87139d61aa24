"""Writes `docs/content/llms.txt`, the index of the pages for language models: `hatch run docs:generate`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
INDEX = DOCS / "content" / "llms.txt"


def main() -> None:
    INDEX.write_text(index(), encoding="utf-8")


def index() -> str:
    """Return the index: a heading for each section of the navigation, and a line for each page."""
    site = tomllib.loads((DOCS / "zensical.toml").read_text(encoding="utf-8"))["project"]
    lines = [f"# {site['site_name']}", "", f"> {site['site_description']}", "", "## Pages", ""]
    for entry in site["nav"]:
        [(title, target)] = entry.items()
        if isinstance(target, str):
            lines.append(_line(site["site_url"], title, target))
    for entry in site["nav"]:
        [(title, target)] = entry.items()
        if not isinstance(target, str):
            pages = [next(iter(page.items())) for page in target]
            lines += ["", f"## {title}", "", *(_line(site["site_url"], *page) for page in pages)]
    return "\n".join(lines) + "\n"


def _line(site_url: str, title: str, page: Any) -> str:
    text = (DOCS / "content" / page).read_text(encoding="utf-8")
    paragraph = " ".join(text.split("\n\n")[1].split())
    first_sentence = re.split(r"(?<=[.:]) (?=[A-Z[])", paragraph)[0]
    path = page.removesuffix(".md").removesuffix("index")
    return f"- [{title}]({site_url}/{path}{'/' if path else ''}): {first_sentence}"


if __name__ == "__main__":
    main()
