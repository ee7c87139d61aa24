"""The pictures are those that their sources describe."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DIAGRAMS = Path(__file__).parents[1] / "diagrams"
IMAGES = DIAGRAMS.parent / "content" / "images"
SOURCES = sorted(DIAGRAMS.glob("*.toml"))


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
def test_picture_is_up_to_date(source: Path) -> None:
    """After a change of a source or of the script: `hatch run docs:generate`."""
    draw = runpy.run_path(str(DIAGRAMS / "draw.py"))["draw"]
    assert (IMAGES / f"{source.stem}.svg").read_text(encoding="utf-8") == draw(source)


def test_every_picture_has_a_source() -> None:
    assert {image.stem for image in IMAGES.glob("*.svg")} == {source.stem for source in SOURCES}
