"""Two uvicorn servers in one process serve one application: a public and an internal port."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request
from tasks_core import TaskScheduler
from tasks_fastapi import Tasks, add_tasks, get_scheduler


class App(FastAPI):
    def __init__(self) -> None:
        super().__init__(lifespan=self.lifetime)
        add_tasks(self)
        self.log: list[str] = []
        self.schedulers: list[TaskScheduler] = []
        self.arrived = threading.Event()
        self.go_on = threading.Event()
        self.get("/quick")(self.quick)
        self.get("/slow")(self.slow)

    @asynccontextmanager
    async def lifetime(self, _app: FastAPI) -> AsyncIterator[None]:
        number = len(self.schedulers)
        self.schedulers.append(get_scheduler(self))
        yield
        self.log.append(f"lifespan {number} closed")

    async def quick(self, connection: Request, tasks: Tasks) -> int:
        tasks.after_response.schedule(self.note, "quick task")
        return self.schedulers.index(get_scheduler(connection.app))

    def slow(self, connection: Request, tasks: Tasks) -> int:
        self.arrived.set()
        assert self.go_on.wait(30)
        tasks.after_response.task(shield=True).schedule(self.note, "slow task")
        return self.schedulers.index(get_scheduler(connection.app))

    async def note(self, text: str) -> None:
        await asyncio.sleep(0)
        self.log.append(text)


@contextmanager
def serving(app: App) -> Iterator[list[uvicorn.Server]]:
    """Run two servers on one event loop, in a thread, where uvicorn leaves signals alone."""
    servers = [uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning")) for _ in range(2)]

    async def serve() -> None:
        await asyncio.gather(*(server.serve() for server in servers))

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        while not all(server.started for server in servers):
            assert thread.is_alive()
            threading.Event().wait(0.01)
        yield servers
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


def address(server: uvicorn.Server) -> str:
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"


@pytest.mark.timeout(60)
def test_each_port_has_the_scheduler_of_its_lifespan() -> None:
    app = App()
    with serving(app) as servers:
        found = [httpx.get(f"{address(server)}/quick").json() for server in servers]
        assert sorted(found) == [0, 1]
        assert [httpx.get(f"{address(server)}/quick").json() for server in servers] == found
        servers[1].should_exit = True
        while not app.schedulers[found[1]].closed:
            threading.Event().wait(0.01)
        assert httpx.get(f"{address(servers[0])}/quick").json() == found[0]
    assert app.log.count("quick task") == 5


@pytest.mark.timeout(60)
def test_both_stop_while_one_serves_a_request() -> None:
    """The other lifespan ends first; the open request is answered, and its task runs before its lifespan closes."""
    app = App()
    answers: list[httpx.Response] = []
    with serving(app) as servers:
        client = threading.Thread(target=lambda: answers.append(httpx.get(f"{address(servers[0])}/slow", timeout=30)))
        client.start()
        assert app.arrived.wait(30)
        for server in servers:
            server.should_exit = True
        while len(app.log) < 1:
            threading.Event().wait(0.01)
        app.go_on.set()
        client.join(30)
    (answer,) = answers
    assert answer.status_code == 200
    number = answer.json()
    assert app.log == [f"lifespan {1 - number} closed", "slow task", f"lifespan {number} closed"]
