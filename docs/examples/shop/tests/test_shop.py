"""
The tests of the shop: what each endpoint leaves to the background, when that runs, and what happens when it fails.

The edges are not mocked: mail goes to the mail server of the sandbox, payments to its gateway. Time is virtual, so the
pauses between attempts take none.
"""

import json
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import aiosqlite
import anyio
import httpx
import pytest
from asgi_lifespan import LifespanManager
from fastapi.testclient import TestClient
from PIL import Image as Picture
from shop import payments
from shop.analytics import track_order_event
from shop.app import create_app
from shop.database import Database
from shop.dependencies import CurrentShop, TaskConnection, get_connection
from shop.gateway import PaymentGateway
from shop.images import generate_thumbnails, rebuild_search_index, update_search_index
from shop.orders import Order, charge, release_stock, send_confirmation
from shop.payments import charge_durably
from shop.products import Product, delete_file, invalidate_product_cache, write_audit_entry
from shop.reports import report_orders, send_report
from shop.resources import Shop
from shop.sandbox import DECLINED_CARD, SandboxGateway
from shop.search import SearchIndex
from shop.settings import Settings
from shop.users import send_welcome_email
from tasks_core import Provided, durable_context
from tasks_testing import TasksRecorder, call_like, finished, opened, scheduled, started

pytestmark = pytest.mark.tasks_recorder(virtual_time=True)

ANN = {"email": "ann@example.org", "name": "Ann"}
TWO_TEAPOTS = {"product_id": 1, "quantity": 2, "email": "ann@example.org", "card": "4242 4242 4242 4242"}
BLUE_TEAPOT = {"name": "Teapot, blue", "price": 2690}


# ---- fixtures ----


@pytest.fixture
def gateway() -> SandboxGateway:
    return SandboxGateway()


@pytest.fixture
def settings(tmp_path: Path, gateway: SandboxGateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Settings]:
    monkeypatch.setattr("shop.app.log_to_stderr", lambda: None)  # pytest shows the log
    monkeypatch.setattr("shop.database.SYNCHRONOUS", "off")  # a test needs no power-safe commits
    with gateway.serve() as url:
        yield Settings(data=tmp_path, gateway=url, durable=False)  # payments in memory: all but one test is about those


@pytest.fixture
def client(settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(settings)) as client:
        yield client


def stock(client: TestClient) -> int:
    teapot: dict[str, int] = client.get("/products").json()[0]
    return teapot["stock"]


def status_of_order(client: TestClient) -> str:
    status: str = client.get("/orders/1").json()["status"]
    return status


def subjects(client: TestClient) -> list[str]:
    lines = client.get("/inbox").text.splitlines()
    return [line.removeprefix("Subject: ") for line in lines if line.startswith("Subject: ")]


def upload(client: TestClient, title: str = "Red teapot") -> Any:
    file = BytesIO()
    Picture.new("RGB", (400, 200), "red").save(file, "PNG")
    response = client.post("/images", files={"file": file.getvalue()}, data={"title": title})
    assert response.status_code == 201
    return response.json()


# ---- sign-up ----


# --8<-- [start:users]
@pytest.mark.tasks_recorder(strict=True)
def test_new_user_gets_a_welcome_email(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    assert client.post("/users", json=ANN).status_code == 201
    tasks_recorder.after_response.assert_ran(call_like(send_welcome_email, **ANN), times=1)
    tasks_recorder.request().assert_order("response_sent", opened("after_response"), send_welcome_email)
    assert subjects(client) == ["Welcome, Ann"]


def test_sign_up_does_not_wait_for_the_welcome_email(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.hold(send_welcome_email)
    assert client.post("/users", json=ANN).status_code == 201
    assert client.get("/users/1").json() == {"id": 1, **ANN}
    assert subjects(client) == []

    tasks_recorder.release(send_welcome_email)
    tasks_recorder.drain()
    assert subjects(client) == ["Welcome, Ann"]


def test_user_is_welcomed_once(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    client.post("/users", json=ANN)
    assert client.post("/users", json=ANN).status_code == 409
    tasks_recorder.assert_ran(send_welcome_email, times=1)
    tasks_recorder.request().assert_nothing_scheduled()


def test_sign_up_works_without_a_mail_server(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.fail(send_welcome_email, ConnectionRefusedError("no mail server"))
    assert client.post("/users", json=ANN).status_code == 201
    tasks_recorder.assert_failed(send_welcome_email, ConnectionRefusedError, times=1)
    assert client.get("/users/1").json() == {"id": 1, **ANN}


# --8<-- [end:users]

# ---- products ----


@pytest.mark.tasks_recorder(strict=True)
def test_change_of_a_product(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    assert client.put("/products/1", json=BLUE_TEAPOT).status_code == 200
    entry = call_like(write_audit_entry, what="product changed", product=Product(id=1, name="Teapot, blue", price=2690))
    tasks_recorder.after_route.assert_ran(entry, times=1)
    tasks_recorder.after_response.assert_ran(call_like(invalidate_product_cache, product_id=1), times=1)
    tasks_recorder.request().assert_order("route_returned", opened("after_route"), write_audit_entry)
    tasks_recorder.request().assert_order("response_sent", opened("after_response"), invalidate_product_cache)


def test_cache_is_invalidated_after_the_response(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    def page() -> tuple[str, str]:
        response = client.get("/products/1")
        return response.headers["X-Cache"], response.json()["name"]

    tasks_recorder.hold(invalidate_product_cache)
    assert page() == ("miss", "Teapot")
    client.put("/products/1", json=BLUE_TEAPOT)
    assert page() == ("hit", "Teapot")

    tasks_recorder.release(invalidate_product_cache)
    tasks_recorder.drain()
    assert page() == ("miss", "Teapot, blue")


def test_response_does_not_wait_for_the_audit_log(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.hold(write_audit_entry)
    client.put("/products/1", json=BLUE_TEAPOT)
    assert client.get("/audit").json() == []

    tasks_recorder.release(write_audit_entry)
    tasks_recorder.drain()
    (line,) = client.get("/audit").json()
    assert json.loads(line["entry"]) == {"what": "product changed", "id": 1, **BLUE_TEAPOT}


def test_change_that_is_not_committed(settings: Settings, tasks_recorder: TasksRecorder) -> None:
    """Both tasks are discarded: the audit log has no entry, and the page stays in the cache."""

    async def get_connection_that_breaks(shop: CurrentShop) -> AsyncIterator[Any]:
        async with shop.database.transaction() as connection:
            yield connection
            raise sqlite3.OperationalError("disk is full")

    app = create_app(settings)
    app.dependency_overrides[get_connection] = get_connection_that_breaks
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.put("/products/1", json=BLUE_TEAPOT).status_code == 500
        assert tasks_recorder.after_route.one(write_audit_entry).state == "discarded"
        assert tasks_recorder.after_response.one(invalidate_product_cache).state == "discarded"


def test_catalogue_is_deleted_after_the_download(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    response = client.get("/catalogue.csv")
    assert response.text.splitlines()[:2] == ["name,price,id,stock", "Teapot,2490,1,20"]
    tasks_recorder.request().assert_order("response_started", write_audit_entry, "response_sent", delete_file)
    assert not tasks_recorder.one(delete_file).call.args[0].exists()


def test_change_of_no_product(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    assert client.put("/products/99", json=BLUE_TEAPOT).status_code == 404
    tasks_recorder.assert_nothing_scheduled()


# ---- pictures ----


@pytest.mark.tasks_recorder(strict=True)
def test_picture_gets_thumbnails_and_is_found(
    client: TestClient, settings: Settings, tasks_recorder: TasksRecorder
) -> None:
    image = upload(client)
    path = settings.data / "images" / image["id"]
    tasks_recorder.immediate.assert_ran(call_like(generate_thumbnails, path=path), times=1)
    indexed = call_like(update_search_index, image_id=image["id"], title="Red teapot")
    tasks_recorder.immediate.assert_ran(indexed, times=1)
    tasks_recorder.request().assert_order(
        scheduled(generate_thumbnails), scheduled(update_search_index), "route_returned"
    )

    with Picture.open(BytesIO(client.get(f"/images/{image['id']}/thumbnails/64").content)) as thumbnail:
        assert thumbnail.size == (64, 32)
    assert client.get("/images?words=teapot").json() == [image]


def test_picture_is_there_before_its_thumbnails(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.hold(generate_thumbnails, update_search_index)
    image = upload(client)
    thumbnail = f"/images/{image['id']}/thumbnails/256"
    assert client.get("/images").json() == [image]
    assert client.get("/images?words=teapot").json() == []
    assert client.get(thumbnail).status_code == 404

    tasks_recorder.release()
    tasks_recorder.drain()
    assert client.get("/images?words=teapot").json() == [image]
    assert client.get(thumbnail).status_code == 200


def test_picture_is_found_without_thumbnails(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    """A task that fails harms neither the response nor the task beside it."""
    tasks_recorder.fail(generate_thumbnails, MemoryError)
    image = upload(client)
    tasks_recorder.assert_failed(generate_thumbnails, MemoryError)
    tasks_recorder.assert_ran(update_search_index)
    assert client.get("/images?words=red").json() == [image]


def test_two_pictures_are_opened_at_a_time(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    """While two pictures are open, a third one waits for the limiter."""
    two = threading.Barrier(2, timeout=5)
    lent: list[float] = []

    def open_picture(shop: Shop, path: Path) -> None:
        two.wait()
        lent.append(shop.picture_limiter.borrowed_tokens)
        two.wait()

    tasks_recorder.stub(generate_thumbnails, open_picture)
    with tasks_recorder.hold(generate_thumbnails):
        for number in range(4):
            upload(client, f"Picture {number}")
    tasks_recorder.assert_ran(generate_thumbnails, times=4)
    assert lent == [2, 2, 2, 2]


def test_renames_in_a_row_build_the_index_once(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    image = upload(client)
    for title in ("Green teapot", "White teapot", "Blue teapot"):
        assert client.put(f"/images/{image['id']}", json={"title": title}).status_code == 200
    tasks_recorder.drain()
    tasks_recorder.assert_ran(rebuild_search_index, times=1)
    assert tasks_recorder.clock.now == pytest.approx(1)
    assert [found["title"] for found in client.get("/images?words=teapot").json()] == ["Blue teapot"]
    assert client.get("/images?words=red").json() == []


def test_index_is_built_by_one_task_at_a_time(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    """A rename while the index is built has it built again afterwards."""
    image = upload(client)
    with tasks_recorder.hold(SearchIndex.rebuild):
        client.put(f"/images/{image['id']}", json={"title": "Green teapot"})
        tasks_recorder.wait_for(rebuild_search_index, "running")
        client.put(f"/images/{image['id']}", json={"title": "Blue teapot"})
        states = [task.state for task in tasks_recorder if task.name == "rebuild_search_index"]
        assert states == ["running", "pending"]
    tasks_recorder.drain()
    tasks_recorder.assert_ran(rebuild_search_index, times=2)
    assert client.get("/images?words=blue").json() != []


def test_rename_of_no_picture(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    assert client.put("/images/none", json={"title": "Teapot"}).status_code == 404
    tasks_recorder.assert_nothing_scheduled()


def test_upload_of_no_picture(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    response = client.post("/images", files={"file": b"text"}, data={"title": "Red teapot"})
    assert response.status_code == 422
    tasks_recorder.assert_nothing_scheduled()


# ---- orders ----


@pytest.mark.tasks_recorder(strict=True)
def test_order(client: TestClient, settings: Settings, tasks_recorder: TasksRecorder) -> None:
    """All that an order leaves to the background, and when."""
    response = client.post("/orders", json=TWO_TEAPOTS)
    assert response.status_code == 201
    order = Order.model_validate(response.json())
    tasks_recorder.drain()

    tasks_recorder.immediate.assert_ran(call_like(track_order_event, order_id=1, event="created"), times=1)
    tasks_recorder.after_response.assert_ran(call_like(send_confirmation, order=order), times=1)
    tasks_recorder.after_response.assert_ran(call_like(charge, order=order, authorisation="A-1"), times=1)
    assert tasks_recorder.after_response.one(release_stock).state == "discarded"
    request = tasks_recorder.request()
    request.assert_order(scheduled(release_stock), scheduled(track_order_event), "route_returned")
    request.assert_order("response_sent", opened("after_response"), started(send_confirmation))
    request.assert_order("response_sent", opened("after_response"), started(charge), finished(charge))

    assert '"order": 1, "event": "created"' in (settings.data / "analytics.jsonl").read_text()
    assert subjects(client) == ["Your order 1"]
    assert stock(client) == 18


# --8<-- [start:any_order]
def test_order_with_its_tasks_in_any_order(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    """No order is promised for the event, the confirmation and the payment."""

    def order_teapots() -> None:
        number = client.post("/orders", json=TWO_TEAPOTS).json()["id"]
        tasks_recorder.drain()
        assert client.get(f"/orders/{number}").json()["status"] == "paid"
        assert subjects(client)[-1] == f"Your order {number}"

    explored = tasks_recorder.explore_orders(order_teapots, restore=lambda: None)
    assert (explored.run, explored.total) == (6, 6)


def test_confirmation_that_depends_on_the_order_of_tasks(
    client: TestClient, gateway: SandboxGateway, tasks_recorder: TasksRecorder
) -> None:
    """A confirmation that reads the status would be right by chance."""
    gateway.tries.update({f"A-{number}": 1 for number in range(1, 10)})  # it hangs up no more
    written: list[str] = []

    async def read_status(shop: Shop, order: Order) -> None:
        async with shop.database.transaction() as connection:
            cursor = await connection.execute("select status from orders where id = ?", (order.id,))
            row = await cursor.fetchone()
        assert row is not None
        written.append(row["status"])

    def order_teapots() -> None:
        tasks_recorder.stub(send_confirmation, read_status)
        client.post("/orders", json=TWO_TEAPOTS)
        tasks_recorder.drain()
        assert written == ["placed"]

    with pytest.raises(AssertionError) as failure:
        tasks_recorder.explore_orders(order_teapots, restore=written.clear)
    assert failure.value.__notes__[0].startswith("it fails when the tasks start in another order; ")


# --8<-- [end:any_order]


def test_order_is_paid_after_the_response(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.hold(charge)
    assert client.post("/orders", json=TWO_TEAPOTS).json()["status"] == "placed"
    assert status_of_order(client) == "placed"

    tasks_recorder.release(charge)
    tasks_recorder.drain()
    assert status_of_order(client) == "paid"


def test_gateway_hangs_up(client: TestClient, gateway: SandboxGateway, tasks_recorder: TasksRecorder) -> None:
    """The sandbox does so on the first try: a fifth of a second later comes another."""
    client.post("/orders", json=TWO_TEAPOTS)
    tasks_recorder.drain()
    tasks_recorder.assert_ran(charge, times=1)
    assert tasks_recorder.one(charge).attempts == gateway.tries["A-1"] == 2
    assert tasks_recorder.clock.now == pytest.approx(0.2)
    assert client.get("/orders/1").json()["receipt"] == gateway.captured["A-1"]


def test_money_is_taken_once(client: TestClient, gateway: SandboxGateway, tasks_recorder: TasksRecorder) -> None:
    """An attempt that fails behind the capture is repeated; the gateway knows the authorisation."""
    gateway.tries["A-1"] = 1  # it hangs up no more
    tasks_recorder.fail(charge, ConnectionError("connection lost"), after_run=True)
    client.post("/orders", json=TWO_TEAPOTS)
    tasks_recorder.drain()
    tasks_recorder.assert_ran(charge)
    assert gateway.tries["A-1"] == 3
    assert gateway.captured == {"A-1": "R-A-1"}


def test_payment_is_given_up(client: TestClient, gateway: SandboxGateway, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.fail(charge, ConnectionError("gateway is down"), times=None)
    assert client.post("/orders", json=TWO_TEAPOTS).status_code == 201
    tasks_recorder.drain()
    payment = tasks_recorder.assert_failed(charge, ConnectionError, match="down", times=1)
    assert payment.attempts == 5
    assert tasks_recorder.clock.now == pytest.approx(0.2 + 0.4 + 0.8 + 1.6)
    assert gateway.captured == {}
    assert status_of_order(client) == "payment failed"
    tasks_recorder.assert_ran(send_confirmation)


def test_payment_is_not_repeated_for_a_defect(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.fail(charge, ValueError("no such currency"))
    client.post("/orders", json=TWO_TEAPOTS)
    tasks_recorder.drain()
    assert tasks_recorder.assert_failed(charge, ValueError).attempts == 1
    assert status_of_order(client) == "payment failed"


def test_gateway_does_not_answer(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    """Each attempt has thirty seconds."""

    async def answer_never(shop: Shop, order: Order, authorisation: str) -> None:
        await anyio.sleep_forever()

    tasks_recorder.stub(charge, answer_never)
    client.post("/orders", json=TWO_TEAPOTS)
    tasks_recorder.clock.advance(30, while_running=True)
    tasks_recorder.assert_failed(charge, TimeoutError)
    assert status_of_order(client) == "payment failed"


def test_confirmation_is_tried_three_times(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.fail(send_confirmation, ConnectionError("mail server is down"), times=2)
    client.post("/orders", json=TWO_TEAPOTS)
    tasks_recorder.drain()
    assert tasks_recorder.assert_ran(send_confirmation).attempts == 3
    assert subjects(client) == ["Your order 1"]


def test_order_is_paid_without_a_mail_server(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.fail(send_confirmation, ConnectionError("mail server is down"), times=None)
    assert client.post("/orders", json=TWO_TEAPOTS).status_code == 201
    tasks_recorder.drain()
    assert tasks_recorder.assert_failed(send_confirmation, ConnectionError).attempts == 3
    tasks_recorder.assert_ran(charge)
    assert status_of_order(client) == "paid"


def test_declined_card_releases_the_stock(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.hold(release_stock)
    assert client.post("/orders", json={**TWO_TEAPOTS, "card": DECLINED_CARD}).status_code == 402
    assert stock(client) == 18

    tasks_recorder.release(release_stock)
    tasks_recorder.after_response.assert_ran(call_like(release_stock, product_id=1, quantity=2), times=1)
    assert stock(client) == 20
    for task in (track_order_event, send_confirmation, charge):
        tasks_recorder.assert_not_scheduled(task)


def test_error_in_the_endpoint_releases_the_stock(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tasks_recorder: TasksRecorder
) -> None:
    """The order cannot be stored: the exception leaves the application, and the stock is released all the same."""

    async def store_nothing(*_: object) -> Order:
        raise sqlite3.OperationalError("disk is full")

    monkeypatch.setattr("shop.orders.store_order", store_nothing)
    with pytest.raises(sqlite3.OperationalError):
        client.post("/orders", json=TWO_TEAPOTS)
    tasks_recorder.assert_ran(release_stock, times=1)
    tasks_recorder.assert_not_scheduled(charge)
    assert stock(client) == 20


def test_order_of_more_than_there_is(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    assert client.post("/orders", json={**TWO_TEAPOTS, "quantity": 21}).status_code == 409
    tasks_recorder.assert_nothing_scheduled()


# ---- the report of the night ----


def test_report_is_sent_at_three(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    client.post("/orders", json=TWO_TEAPOTS)
    tasks_recorder.drain()
    tasks_recorder.clock.advance(24 * 3600)
    tasks_recorder.assert_ran(report_orders, times=1)
    tasks_recorder.assert_ran(call_like(send_report, orders=1, total=4980), times=1)
    assert subjects(client)[-1] == "Report"

    tasks_recorder.clock.advance(24 * 3600)
    tasks_recorder.assert_ran(report_orders, times=2)


def test_report_that_fails_is_sent_the_next_night(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    tasks_recorder.fail(report_orders, sqlite3.OperationalError("disk is full"), times=1)
    tasks_recorder.clock.advance(2 * 24 * 3600)
    tasks_recorder.assert_failed(report_orders, sqlite3.OperationalError, times=1)
    tasks_recorder.assert_ran(report_orders, times=1)
    assert client.get("/health").json()["periodic"]["report_orders"] == {"runs": 2, "failed": 1, "skipped": 0}


def test_report_may_be_sent_more_often(settings: Settings, tasks_recorder: TasksRecorder) -> None:
    with TestClient(create_app(replace(settings, report_every=600))) as client:
        client.get("/health")  # by now the timer waits
        tasks_recorder.clock.advance(1800)
    tasks_recorder.assert_ran(report_orders, times=3)


# ---- the session of a task ----


def test_task_that_fails_stores_nothing(client: TestClient, tasks_recorder: TasksRecorder) -> None:
    """Its connection is its own, and is rolled back with it."""

    async def write_and_fail(what: str, product: Product, connection: TaskConnection = Provided) -> None:
        await connection.execute("insert into audit (entry) values (?)", (what,))
        raise ValueError("after the insert")

    tasks_recorder.stub(write_audit_entry, write_and_fail)
    client.put("/products/1", json=BLUE_TEAPOT)
    tasks_recorder.assert_failed(write_audit_entry, ValueError)
    assert client.get("/audit").json() == []


# ---- a deploy in the middle of a payment ----


def test_payment_survives_the_shutdown(
    settings: Settings, gateway: SandboxGateway, tasks_recorder: TasksRecorder
) -> None:
    """The grace period is over and the e-mail is cancelled: only then the gateway answers, and the shop has waited."""
    gateway.tries["A-1"] = 1  # it hangs up no more
    gateway.hold()

    async def send_until_cancelled(shop: Shop, order: Order) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            gateway.release()

    tasks_recorder.stub(send_confirmation, send_until_cancelled)
    tasks_recorder.allow_running(send_confirmation)
    with TestClient(create_app(replace(settings, grace_period=0))) as client:
        client.post("/orders", json=TWO_TEAPOTS)
        assert gateway.holding.wait(5)
        tasks_recorder.wait_for(send_confirmation, "running")
        tasks_recorder.assert_ran(track_order_event)
        assert status_of_order(client) == "placed"

    assert tasks_recorder.one(send_confirmation).state == "cancelled"
    assert tasks_recorder.one(charge).state == "succeeded"
    with closing(sqlite3.connect(settings.data / "shop.db")) as database:
        assert database.execute("select status, receipt from orders").fetchall() == [("paid", "R-A-1")]


# ---- a payment that a worker makes ----


@pytest.fixture
def durable_client(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """With PostgreSQL, as by default; the recorder stands in for it."""
    monkeypatch.setattr(payments, "SETTINGS", settings)
    with TestClient(create_app(replace(settings, durable=True))) as client:
        yield client


def test_payment_by_a_worker(
    durable_client: TestClient, gateway: SandboxGateway, tasks_recorder: TasksRecorder
) -> None:
    """The payment is submitted with the order. A second run, which may happen, takes no money."""
    durable_client.post("/orders", json=TWO_TEAPOTS)
    tasks_recorder.assert_not_scheduled(charge)
    (kept,) = tasks_recorder.durable_calls
    assert (kept.name, kept.idempotency_key) == ("shop.charge", "charge-1")
    assert status_of_order(durable_client) == "placed"

    tasks_recorder.run_durable(times=2)
    assert [run.attempts for run in tasks_recorder.durable_runs] == [2, 1]  # the gateway hangs up on the first try
    assert gateway.tries["A-1"] == 3
    assert gateway.captured == {"A-1": "R-A-1"}
    assert status_of_order(durable_client) == "paid"


def test_payment_by_a_worker_is_given_up(durable_client: TestClient, tasks_recorder: TasksRecorder) -> None:
    durable_client.post("/orders", json=TWO_TEAPOTS)
    tasks_recorder.fail(charge_durably, ConnectionError("the gateway hung up"), times=None)
    tasks_recorder.run_durable()
    tasks_recorder.durable_runs.assert_failed(charge_durably, ConnectionError)
    assert tasks_recorder.durable_runs.one(charge_durably).attempts == 5
    assert status_of_order(durable_client) == "payment failed"


# --8<-- [start:cut]
@pytest.fixture
def close_connections(durable_client: TestClient, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Awaitable[None]]:
    """Return what closes the connections that a worker has open, as its death does."""
    opened: list[aiosqlite.Connection] = []
    connect = aiosqlite.connect

    def connect_and_note(path: Path) -> aiosqlite.Connection:
        opened.append(connect(path))
        return opened[-1]

    async def close() -> None:
        while opened:
            await opened.pop().close()

    monkeypatch.setattr(aiosqlite, "connect", connect_and_note)
    return close


@pytest.fixture
def cut_payment(
    durable_client: TestClient,
    settings: Settings,
    gateway: SandboxGateway,
    close_connections: Callable[[], Awaitable[None]],
    tasks_recorder: TasksRecorder,
) -> Callable[[], None]:
    """Return what kills the worker of a payment at each place, and looks for the money afterwards."""

    def before_the_payment() -> None:
        gateway.captured.clear()
        gateway.tries.update(["A-1", "A-1/1", "A-1/2"])  # it hangs up no more
        with closing(sqlite3.connect(settings.data / "shop.db")) as database:
            database.execute("update orders set status = 'placed', receipt = null")
            database.commit()

    def paid() -> tuple[int, str]:
        return len(gateway.captured), status_of_order(durable_client)

    def cut() -> None:
        durable_client.post("/orders", json=TWO_TEAPOTS)
        tasks_recorder.run_durable(
            cut="everywhere", restore=before_the_payment, check=paid, on_cut=close_connections, timeout=20
        )
        assert paid() == (1, "paid")

    return cut


def test_payment_survives_the_death_of_its_worker(
    cut_payment: Callable[[], None], tasks_recorder: TasksRecorder
) -> None:
    """Wherever the worker is killed, the next attempt takes no money again, and marks the order."""
    cut_payment()


def test_payment_with_a_number_for_each_attempt_is_found(
    durable_client: TestClient, cut_payment: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is asked first, so two whole runs take the money once. A worker that dies in between takes it twice."""

    async def take_money(database: Database, gateway: PaymentGateway, order_id: int, authorisation: str) -> None:
        if status_of_order(durable_client) != "paid":
            receipt = await gateway.capture(f"{authorisation}/{durable_context().attempt}")
            async with database.transaction() as connection:
                await connection.execute("update orders set status = 'paid', receipt = ?", (receipt,))

    monkeypatch.setattr(payments, "take_money", take_money)
    with pytest.raises(AssertionError) as failure:
        cut_payment()
    text = str(failure.value)
    assert text.startswith("shop.charge has another outcome when its worker dies\n")
    assert "then it ran again, and check() returned (2, 'paid'),\nwithout a cut (1, 'paid')\n" in text
    assert "in charge_durably: await take_money(database, gateway, order_id, authorisation)\n" in text


# --8<-- [end:cut]

# ---- a test on an event loop ----


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # aiosqlite and aiosmtpd know no other


@pytest.fixture
async def async_client(settings: Settings) -> AsyncIterator[httpx.AsyncClient]:
    async with LifespanManager(create_app(settings)) as manager:
        transport = httpx.ASGITransport(manager.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            yield client


@pytest.mark.anyio
async def test_orders_at_the_same_time(async_client: httpx.AsyncClient, tasks_recorder: TasksRecorder) -> None:
    """Of five customers who want five teapots each, the twenty there are go to four."""
    statuses: list[int] = []

    async def order() -> None:
        statuses.append((await async_client.post("/orders", json={**TWO_TEAPOTS, "quantity": 5})).status_code)

    async with anyio.create_task_group() as customers:
        for _ in range(5):
            customers.start_soon(order)
    await tasks_recorder.adrain()

    assert sorted(statuses) == [201] * 4 + [409]
    for task in (track_order_event, send_confirmation, charge):
        tasks_recorder.assert_ran(task, times=4)
    assert (await async_client.get("/products")).json()[0]["stock"] == 0


# ---- operators ----


def test_page_for_operators_has_the_report_that_comes_next(client: TestClient) -> None:
    page = client.get("/_tasks/")
    assert page.status_code == 200
    assert "Tasks of Shop" in page.text
    assert "report_orders" in page.text
