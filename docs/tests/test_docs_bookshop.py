"""The tests of the tutorial; they are its proof, too."""

# --8<-- [start:tests]
from collections.abc import Iterator

import pytest
from bookshop import Base, app, get_session, send_confirmation
from fastapi.testclient import TestClient
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, sessionmaker
from sqlalchemy.pool import StaticPool
from tasks_testing import TasksRecorder, call


@pytest.fixture
def client() -> Iterator[TestClient]:
    database = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    Base.metadata.create_all(database)
    new_session = sessionmaker(database, close_resets_only=False)

    def get_test_session() -> Iterator[Session]:
        with new_session.begin() as session:
            yield session

    app.dependency_overrides[get_session] = get_test_session
    with TestClient(app) as client:
        yield client
    app.dependency_overrides.clear()
    database.dispose()


def test_customer_gets_a_confirmation(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    order_id = client.post("/orders?email=ann@example.org&cents=2990").json()["order"]
    tasks_recorder.after_response.assert_ran(call(send_confirmation, order_id), times=1)


def test_payment_is_made_by_a_worker(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    order_id = client.post("/orders?email=ann@example.org&cents=2990").json()["order"]
    assert client.get(f"/orders/{order_id}").json() == {"status": "placed"}

    tasks_recorder.run_durable(times=2)  # a second run must be harmless
    assert client.get(f"/orders/{order_id}").json() == {"status": "paid"}


def test_refused_order_has_no_tasks(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    assert client.post("/orders?email=ann@example.org&cents=many").status_code == 422
    tasks_recorder.assert_nothing_scheduled()


# --8<-- [end:tests]
