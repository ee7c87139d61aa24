"""The alerts and the dashboard ask for metrics and labels that processes emit, and the page on telemetry names them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tasks_core import TaskScheduler, Worker, durable
from tasks_core.engines import QueueStatistics
from tasks_core.frameworks import Telemetry
from tasks_core.types import TelemetryConfig
from tasks_testing import InMemoryEngine

DOCS = Path(__file__).parents[1]
FOLDER = DOCS / "examples" / "monitoring"
PAGE = (DOCS / "content" / "operate" / "telemetry.md").read_text(encoding="utf-8")
RUNBOOK = (DOCS / "content" / "operate" / "runbook.md").read_text(encoding="utf-8")


class Rule:
    """A rule, read from the text of the file."""

    def __init__(self, text: str) -> None:
        self.name = text.partition("\n")[0]
        found = re.search(r"^ {8}expr: (?:\|\n((?: {10}.*\n)+)|(.*)\n)", text, re.MULTILINE)
        severity = re.search(r"^ {10}severity: (\w+)$", text, re.MULTILINE)
        runbook = re.search(r"^ {10}runbook_url: (\S+)$", text, re.MULTILINE)
        assert found is not None
        assert severity is not None
        assert runbook is not None
        self.expression: str = found[1] or found[2]
        self.severity = severity[1]
        self.runbook = runbook[1]


ALERTS = (FOLDER / "prometheus_alerts.yml").read_text(encoding="utf-8")
RULES = [Rule(text) for text in ALERTS.split("      - alert: ")[1:]]
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana_dashboard.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


class Metered(InMemoryEngine):
    """Has its numbers measured by whoever asks."""

    async def statistics_in_turn(self, seconds: float, /) -> Sequence[QueueStatistics]:
        return await self.statistics()


@durable(name="docs monitoring", queue="payments", retry=None)
async def charge() -> None:
    raise ConnectionError


@pytest.fixture(scope="module")
async def exported() -> Mapping[str, set[str]]:
    """The names of what Prometheus gets from processes in which everything happens once, with their labels."""
    provider = MeterProvider([PrometheusMetricReader()], shutdown_on_exit=False)
    config: TelemetryConfig = {"meter_provider": provider}
    engine, stop = Metered(), anyio.Event()
    async with TaskScheduler(engine=engine, grace_period=0.0) as scheduler:
        with Telemetry(config).observe(scheduler):
            await scheduler.schedule(charge)
            scheduler.task(delay=3600.0).schedule(print)  # which is lost
            await scheduler.aclose()
    async with engine, anyio.create_task_group() as group:
        group.start_soon(Worker(engine, telemetry=config).run, stop)
        with anyio.fail_after(30):
            while not {"tasks_failures_total", "tasks_queue_failed"} <= set(names := labels_by_name()):
                await anyio.sleep(0.01)
        stop.set()
    provider.shutdown()
    return names


def labels_by_name() -> dict[str, set[str]]:
    names: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(generate_latest().decode()):
        for sample in family.samples:
            if sample.name.startswith("tasks_") and not sample.name.endswith("_created"):
                names.setdefault(sample.name, set()).update(sample.labels)
    return names


SHOWN = [(panel["title"], target["expr"]) for panel in PANELS for target in panel["targets"]]
EXPRESSIONS = [(rule.name, rule.expression) for rule in RULES] + SHOWN


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """The metrics of an expression, each with the labels that the expression asks it for."""
    groups = re.findall(r"\b(?:by|on) \(([\w, ]+)\)", expression)
    wanted = {label for group in groups for label in group.split(", ")}
    found = re.findall(r"\b(tasks_\w+)(?:\{([^}]*)\})?", expression)
    return [(name, wanted | set(re.findall(r"(\w+)(?:=|!)", matchers))) for name, matchers in found]


@pytest.mark.parametrize("expression", [text for _, text in EXPRESSIONS], ids=[name for name, _ in EXPRESSIONS])
async def test_expression_asks_for_what_is_emitted(expression: str, exported: Mapping[str, set[str]]) -> None:
    asked = selectors(expression)
    assert asked
    for name, labels in asked:
        assert name in exported
        assert labels <= exported[name], name


async def test_dashboard_shows_all_that_is_emitted(exported: Mapping[str, set[str]]) -> None:
    asked = {name for _, expression in SHOWN for name, _ in selectors(expression)}
    # Of a histogram, the sum is not shown; each part of it counts for the whole.
    assert {re.sub("_(bucket|count|sum)$", "", name) for name in exported} == {
        re.sub("_(bucket|count|sum)$", "", name) for name in asked
    }


async def test_page_names_all_that_is_emitted(exported: Mapping[str, set[str]]) -> None:
    named = set(re.findall(r"^\| `(tasks\.[a-z_.]+)`", PAGE, re.MULTILINE))
    suffixes = r"_(bucket|count|sum|total)$|_seconds(_bucket|_count|_sum)?$"
    assert {re.sub(suffixes, "", name) for name in exported} == {name.replace(".", "_") for name in named}


def test_variables_of_the_dashboard_ask_for_what_its_panels_show() -> None:
    asked = {name for _, expression in SHOWN for name, _ in selectors(expression)}
    for variable in DASHBOARD["templating"]["list"][1:]:
        metric = re.fullmatch(r"label_values\((\w+), \w+\)", variable["query"]["query"])
        assert metric is not None
        assert metric[1] in asked
    for panel in PANELS:
        assert panel["datasource"]["uid"] == "${datasource}"


def test_panels_have_places_of_their_own() -> None:
    """Grafana moves a panel that overlaps another."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(ids) == len(set(ids))
    places = [
        (row, column)
        for panel in DASHBOARD["panels"]
        for place in [panel["gridPos"]]
        for row in range(place["y"], place["y"] + place["h"])
        for column in range(place["x"], place["x"] + place["w"])
    ]
    assert len(places) == len(set(places))
    assert max(column for _, column in places) == 23


def test_oldest_age_comes_first() -> None:
    assert "oldest_age" in RULES[0].expression
    assert "oldest_age" in PANELS[0]["targets"][0]["expr"]
    urgent = [rule.severity == "page" for rule in RULES]
    assert all(first or not second for first, second in pairwise(urgent)), "those that wake people stand first"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_alert_leads_to_a_section_of_the_runbook(rule: Rule) -> None:
    page, _, section = rule.runbook.partition("#")
    assert page.endswith("/operate/runbook/")
    headings = re.findall(r"^## (.*)$", RUNBOOK, re.MULTILINE)
    assert section in {re.sub(r"[^a-z0-9]+", "-", heading.lower()).strip("-") for heading in headings}


needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool of Prometheus is not installed")


def promtool(*arguments: str, folder: Path = FOLDER) -> None:
    ended = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr


@needs_promtool
def test_alerts_do_what_their_tests_say() -> None:
    promtool("check", "rules", "prometheus_alerts.yml")
    promtool("test", "rules", "prometheus_alerts_test.yml")


@needs_promtool
def test_prometheus_understands_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"panel_{number}", "expr": expression.replace("$__rate_interval", "5m")}
        for number, (_, expression) in enumerate(SHOWN)
    ]
    text = json.dumps({"groups": [{"name": "panels", "rules": rules}]})  # JSON is YAML
    (tmp_path / "rules.yml").write_text(text, encoding="utf-8")
    promtool("check", "rules", "rules.yml", folder=tmp_path)
