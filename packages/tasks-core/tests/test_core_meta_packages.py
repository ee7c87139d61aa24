"""The three packages are released together, and the repository stays as small at the top as it is."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("tasks-core", "tasks-fastapi", "tasks-testing")

# Where the documentation is published. The workflow of a release refuses an address that is only an example.
SITE = "https://tasks.example"

TOP_LEVEL = {"LICENSE", "README.md", "docs", "hatch.toml", "packages"}
GENERATED = {"dist"}

for_each_package = pytest.mark.parametrize("package", PACKAGES)


def project(package: str) -> dict[str, Any]:
    """Read the `[project]` table of a package."""
    pyproject = tomllib.loads((ROOT / "packages" / package / "pyproject.toml").read_text())
    table: dict[str, Any] = pyproject["project"]
    return table


def siblings(package: str) -> list[str]:
    """List the requirements of a package that are other packages of this repository."""
    optional = project(package).get("optional-dependencies", {})
    requirements = [*project(package)["dependencies"], *(r for extra in optional.values() for r in extra)]
    return [r for r in requirements if r.startswith("tasks-") and not r.startswith(f"{package}[")]


def test_versions_are_one() -> None:
    assert len({project(package)["version"] for package in PACKAGES}) == 1


@pytest.mark.parametrize(
    "package,needed", [("tasks-core", set()), ("tasks-fastapi", {"tasks-core"}), ("tasks-testing", {"tasks-core"})]
)
def test_siblings_are_pinned_to_the_same_version(package: str, needed: set[str]) -> None:
    version = project("tasks-core")["version"]
    assert set(siblings(package)) == {f"{sibling}=={version}" for sibling in needed}


@for_each_package
def test_project_tables_agree(package: str) -> None:
    table, core = project(package), project("tasks-core")
    assert table["name"] == package
    for field in ("authors", "license", "license-files", "readme", "requires-python"):
        assert table[field] == core[field]
    pythons = [c for c in table["classifiers"] if c.startswith("Programming Language ::")]
    assert pythons == [c for c in core["classifiers"] if c.startswith("Programming Language ::")]


@for_each_package
def test_classifiers_are_the_pythons_of_the_matrix(package: str) -> None:
    hatch = tomllib.loads((ROOT / "hatch.toml").read_text())
    (matrix,) = hatch["envs"]["all"]["matrix"]
    prefix = "Programming Language :: Python :: "
    classified = [c.removeprefix(prefix) for c in project(package)["classifiers"] if c.startswith(prefix)]
    assert [c for c in classified if "." in c] == matrix["python"]
    assert project(package)["requires-python"] == f">={matrix['python'][0]}"
    assert hatch["envs"]["lowest"]["python"] == matrix["python"][0]


def page_of(url: str) -> Path:
    """Return the source of the page that is published under an address."""
    name = url.removeprefix(f"{SITE}/").strip("/") or "index"
    return ROOT / "docs" / "content" / f"{name}.md"


@for_each_package
def test_addresses_lead_to_pages(package: str) -> None:
    """An index shows the README and the addresses of a package without the rest of the repository."""
    urls: dict[str, str] = project(package)["urls"]
    assert list(urls) == ["Homepage", "Documentation", "Changelog", "Source", "Issues"]
    assert all(url.startswith(SITE) for url in urls.values())
    readme = (ROOT / "packages" / package / "README.md").read_text()
    links = re.findall(rf"\]\(({SITE}/[^)]*)\)", readme)
    assert links
    published = [urls["Documentation"], urls["Changelog"], *links]
    assert [url for url in published if not page_of(url).is_file()] == []


def test_the_changelog_begins_with_what_is_not_released_or_with_this_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "docs" / "content" / "changelog.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased" or headings[0].startswith(project("tasks-core")["version"])


@for_each_package
def test_package_folder_is_complete(package: str) -> None:
    folder = ROOT / "packages" / package
    assert (folder / "README.md").read_text().startswith(f"# {package}\n")
    licence = (folder / "LICENSE").read_text()
    assert licence.startswith("MIT License\n")
    assert licence == (ROOT / "LICENSE").read_text()
    assert files(package.replace("-", "_")).joinpath("py.typed").is_file()


def test_top_level_holds_only_what_it_has_to() -> None:
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    assert names - GENERATED == TOP_LEVEL


def test_workspace_is_the_packages() -> None:
    hatch = tomllib.loads((ROOT / "hatch.toml").read_text())
    members = hatch["envs"]["default"]["workspace"]["members"]
    assert [member["path"] for member in members] == [f"packages/{package}" for package in PACKAGES]


def test_pre_commit_runs_the_linter_of_the_checks() -> None:
    hatch = tomllib.loads((ROOT / "hatch.toml").read_text())
    (ruff,) = (name for name in hatch["envs"]["lint"]["dependencies"] if name.startswith("ruff=="))
    assert f"rev: v{ruff.removeprefix('ruff==')}\n" in (ROOT / ".pre-commit-config.yaml").read_text()
