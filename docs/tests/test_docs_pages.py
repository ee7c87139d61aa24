"""Every page is complete where it is read: on the site, and on a host that shows Markdown files."""

from __future__ import annotations

import re
import runpy
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import tasks_core
import tasks_fastapi
import tasks_testing

DOCS = Path(__file__).parents[1]
PAGES = [DOCS.parent / "README.md", *sorted(DOCS.glob("content/**/*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS.parent)))


@pytest.fixture(scope="session")
def include() -> dict[str, Any]:
    return runpy.run_path(str(DOCS / "include.py"))


@every_page
def test_included_code_is_up_to_date(page: Path, include: dict[str, Any]) -> None:
    """After a change of an example or of its output: `hatch run docs:generate`."""
    text = page.read_text(encoding="utf-8")
    assert text == include["with_includes"](text)


@every_page
def test_page_needs_no_site_generator(page: Path) -> None:
    """A host that shows Markdown knows no inclusions at build time, no admonitions and no tabs."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^ *(?:--8<--|!!!|\?\?\?|===) .*", text, flags=re.MULTILINE) == []


def test_section_is_included_without_its_marks(include: dict[str, Any]) -> None:
    page = "<!-- include: output/log_lines.txt:drained -->\n```text\n```\n"
    block = include["with_includes"](page).splitlines()
    assert block[:2] + block[3:] == ["<!-- include: output/log_lines.txt:drained -->", "```text", "```"]
    assert re.fullmatch(r"INFO tasks_core: Tasks drained in .*", block[2])


@pytest.mark.parametrize("name, section", [("no_such_file.py", None), ("first_steps.py", "no_such_section")])
def test_unknown_inclusion_is_an_error(include: dict[str, Any], name: str, section: str | None) -> None:
    with pytest.raises(LookupError, match="no_such"):
        include["included_text"](name, section)


def test_every_picture_has_its_description() -> None:
    """The alternative text of a picture is the one that its source has."""
    shown = 0
    for page in PAGES:
        for alternative, picture in re.findall(r"!\[([^]]*)\]\([\w./]*images/(\w+)\.svg\)", page.read_text("utf-8")):
            diagram = tomllib.loads((DOCS / "diagrams" / f"{picture}.toml").read_text(encoding="utf-8"))
            assert " ".join(alternative.split()) == " ".join(diagram["text"].split())
            shown += 1
    assert shown >= 5


def test_home_and_readme_name_the_version_and_how_to_install() -> None:
    for page in (DOCS.parent / "README.md", DOCS / "content" / "index.md"):
        text = " ".join(page.read_text(encoding="utf-8").split())
        assert version("tasks-fastapi") in text
        assert "pip install tasks-fastapi" in text
        assert "not on PyPI yet" in text or "Not on PyPI yet" in text


def test_site_has_the_addresses_of_the_packages() -> None:
    site = tomllib.loads((DOCS / "zensical.toml").read_text(encoding="utf-8"))["project"]
    package = DOCS.parent / "packages" / "tasks-fastapi" / "pyproject.toml"
    urls = tomllib.loads(package.read_text(encoding="utf-8"))["project"]["urls"]
    assert (site["site_url"], site["repo_url"]) == (urls["Homepage"], urls["Source"])
    assert f"]({urls['Source']})" in (DOCS / "content" / "index.md").read_text(encoding="utf-8")


def test_tour_names_modules_that_exist_and_leaves_no_room_out() -> None:
    tour = (DOCS / "content" / "design" / "tour.md").read_text(encoding="utf-8")
    sources = {Path(package.__path__[0]).parent for package in (tasks_core, tasks_fastapi, tasks_testing)}
    named = set(re.findall(r"`((?:tasks_\w+|pytest_\w+\.py)[\w./]*)`", tour))
    assert [name for name in sorted(named) if not any((source / name).exists() for source in sources)] == []
    rooms = {
        path.parent.relative_to(source).as_posix()
        for source in sources
        for path in source.glob("tasks_*/*/__init__.py")
    }
    assert rooms - named == set()
    drawing = (tasks_core.__doc__ or "").split("```text\n")[1].split("```")[0]
    assert drawing in tour


def test_index_for_language_models_is_up_to_date() -> None:
    """After a change of the navigation or of a first paragraph: `hatch run docs:generate`."""
    index = runpy.run_path(str(DOCS / "llms.py"))["index"]
    assert (DOCS / "content" / "llms.txt").read_text(encoding="utf-8") == index()


def test_every_page_has_a_place_in_the_navigation() -> None:
    nav = re.findall(r'= "([\w/]+\.md)"', (DOCS / "zensical.toml").read_text(encoding="utf-8"))
    pages = [page.relative_to(DOCS / "content").as_posix() for page in DOCS.glob("content/**/*.md")]
    assert sorted(nav) == sorted(pages)


def test_skill_links_to_pages_that_exist() -> None:
    [skill] = Path(tasks_fastapi.__path__[0]).glob(".agents/skills/*/SKILL.md")
    links = re.findall(r"https://tasks\.example/?([\w./]*\w)?", skill.read_text(encoding="utf-8"))
    assert len(links) >= 2
    assert [link for link in links if link and not (DOCS / "content" / link).exists()] == []
