"""Spans and metrics of tasks, through the SDK of OpenTelemetry and its exporters in memory."""

import functools
import gc
import importlib.util
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from asgi_spy import request, running, turns
from fastapi import FastAPI, HTTPException
from opentelemetry import metrics, trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader, NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import StatusCode
from starlette.background import BackgroundTask
from starlette.types import ASGIApp, Receive, Scope, Send
from tasks_core import Cancel, Snooze, TaskScheduler, durable, every
from tasks_core.engines import DurableState
from tasks_core.exceptions import InvalidConfigError
from tasks_fastapi import TaskConfig, Tasks, TelemetryConfig, add_tasks, get_scheduler, retry
from tasks_testing import InMemoryEngine

pytestmark = pytest.mark.anyio

needs_fastapi_telemetry = pytest.mark.skipif(
    importlib.util.find_spec("fastapi.telemetry") is None, reason="this FastAPI does not trace requests itself"
)

NAMES = {"DurableSpans", "DurableMetrics"}


class Telemetry:
    """Providers of one test, and what was exported."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracer_provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.tracer_provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.reader = InMemoryMetricReader()
        self.meter_provider = MeterProvider([self.reader], shutdown_on_exit=False)
        self.config: TelemetryConfig = {
            "tracer_provider": self.tracer_provider,
            "meter_provider": self.meter_provider,
        }

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans of tasks, in the order in which they ended."""
        spans = self.exporter.get_finished_spans()
        return [span for span in spans if scope_name(span) == "tasks_core"]

    def span(self, name: str) -> ReadableSpan:
        (span,) = (span for span in self.exporter.get_finished_spans() if span.name == name)
        return span

    def outcomes(self) -> list[Any]:
        return [attributes(span)["task.outcome"] for span in self.spans]

    def points(self, name: str) -> list[NumberDataPoint | HistogramDataPoint]:
        data = self.reader.get_metrics_data()
        return [
            point
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
            if not hasattr(point, "scale")
        ]

    def numbers(self, name: str) -> dict[frozenset[Any], float]:
        """The value (of a histogram, the count) by the labels."""
        return {
            frozenset((point.attributes or {}).values()): (
                point.value if isinstance(point, NumberDataPoint) else point.count
            )
            for point in self.points(name)
        }


def scope_name(span: ReadableSpan) -> str:
    assert span.instrumentation_scope is not None
    return span.instrumentation_scope.name


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def trace_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.trace_id)


def span_id(span: ReadableSpan) -> int:
    assert span.context is not None
    return int(span.context.span_id)


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


async def nothing() -> None: ...


async def fail(_secret: str = "") -> None:
    raise ValueError("boom")


class RequestSpan:
    """What an instrumentation of requests does: a span that is current while the request is served."""

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self.app = app
        self.tracer = provider.get_tracer("requests")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        with self.tracer.start_as_current_span("request"):
            await self.app(scope, receive, send)


def make_app(telemetry: Telemetry, **options: Any) -> FastAPI:
    app = FastAPI()
    add_tasks(app, telemetry=telemetry.config, **options)
    app.add_middleware(RequestSpan, provider=telemetry.tracer_provider)
    return app


async def test_tasks_are_spans_in_the_trace_of_their_request(telemetry: Telemetry) -> None:
    app = make_app(telemetry)
    go_on = anyio.Event()

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        for phase in (tasks, tasks.after_route, tasks.after_response):
            phase.task(name=phase.name).schedule(go_on.wait)

    async with running(app):
        await request(app)
        await turns()
        asked = telemetry.span("request")
        assert telemetry.spans == []
        go_on.set()
    assert sorted(span.name for span in telemetry.spans) == [
        "task after_response",
        "task after_route",
        "task immediate",
    ]
    for span in telemetry.spans:
        assert trace_id(span) == trace_id(asked)
        assert parent_id(span) == span_id(asked)
        assert span.end_time is not None
        assert asked.end_time is not None
        assert span.end_time > asked.end_time, "the span of the request must not wait for tasks"
        assert span.status.status_code is StatusCode.UNSET


async def test_a_run_of_a_periodic_task_is_of_a_phase_of_its_own(telemetry: Telemetry) -> None:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        get_scheduler(app).periodic(every(hours=1, immediately=True)).schedule(nothing)
        yield

    app = FastAPI(lifespan=lifespan)
    add_tasks(app, telemetry=telemetry.config)
    async with running(app):
        await turns()
    (span,) = telemetry.spans
    assert (attributes(span)["task.name"], attributes(span)["task.phase"]) == ("nothing", "periodic")
    assert list(telemetry.numbers("tasks.duration")) == [frozenset(("nothing", "periodic", "succeeded"))]


async def test_what_a_span_says(telemetry: Telemetry) -> None:
    app = make_app(telemetry)
    where: list[str] = []

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        task = tasks.after_response.task(name="greet").schedule(fail, "secret")
        where.extend([str(task.id), *task.where.rsplit(":", 1)])

    async with running(app):
        await request(app)
    (span,) = telemetry.spans
    assert attributes(span) == {
        "task.id": int(where[0]),
        "task.name": "greet",
        "task.phase": "after_response",
        "task.attempt": 1,
        "task.outcome": "failed",
        "code.function.name": f"{fail.__module__}.fail",
        "code.file.path": where[1],
        "code.line.number": int(where[2]),
        "error.type": "ValueError",
    }
    assert where[1] == __file__
    assert span.status.status_code is StatusCode.ERROR
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes is not None
    assert event.attributes["exception.message"] == "boom"
    assert "secret" not in span.to_json().replace(str(event.attributes["exception.stacktrace"]), "")


class Mailer:
    async def send(self) -> None: ...

    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    "function, name",
    [
        (functools.partial(functools.partial(nothing)), f"{__name__}.nothing"),
        (Mailer().send, f"{__name__}.Mailer.send"),
        (Mailer(), f"{__name__}.Mailer"),
        (print, "print"),
        (functools.partial(str.upper, "x"), "str.upper"),
    ],
)
async def test_names_of_functions(telemetry: Telemetry, function: Callable[[], Any], name: str) -> None:
    app = make_app(telemetry)
    async with running(app):
        await get_scheduler(app).schedule(function)
    (span,) = telemetry.spans
    assert attributes(span)["code.function.name"] == name
    assert "task.phase" not in attributes(span)


class CardDeclinedError(Exception):
    pass


async def test_each_attempt_is_a_span(telemetry: Telemetry) -> None:
    app = make_app(telemetry)
    parents: list[int] = []
    attempts: list[int] = []

    async def charge() -> None:
        attempts.append(1)
        with trace.get_tracer("charge", tracer_provider=telemetry.tracer_provider).start_as_current_span("inner"):
            if len(attempts) < 3:
                raise CardDeclinedError

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        parents.append(trace.get_current_span().get_span_context().span_id)
        tasks.task(name="charge", on_error=retry(attempts=3, backoff=0)).schedule(charge)

    async with running(app):
        await request(app)
    assert telemetry.outcomes() == ["retrying", "retrying", "succeeded"]
    assert [attributes(span)["task.attempt"] for span in telemetry.spans] == [1, 2, 3]
    assert [parent_id(span) for span in telemetry.spans] == parents * 3
    assert attributes(telemetry.spans[0])["error.type"] == f"{__name__}.CardDeclinedError"
    inner = [span for span in telemetry.exporter.get_finished_spans() if span.name == "inner"]
    assert [parent_id(span) for span in inner] == [span_id(span) for span in telemetry.spans]


async def test_a_timeout_is_a_failure(telemetry: Telemetry) -> None:
    app = make_app(telemetry)
    async with running(app):
        await get_scheduler(app).task(timeout=0.001).schedule(anyio.sleep_forever).wait()
    (span,) = telemetry.spans
    assert attributes(span)["task.outcome"] == "failed"
    assert attributes(span)["error.type"] == "TimeoutError"


async def test_cancellation(telemetry: Telemetry) -> None:
    """Wanted, it is no error. By the end of the grace period, it is a loss."""
    app = make_app(telemetry, grace_period=0.0)
    async with running(app):
        scheduler = get_scheduler(app)
        wanted = scheduler.task(name="wanted").schedule(anyio.sleep_forever)
        lost = scheduler.task(name="lost").schedule(anyio.sleep_forever)
        never = scheduler.task(name="never", delay=3600).schedule(nothing)
        unwanted = scheduler.task(name="unwanted", delay=3600).schedule(nothing)
        unwanted.cancel()
        await wanted.started.wait()
        await lost.started.wait()
        wanted.cancel()
        await wanted.wait()
    assert never.lost
    assert telemetry.outcomes() == ["cancelled", "cancelled"]
    assert telemetry.span("task wanted").status.status_code is StatusCode.UNSET
    status = telemetry.span("task lost").status
    assert status.status_code is StatusCode.ERROR
    assert status.description == "the grace period of the shutdown was over"
    assert telemetry.numbers("tasks.losses") == {
        frozenset({"lost", "cancelled"}): 1,
        frozenset({"never", "discarded"}): 1,
    }


async def test_functions_in_threads(telemetry: Telemetry) -> None:
    app = make_app(telemetry)
    seen: list[int] = []

    @app.get("/")
    def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(lambda: seen.append(trace.get_current_span().get_span_context().span_id))

    async with running(app):
        await request(app)
    (span,) = telemetry.spans
    assert seen == [span_id(span)]
    assert trace_id(span) == trace_id(telemetry.span("request"))


async def test_metrics(telemetry: Telemetry) -> None:
    app = make_app(telemetry)
    go_on = anyio.Event()

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_route.task(name="wait").schedule(go_on.wait)
        tasks.after_response.task(name="fail").schedule(fail)
        tasks.after_response.task(name="again", on_error=retry(attempts=2, backoff=0)).schedule(fail)
        tasks.after_response.task(when="error").schedule(nothing)

    async with running(app):
        get_scheduler(app).task(name="direct").schedule(go_on.wait)
        await request(app)
        await turns(50)
        assert telemetry.numbers("tasks.running") == {
            frozenset({"direct"}): 1,
            frozenset({"wait", "after_route"}): 1,
            frozenset({"fail", "after_response"}): 0,
            frozenset({"again", "after_response"}): 0,
        }
        go_on.set()
    assert set(telemetry.numbers("tasks.running").values()) == {0}
    assert telemetry.numbers("tasks.duration") == {
        frozenset({"direct", "succeeded"}): 1,
        frozenset({"wait", "after_route", "succeeded"}): 1,
        frozenset({"fail", "after_response", "failed", "ValueError"}): 1,
        frozenset({"again", "after_response", "retrying", "ValueError"}): 1,
        frozenset({"again", "after_response", "failed", "ValueError"}): 1,
    }
    assert telemetry.numbers("tasks.failures") == {
        frozenset({"fail", "after_response", "ValueError"}): 1,
        frozenset({"again", "after_response", "ValueError"}): 1,
    }
    assert telemetry.numbers("tasks.losses") == {}
    (point, *_) = telemetry.points("tasks.duration")
    assert set(point.attributes or {}) <= {"task.name", "task.phase", "task.outcome", "error.type"}
    assert isinstance(point, HistogramDataPoint)
    assert point.explicit_bounds[0] == 0.005
    assert point.explicit_bounds[-1] == 3600


async def test_retry_that_is_cancelled_while_it_waits(telemetry: Telemetry) -> None:
    app = make_app(telemetry)
    async with running(app):
        task = get_scheduler(app).task(name="charge", on_error=retry(backoff=3600, max_delay=3600)).schedule(fail)
        while task.state != "retrying":
            await turns()
        task.cancel()
        await task.wait()
    assert telemetry.outcomes() == ["retrying"]
    assert telemetry.numbers("tasks.running") == {frozenset({"charge"}): 0}
    assert telemetry.numbers("tasks.duration") == {frozenset({"charge", "retrying", "ValueError"}): 1}


async def test_a_task_that_snoozes_or_cancels_itself_has_no_error(telemetry: Telemetry) -> None:
    left: list[Snooze | Cancel] = [Snooze(0), Cancel("it was withdrawn")]

    async def decide() -> None:
        raise left.pop(0)

    app = make_app(telemetry)
    async with running(app):
        await get_scheduler(app).task(name="decide").schedule(decide).wait()
    assert telemetry.outcomes() == ["snoozed", "cancelled"]
    assert {span.status.status_code for span in telemetry.spans} == {StatusCode.UNSET}
    assert telemetry.numbers("tasks.duration") == {
        frozenset({"decide", "snoozed"}): 1,
        frozenset({"decide", "cancelled"}): 1,
    }
    assert (telemetry.numbers("tasks.failures"), telemetry.numbers("tasks.losses")) == ({}, {})


async def test_only_the_tasks_of_this_application(telemetry: Telemetry) -> None:
    app, other, silent = make_app(telemetry), FastAPI(), FastAPI()
    elsewhere = Telemetry()
    add_tasks(other, telemetry=elsewhere.config)
    add_tasks(silent, telemetry={**telemetry.config, "tracing": False, "metrics": False})
    async with running(app), running(other), running(silent), TaskScheduler() as scheduler:
        await scheduler.task(name="none").schedule(nothing)
        await get_scheduler(silent).task(name="silent").schedule(nothing)
        await get_scheduler(other).task(name="other").schedule(nothing)
        await get_scheduler(app).task(name="app").schedule(nothing)
    assert [span.name for span in telemetry.spans] == ["task app"]
    assert [span.name for span in elsewhere.spans] == ["task other"]
    assert telemetry.numbers("tasks.duration") == {frozenset({"app", "succeeded"}): 1}
    assert telemetry.numbers("tasks.running") == {frozenset({"app"}): 0}
    assert elsewhere.numbers("tasks.duration") == {frozenset({"other", "succeeded"}): 1}


@pytest.mark.parametrize("tracing", [True, False])
async def test_one_without_the_other(telemetry: Telemetry, tracing: bool) -> None:
    app = FastAPI()
    add_tasks(app, telemetry={**telemetry.config, "tracing": tracing, "metrics": not tracing})
    async with running(app):
        await get_scheduler(app).schedule(nothing)
    assert len(telemetry.spans) == tracing
    assert len(telemetry.points("tasks.duration")) == (not tracing)


async def test_tasks_bound_to_their_request(telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(telemetry)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.task(name="task").schedule(nothing)

    for _ in range(3):
        await request(app)
    assert telemetry.outcomes() == ["succeeded"] * 3
    assert telemetry.numbers("tasks.duration") == {frozenset({"task", "after_response", "succeeded"}): 3}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


class Broken(Sampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        raise OSError("no sampling")

    def get_description(self) -> str:
        return "broken"


async def test_broken_sampler_breaks_no_task(caplog: pytest.LogCaptureFixture) -> None:
    telemetry = Telemetry(sampler=Broken())
    app = FastAPI()
    add_tasks(app, telemetry=telemetry.config)
    async with running(app):
        assert await get_scheduler(app).schedule(lambda: 1) == 1
    assert telemetry.spans == []
    assert "OpenTelemetry could not start a span; the task is not affected" in caplog.text


def watchers() -> list[str]:
    """The observers that exist; by name, so that the test does not know where they are."""
    gc.collect()
    return [type(thing).__name__ for thing in gc.get_objects() if type(thing).__name__ in NAMES]


class Disabled(Telemetry):
    """What the SDK is with OTEL_SDK_DISABLED=true."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
        super().__init__()


@pytest.mark.parametrize("kind", ["nothing configured", "no-op", "disabled"])
async def test_nothing_is_done_without_a_provider(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configs: dict[str, TelemetryConfig | None] = {
        "nothing configured": None,
        "no-op": {
            "tracer_provider": trace.NoOpTracerProvider(),
            "meter_provider": metrics.NoOpMeterProvider(),
        },
        "disabled": Disabled(monkeypatch).config if kind == "disabled" else None,
    }
    app = FastAPI()
    add_tasks(app, telemetry=configs[kind])
    async with running(app):
        assert watchers() == []
        await get_scheduler(app).schedule(nothing)


async def test_watching_ends_with_the_lifespan(telemetry: Telemetry) -> None:
    app = make_app(telemetry)
    for _ in range(2):
        async with running(app):
            assert sorted(watchers()) == ["DurableMetrics", "DurableSpans"]
        assert watchers() == []


async def test_a_provider_that_the_application_configures_while_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Global providers are looked up when startup is complete. A process can set them once; here they are replaced."""
    telemetry = Telemetry()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        monkeypatch.setattr(trace, "get_tracer_provider", lambda: telemetry.tracer_provider)
        monkeypatch.setattr(metrics, "get_meter_provider", lambda: telemetry.meter_provider)
        get_scheduler(app).task(name="early").schedule(nothing)
        yield

    app = FastAPI(lifespan=lifespan)
    add_tasks(app)
    async with running(app):
        pass
    assert [span.name for span in telemetry.spans] == ["task early"]
    assert telemetry.numbers("tasks.duration") == {frozenset({"early", "succeeded"}): 1}


@durable(name="fastapi telemetry charge", queue="payments", retry=None)
async def charge_order() -> None: ...


async def test_worker_of_the_application_has_the_same_providers(telemetry: Telemetry) -> None:
    engine = InMemoryEngine()
    app = make_app(telemetry, engine=engine, worker_concurrency=2)

    @app.get("/")
    async def endpoint(tasks: Tasks) -> None:
        tasks.after_response.schedule(charge_order)

    async with running(app):
        assert (await request(app)).status == 200
        with anyio.fail_after(10):
            while not (await engine.find(state=DurableState.SUCCEEDED)).tasks:
                await turns()
    asked, submit, run = (
        telemetry.span(name) for name in ("request", "submit fastapi telemetry charge", "run fastapi telemetry charge")
    )
    assert (parent_id(submit), parent_id(run)) == (span_id(asked), span_id(submit))
    assert submit.end_time is not None
    assert asked.end_time is not None
    assert submit.end_time < asked.end_time, "the response has waited for the acknowledgement"
    labels = {"fastapi telemetry charge", "payments", "succeeded"}
    assert telemetry.numbers("tasks.submit.duration") == {frozenset({*labels, "after_response"}): 1}
    assert telemetry.numbers("tasks.duration")[frozenset(labels)] == 1


def test_unknown_setting() -> None:
    with pytest.raises(InvalidConfigError) as caught:
        add_tasks(FastAPI(), telemetry={"trace": False})  # type: ignore[arg-type]  # what is tested
    assert str(caught.value) == (
        "telemetry has no setting 'trace'; it has tracer_provider, meter_provider, tracing, metrics, queues, "
        "queue_interval"
    )


# ---- together with those who trace requests ----


async def serve_one_request(app: FastAPI, telemetry: Telemetry) -> Sequence[ReadableSpan]:
    go_on = anyio.Event()

    @app.get("/orders/{number}")
    async def endpoint(tasks: Tasks, number: int) -> None:
        tasks.after_response.task(name="task").schedule(go_on.wait)
        if number == 404:
            raise HTTPException(404)

    async with running(app):
        assert (await request(app, "/orders/1")).status == 200
        await turns()
        servers = [s for s in telemetry.exporter.get_finished_spans() if s.kind is trace.SpanKind.SERVER]
        assert [server.name for server in servers] == ["GET /orders/{number}"], "one span, and over before the task is"
        go_on.set()
    task = telemetry.span("task task")
    assert trace_id(task) == trace_id(servers[0])
    assert telemetry.numbers("tasks.duration") == {frozenset({"task", "after_response", "succeeded"}): 1}
    return servers


@needs_fastapi_telemetry
async def test_with_the_telemetry_of_fastapi(telemetry: Telemetry) -> None:
    config: Any = {**telemetry.config, "auto_configure": False}
    app = FastAPI(telemetry=config)
    add_tasks(app, telemetry=telemetry.config)
    (server,) = await serve_one_request(app, telemetry)
    assert scope_name(server) == "fastapi"
    # The endpoint is a span of its own, and it is there that the task was scheduled.
    assert parent_id(telemetry.span("task task")) == span_id(telemetry.span("fastapi.endpoint"))


@pytest.mark.parametrize("first", [True, False], ids=["instrumented first", "add_tasks first"])
async def test_with_the_contrib_instrumentation(
    telemetry: Telemetry, first: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(BackgroundTask, "__call__", BackgroundTask.__call__)  # which the instrumentation replaces
    app = FastAPI()

    def instrument() -> None:
        FastAPIInstrumentor.instrument_app(
            app, tracer_provider=telemetry.tracer_provider, meter_provider=telemetry.meter_provider
        )

    if first:
        instrument()
    add_tasks(app, telemetry=telemetry.config)
    if not first:
        instrument()
    (server,) = await serve_one_request(app, telemetry)
    assert scope_name(server) == "opentelemetry.instrumentation.fastapi"
    assert parent_id(telemetry.span("task task")) == span_id(server)
    assert "Skipping FastAPI instrumentation" not in caplog.text
    FastAPIInstrumentor.uninstrument_app(app)


@needs_fastapi_telemetry
async def test_contrib_and_fastapi_do_not_both_trace(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI leaves it to the other one; for that, it has to see it through the layer that add_tasks() puts around."""
    monkeypatch.setattr(BackgroundTask, "__call__", BackgroundTask.__call__)
    config: Any = {**telemetry.config, "auto_configure": False}
    app = FastAPI(telemetry=config)
    FastAPIInstrumentor.instrument_app(app, tracer_provider=telemetry.tracer_provider)
    add_tasks(app, telemetry=telemetry.config)
    (server,) = await serve_one_request(app, telemetry)
    assert scope_name(server) == "opentelemetry.instrumentation.fastapi"
    FastAPIInstrumentor.uninstrument_app(app)


async def test_configuration_of_the_application_still_counts(telemetry: Telemetry) -> None:
    app = make_app(telemetry, config=TaskConfig(name="from the application"))
    async with running(app):
        await get_scheduler(app).schedule(nothing)
    assert [span.name for span in telemetry.spans] == ["task from the application"]
