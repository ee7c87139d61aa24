"""Links of the READMEs lead somewhere; those of the pages are checked when the site is built."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def links(page: Path) -> list[str]:
    return LINK.findall(page.read_text(encoding="utf-8"))


def test_links_of_the_readme_exist() -> None:
    found = links(ROOT / "README.md")
    assert len(found) > 10
    assert [link for link in found if not (ROOT / link).exists()] == []


@pytest.mark.parametrize("readme", sorted(ROOT.glob("packages/*/README.md")), ids=lambda path: path.parent.name)
def test_readme_of_a_package_stands_alone(readme: Path) -> None:
    """A package index shows it without the rest of the repository."""
    assert [link for link in links(readme) if "://" not in link] == []


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 200
