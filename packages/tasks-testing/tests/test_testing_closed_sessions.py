"""A task that uses a session which its request had closed fails the test; a session of its own does not."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, Literal

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool
from tasks_core import Provided
from tasks_fastapi import Tasks, add_tasks
from tasks_testing import record_tasks

SELECT = text("select 1")

Check = Literal["error", "ignore"]


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    yield engine
    engine.dispose()


def ask(endpoint: Callable[..., Any], leaks: Check = "error") -> None:
    """Serve a request, as a test that records tasks does."""
    app = FastAPI()
    add_tasks(app)
    app.get("/")(endpoint)
    with record_tasks(leaks=leaks) as recorder, TestClient(app) as client:
        assert client.get("/").status_code == 200
        recorder.drain()


def use(session: Session) -> None:
    session.execute(SELECT)


def test_a_task_with_the_session_of_its_request_fails_the_test(engine: Engine) -> None:
    def get_session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    def endpoint(tasks: Tasks, session: Annotated[Session, Depends(get_session)]) -> None:
        session.execute(SELECT)
        tasks.after_response.schedule(use, session)

    with pytest.raises(AssertionError, match="1 task used a database session that its request had closed") as failure:
        ask(endpoint)
    assert "use(" in str(failure.value)
    assert "session: SessionDep = Provided" in str(failure.value)


def test_an_async_session() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(engine) as session:
            yield session

    async def use_later(session: AsyncSession) -> None:
        await session.execute(SELECT)
        await session.close()
        await engine.dispose()

    async def endpoint(tasks: Tasks, session: Annotated[AsyncSession, Depends(get_session)]) -> None:
        await session.execute(SELECT)
        tasks.after_response.schedule(use_later, session)

    with pytest.raises(AssertionError, match="1 task used a database session that its request had closed"):
        ask(endpoint)


def test_a_task_that_uses_it_twice_is_found_once(engine: Engine) -> None:
    def use_twice(session: Session) -> None:
        use(session)
        session.commit()
        use(session)

    def endpoint(tasks: Tasks) -> None:
        session = Session(engine)
        session.close()
        tasks.after_response.schedule(use_twice, session)

    with pytest.raises(AssertionError, match="1 task used a database session that its request had closed"):
        ask(endpoint)


def test_the_check_is_turned_off_with_that_of_leaks(engine: Engine) -> None:
    def endpoint(tasks: Tasks) -> None:
        session = Session(engine)
        session.close()
        tasks.after_response.schedule(use, session)

    with pytest.raises(AssertionError, match="1 task used a database session"):
        ask(endpoint)
    ask(endpoint, leaks="ignore")


def test_other_uses_are_not_found(engine: Engine) -> None:
    """A session of the task, one that nobody has closed, and one that the request itself uses again."""

    def get_session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    def own(session: Annotated[Session, Depends(get_session)] = Provided) -> None:
        session.execute(SELECT)

    def open_and_close(session: Session) -> None:
        with session:
            session.execute(SELECT)

    def endpoint(tasks: Tasks, session: Annotated[Session, Depends(get_session)]) -> None:
        session.execute(SELECT)
        opened_again = Session(engine)
        opened_again.close()
        opened_again.execute(SELECT)
        opened_again.commit()
        tasks.after_response.schedule(open_and_close, opened_again)
        tasks.after_response.schedule(own)
        tasks.after_response.schedule(open_and_close, Session(engine))

    ask(endpoint)
    with Session(engine) as session:  # of no request
        session.execute(SELECT)
