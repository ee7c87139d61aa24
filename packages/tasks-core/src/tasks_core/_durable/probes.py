"""
Probes of a worker process: an HTTP server and a file that say whether it lives, and whether it can take tasks.

The server has threads of its own, so that it answers while a task blocks the event loop, and says so.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread

from tasks_core._support.log import logger
from tasks_core._support.rules import Rule, is_seconds
from tasks_core.exceptions import EngineError, InvalidConfigError

from .engine import Engine
from .operate import OperableEngine

if TYPE_CHECKING:
    from collections.abc import Iterator

BEAT_WITHIN: Final = 30.0
"""Seconds since the last sign of life that the engine has acknowledged, at most, of a worker that is ready."""

# Seconds between two checks of the engine, and between two turns of the event loop that are noticed.
_CHECK, _TURN = 5.0, 1.0
# Seconds that the engine has to answer.
_ANSWER_WITHIN = 5.0
# Seconds for which the event loop may be blocked by a task before the process counts as dead. A task that blocks it for
# a moment is a fault of the task, and no reason to kill its neighbours.
_STALLED = 60.0


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """What a probe answers."""

    alive: bool
    """Whether the event loop of the process runs: if not, the platform should start the process anew."""
    ready: bool
    """Whether the worker can take tasks."""
    problems: tuple[str, ...]
    """What is wrong, one sentence each; empty for a worker that is ready."""


async def worker_problems(engine: Engine, *, works: bool = True, beat_within: float = BEAT_WITHIN) -> tuple[str, ...]:
    """
    Return why a process is not ready, one sentence each; empty if it is.

    Args:
        engine: The engine, which the process has entered. Of one without the methods of `OperableEngine`, nothing is
            known.

        works: Whether this process runs durable tasks: then the engine must have acknowledged a sign of life.

        beat_within: Seconds since that sign of life, at most.
    """
    if not isinstance(engine, OperableEngine):
        return ()
    try:
        with anyio.fail_after(_ANSWER_WITHIN):
            pauses = await engine.pauses()
    except TimeoutError:
        return (f"The engine did not answer within {_ANSWER_WITHIN:g} s",)
    except EngineError as error:
        return (str(error),)
    if not works:
        return ()
    problems = [f"Queue {pause.queue!r} is paused" for pause in pauses if pause.name is None]
    beat = engine.last_beat()
    if beat is None:
        problems.append("No worker of this process has given a sign of life")
    elif beat > beat_within:
        problems.append(f"The engine has acknowledged no sign of life of this worker for {beat:.0f} s")
    return tuple(problems)


def add_probe_arguments(worker: argparse.ArgumentParser) -> None:
    """Add the arguments that `probes()` reads."""
    group = worker.add_argument_group("health")
    group.add_argument("--health-port", type=int, metavar="PORT", help="answer GET /alive and GET /ready at this port")
    group.add_argument("--health-host", default="127.0.0.1", metavar="HOST", help="the address of it (127.0.0.1)")
    group.add_argument("--health-file", metavar="PATH", help="write the same as JSON into this file every 5 seconds")
    group.add_argument(
        "--health-beat",
        type=float,
        default=BEAT_WITHIN,
        metavar="SECONDS",
        help="how old the last sign of life may be of a worker that is ready (30)",
    )


@asynccontextmanager
async def probes(engine: Engine, stop: anyio.Event, options: argparse.Namespace) -> AsyncIterator[None]:
    """
    Answer probes while the block runs, if the command line asks for it.

    Raises:
        InvalidConfigError: the port cannot be opened, or the file cannot be written, or a value is no length of time.
    """
    Rule(lambda value: is_seconds(value, zero=False), "seconds, more than 0").check("health_beat", options.health_beat)
    if options.health_port is None and options.health_file is None:
        yield
        return
    probe = _Probe(engine, stop, options.health_beat)
    with ExitStack() as stack:
        file = None if options.health_file is None else stack.enter_context(_file(probe, Path(options.health_file)))
        if options.health_port is not None:
            stack.enter_context(_server(probe, options.health_host, options.health_port))
        async with anyio.create_task_group() as group:
            group.start_soon(probe.notice_turns)
            group.start_soon(probe.check, file)
            try:
                yield
            finally:
                group.cancel_scope.cancel()


class _Probe:
    def __init__(self, engine: Engine, stop: anyio.Event, beat_within: float) -> None:
        self._engine = engine
        self._stop = stop
        self._beat_within = beat_within
        self._turned_at = monotonic()
        self._problems: tuple[str, ...] = ("The engine has not been checked yet",)

    async def notice_turns(self) -> None:
        while True:
            self._turned_at = monotonic()
            await anyio.sleep(_TURN)

    async def check(self, file: _HealthFile | None) -> None:
        while True:
            self._problems = await worker_problems(self._engine, beat_within=self._beat_within)
            if file is not None:
                await anyio.to_thread.run_sync(file.write)
            await anyio.sleep(_CHECK)

    def health(self) -> WorkerHealth:
        """Return the answer; called in any thread."""
        problems = list(self._problems)
        if self._stop.is_set():
            problems.append("The worker is being stopped")
        blocked = monotonic() - self._turned_at
        if blocked > 2 * _TURN:
            problems.append(f"The event loop has been blocked for {blocked:.0f} s")
        return WorkerHealth(alive=blocked < _STALLED, ready=not problems, problems=tuple(problems))


class _HealthFile:
    def __init__(self, probe: _Probe, path: Path) -> None:
        self._probe = probe
        self.path = path

    def write(self) -> None:
        """Replace the file at once, so that a reader never sees a part of it."""
        new = self.path.with_name(f".{self.path.name}.new")
        new.write_text(json.dumps(asdict(self._probe.health())) + "\n")
        new.replace(self.path)


@contextmanager
def _file(probe: _Probe, path: Path) -> Iterator[_HealthFile]:
    file = _HealthFile(probe, path)
    try:
        file.write()
    except OSError as error:
        raise InvalidConfigError(f"--health-file {path} cannot be written: {error.strerror}") from None
    try:
        yield file
    finally:
        path.unlink(missing_ok=True)


@contextmanager
def _server(probe: _Probe, host: str, port: int) -> Iterator[None]:
    class Handler(_Handler):
        health = staticmethod(probe.health)

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except (OSError, OverflowError) as error:
        raise InvalidConfigError(f"--health-port {port} cannot be opened at {host}: {error}") from None
    server.daemon_threads = True  # a client that keeps its connection open does not keep the process
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), name="tasks health", daemon=True)
    thread.start()
    logger.info("The worker answers probes at http://%s:%d/alive and /ready", host, server.server_port)
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    health: Any
    timeout = 10

    def do_GET(self) -> None:
        answer: WorkerHealth = self.health()
        status = {"/alive": answer.alive, "/ready": answer.ready}.get(self.path)
        body = b"" if status is None else json.dumps(asdict(answer)).encode() + b"\n"
        self.send_response(404 if status is None else 200 if status else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  the name that the base class has
        """Write nothing: probes come every few seconds."""
