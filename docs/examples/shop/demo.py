"""
Run the shop, send it requests, and show when each background task ran: `hatch run demo`.

The shop runs under uvicorn in a process of its own; the mail server and the payment gateway run in this one. Each
promise is checked, and printed with a tick or a cross. The exit status is 1 if a check failed. It takes 20 seconds.
"""

# Needs, beyond the packages of this repository: aiosmtpd, aiosqlite, fastapi-offline, httpx, pillow, python-multipart,
# tasks-core[cron,embedded] and uvicorn.

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sqlite3
import sys
import time
import traceback
from contextlib import closing
from dataclasses import dataclass, field, replace
from io import BytesIO, TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the folder of this file is the package `shop`

from shop.process import ShopProcess, start_shop, start_worker, until
from shop.reports import OWNER
from shop.sandbox import DECLINED_CARD, Inbox, SandboxGateway
from shop.settings import Settings
from shop.timeline import Event, Timeline, render, row

ANN = "ann@example.org"
GRACE_PERIOD = 0.5
"""Seconds; the payment takes longer."""

REPORT_EVERY = 1.5
"""Seconds between two reports; without the setting, they are sent at night."""

CHARGE = "shop.charge"
"""The registered name of the durable task that makes a payment."""

DRAINING = "Waiting for application shutdown."
"""The line that uvicorn logs before it shuts down the lifespan of the shop."""

INTRODUCTION = """\
Each table shows one request to a real server, with the milliseconds since it arrived:
▶ a task starts, ■ it has ended, ↻ it will be tried again.
Payments are durable: PostgreSQL, which a Python package installs, stores them, and a worker runs
them. Here the worker is part of the shop."""

COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


@dataclass
class Demo:
    """What every step needs."""

    settings: Settings
    shop: ShopProcess
    client: httpx.AsyncClient
    inbox: Inbox
    gateway: SandboxGateway
    checks: list[bool] = field(default_factory=list)

    def check(self, what: str, happened: object) -> None:
        """Print whether something happened, and record it for the exit status."""
        self.checks.append(bool(happened))
        print(f"  {coloured('✓', '32') if happened else coloured('✗', '1;31')} {what}")

    async def timeline(self, method_and_path: str) -> Timeline:
        """Wait until the latest of these requests and its tasks have ended; print its table and return it."""
        in_time = await until(lambda: self.shop.latest(method_and_path).finished)
        timeline = self.shop.latest(method_and_path)
        print(render(timeline, colour=COLOUR), end="\n\n")
        if not in_time:
            self.check("the request and its tasks have ended", happened=False)
        return timeline

    def select(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Return rows from the database of the shop, which the demo opens itself."""
        with closing(sqlite3.connect(self.settings.data / "shop.db")) as connection:
            return connection.execute(query, parameters).fetchall()


async def sign_up(demo: Demo) -> None:
    title("Sign-up: the e-mail is sent after the response")
    response = await demo.client.post("/users", json={"email": ANN, "name": "Ann"})
    timeline = await demo.timeline("POST /users")
    demo.check("the client got 201 Created", response.status_code == 201)
    demo.check("the user is in the database", demo.select("select name from users where email = ?", ANN) == [("Ann",)])
    subjects = [message["Subject"] for message in demo.inbox.of(ANN)]
    demo.check("the mail server has the welcome e-mail", subjects == ["Welcome, Ann"])
    demo.check(
        "the e-mail was begun after the last byte", starts_after(timeline, "send_welcome_email", "response_sent")
    )


async def change_product(demo: Demo) -> None:
    title("Product update: the cache is invalidated after the commit and the response")
    pages = [await demo.client.get("/products/1") for _ in range(2)]
    await demo.client.put("/products/1", json={"name": "Teapot, blue", "price": 2990})
    timeline = await demo.timeline("PUT /products/1")
    pages.append(await demo.client.get("/products/1"))
    cache = [page.headers["X-Cache"] for page in pages]
    demo.check("the page was cached before and not after: miss, hit, miss", cache == ["miss", "hit", "miss"])
    demo.check("the page shows the new price", pages[-1].json()["price"] == 2990)
    demo.check("the change is in the audit log", len(demo.select("select * from audit where entry like '%2990%'")) == 1)
    demo.check("the audit began after the endpoint", starts_after(timeline, "write_audit_entry", "route_returned"))
    demo.check(
        "the cache was invalidated after the last byte",
        starts_after(timeline, "invalidate_product_cache", "response_sent"),
    )


async def download_catalogue(demo: Demo) -> None:
    title("Download: the audit log is written beside the response, the file is deleted after it")
    response = await demo.client.get("/catalogue.csv")
    timeline = await demo.timeline("GET /catalogue.csv")
    demo.check("the client got a line for each product", len(response.text.splitlines()) == 1 + 3)
    audit = timeline.time_of("task_started", "write_audit_entry")
    moments = (timeline.time_of("route_returned"), audit, timeline.time_of("response_sent"))
    demo.check("after_route: the audit began while the client was still reading", in_order(*moments))
    demo.check("after_response: the file was deleted later", starts_after(timeline, "delete_file", "response_sent"))


async def upload_picture(demo: Demo) -> None:
    title("Upload of a picture: thumbnails and search index, made at once")
    form = {"title": "Red teapot on a table"}
    response = await demo.client.post("/images", data=form, files={"file": ("teapot.png", draw_teapot(), "image/png")})
    timeline = await demo.timeline("POST /images")
    image = response.json()
    sizes = [await thumbnail_size(demo.client, image["id"], size) for size in (256, 64)]
    demo.check("the thumbnails of 1200 x 800 pixels have 256 x 171 and 64 x 43", sizes == [(256, 171), (64, 43)])
    found = await demo.client.get("/images", params={"words": "table teapot"})
    demo.check("the picture is found by words of its title", [hit["id"] for hit in found.json()] == [image["id"]])
    nothing = await demo.client.get("/images", params={"words": "coffee"})
    demo.check("and not by others", nothing.json() == [])
    for task in ("generate_thumbnails", "update_search_index"):
        began = timeline.time_of("task_started", task)
        demo.check(f"{task} did not wait for the response", in_order(began, timeline.time_of("response_sent")))


async def rename_picture(demo: Demo) -> None:
    title("Renames in a row: the search index is built once, because the task has a key")
    (image,) = (await demo.client.get("/images")).json()
    for name in ("Green teapot", "White teapot", "Blue teapot"):
        await demo.client.put(f"/images/{image['id']}", json={"title": name})
    await demo.timeline(f"PUT /images/{image['id']}")
    ran = [event for event in demo.shop.events() if event.name == "rebuild_search_index"]
    starts, ends = ([event.text for event in ran if event.kind == f"task_{kind}"] for kind in ("started", "finished"))
    demo.check("three requests have scheduled the task", sum(event.kind == "task_scheduled" for event in ran) == 3)
    demo.check("the first two were replaced by the last", [end.split(":")[0] for end in ends[:2]] == ["discarded"] * 2)
    demo.check("the index was built once", len(starts) == 1 and ends[2:] == ["succeeded"])
    found = await demo.client.get("/images", params={"words": "blue"})
    demo.check("the picture is found by its last title", [hit["id"] for hit in found.json()] == [image["id"]])


async def place_order(demo: Demo) -> None:
    title("Order: the payment is stored before the response, and made by a worker, with a retry")
    response = await demo.client.post("/orders", json=order("4242 4242 4242 4242"))
    placed = response.json()
    await until(lambda: is_paid(demo, placed["id"]))
    timeline = await demo.timeline("POST /orders")
    demo.check("the order was placed before anything was paid", placed["status"] == "placed")
    lines = (demo.settings.data / "analytics.jsonl").read_text().splitlines()
    events = [(line["order"], line["event"]) for line in map(json.loads, lines)]
    demo.check("the analytics file has one line: created", events == [(placed["id"], "created")])
    demo.check(
        "the mail server has the confirmation", f"Your order {placed['id']}" in demo.inbox.of(ANN)[-1]["Subject"]
    )
    stored = timeline.time_of("task_finished", f"submit {CHARGE}")
    demo.check("the payment was stored before the response", in_order(stored, timeline.time_of("route_returned")))
    demo.check("it was tried twice, and made once", is_paid(demo, placed["id"]))
    demo.check("2 pieces are gone from stock", stock(demo) == 18)
    discarded = timeline.text_of("task_finished", "release_stock").startswith("discarded")
    demo.check("release_stock, meant for errors, was discarded", discarded)


async def report_orders(demo: Demo) -> None:
    title(f"Periodic: the report of the night, which here is sent each {REPORT_EVERY:g} seconds")
    demo.inbox.messages.clear()
    demo.check("the owner has got two reports", await until(lambda: len(demo.inbox.of(OWNER)) >= 2))
    print(f"\n    {demo.inbox.of(OWNER)[-1].get_content().strip()}\n")
    demo.check("they count the paid order", "Paid orders: 1, " in demo.inbox.of(OWNER)[-1].get_content())
    health = (await demo.client.get("/health")).json()
    runs = health["periodic"]["report_orders"]
    demo.check("no run has failed or was skipped", runs["runs"] >= 2 and runs["failed"] == runs["skipped"] == 0)


async def order_with_declined_card(demo: Demo) -> None:
    title("Order that fails: the stock is released, because its task says when='error'")
    response = await demo.client.post("/orders", json=order(DECLINED_CARD))
    timeline = await demo.timeline("POST /orders")
    demo.check("the client got 402 Payment Required", response.status_code == 402)
    demo.check("release_stock ran after the last byte", starts_after(timeline, "release_stock", "response_sent"))
    demo.check("and is the only task of the request", timeline.tasks == {"release_stock"})
    demo.check("the 2 reserved pieces are back in stock", stock(demo) == 18)
    demo.check("there is no order", demo.select("select count(*) from orders") == [(1,)])


async def stop_during_payment(demo: Demo) -> None:
    title("Shutdown: SIGTERM while a payment is going on")
    demo.gateway.hold()
    response = await demo.client.post("/orders", json=order("4242 4242 4242 4242"))
    demo.check("the payment has begun and waits for the gateway", await until(demo.gateway.holding.is_set))
    demo.shop.send_signal(signal.SIGTERM)
    demo.check("the server lets its tasks finish", await until(lambda: log_time(demo.shop.events(), DRAINING)))
    await asyncio.sleep(GRACE_PERIOD + 0.2)  # how long the payment takes: too long for the grace period
    demo.gateway.release()
    demo.check("the process has ended by itself", await until(lambda: demo.shop.exit_code is not None))

    events = demo.shop.events()
    stopped, draining, closed = (log_time(events, text) for text in ("Shutting down", DRAINING, "Database pool closed"))
    print(f"\nMilliseconds since SIGTERM (the grace period is {GRACE_PERIOD} s, and the payment takes longer)")
    for event in events:
        if in_order(stopped, event.at) and event.kind in ("log", "task_finished"):
            print(row(event, stopped, colour=COLOUR))
    print()
    timeline = demo.shop.latest("POST /orders")
    began, ended = (timeline.time_of(kind, CHARGE) for kind in ("task_started", "task_finished"))
    outlived = draining is not None and in_order(draining + GRACE_PERIOD, ended)
    succeeded = timeline.text_of("task_finished", CHARGE) == "succeeded"
    demo.check("the payment had begun before SIGTERM", in_order(began, stopped))
    demo.check("it outlived the grace period, because it is shielded, and succeeded", outlived and succeeded)
    demo.check("it ended BEFORE the database pool closed", in_order(ended, closed))
    demo.check("the order is paid, once, in the database", is_paid(demo, response.json()["id"]))


async def kill_after_response(demo: Demo) -> None:
    title("SIGKILL right after the response: a worker process makes the payment")
    settings = replace(demo.settings, workers=0)  # as in production: the web process makes no payments
    async with start_shop(settings) as shop, httpx.AsyncClient(base_url=shop.url or "", timeout=60) as client:
        response = await client.post("/orders", json=order("4242 4242 4242 4242"))
        shop.send_signal(signal.SIGKILL)
        await until(lambda: shop.exit_code is not None)
    placed = response.json()["id"]
    status = demo.select("select status from orders where id = ?", placed)
    demo.check("the client got 201 Created", response.status_code == 201)
    demo.check("the server was killed before anything was paid", shop.exit_code == -9 and status == [("placed",)])
    async with start_worker(settings) as worker:
        paid = await until(lambda: is_paid(demo, placed))
    demo.check("a worker made the payment: in two tries, once", paid)
    demo.check("the worker ended by itself after SIGTERM", worker.returncode == 0)


# ---- helpers of the steps ----


def order(card: str) -> dict[str, object]:
    """Return an order of two teapots."""
    return {"product_id": 1, "quantity": 2, "email": ANN, "card": card}


def in_order(*moments: float | None) -> bool:
    """Return whether all of these moments came, in this order."""
    happened = [moment for moment in moments if moment is not None]
    return len(happened) == len(moments) and happened == sorted(happened)


def starts_after(timeline: Timeline, task: str, moment: str) -> bool:
    """Return whether the task started, and not before this moment of the request."""
    return in_order(timeline.time_of(moment), timeline.time_of("task_started", task))


def log_time(events: list[Event], text: str) -> float | None:
    """Return when the shop logged this text."""
    return next((event.at for event in events if event.kind == "log" and event.text == text), None)


def stock(demo: Demo) -> object:
    """Return how many teapots there are."""
    return demo.select("select stock from products where id = 1")[0][0]


def is_paid(demo: Demo, order_id: int) -> bool:
    """Return whether database and gateway agree that the order was paid once, in the second try."""
    [(status, receipt)] = demo.select("select status, receipt from orders where id = ?", order_id)
    captured = demo.gateway.captured.copy()  # its threads may add to it meanwhile
    tries = [demo.gateway.tries[number] for number, made in captured.items() if made == receipt]
    return status == "paid" and tries == [2]


async def thumbnail_size(client: httpx.AsyncClient, image_id: str, size: int) -> tuple[int, int]:
    """Return the size of a thumbnail."""
    response = await client.get(f"/images/{image_id}/thumbnails/{size}")
    with Image.open(BytesIO(response.raise_for_status().content)) as picture:
        return picture.size


def draw_teapot() -> bytes:
    """Return a picture of 1200 x 800 pixels, as PNG."""
    picture = Image.new("RGB", (1200, 800), "burlywood")
    draw = ImageDraw.Draw(picture)
    draw.arc((740, 280, 1000, 560), -90, 90, "firebrick", 40)
    draw.polygon([(440, 460), (220, 300), (180, 330), (420, 600)], "firebrick")
    draw.ellipse((380, 240, 840, 680), "firebrick")
    draw.ellipse((570, 190, 650, 260), "black")
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def title(text: str) -> None:
    print(f"\n{coloured(text, '1')}\n{'=' * len(text)}\n")


def coloured(text: str, code: str) -> str:
    """Return the text in a colour, if the output is a terminal."""
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


# ---- running the steps ----

STEPS = (
    sign_up,
    change_product,
    download_catalogue,
    upload_picture,
    rename_picture,
    place_order,
    report_orders,
    order_with_declined_card,
    stop_during_payment,
    kill_after_response,
)


async def run(data: Path) -> int:
    """Run all steps, and return the exit status."""
    began = time.monotonic()
    inbox, gateway = Inbox(), SandboxGateway()
    async with inbox.serve() as smtp:
        with gateway.serve() as gateway_url:
            settings = Settings(
                data=data, smtp=smtp, gateway=gateway_url, grace_period=GRACE_PERIOD, report_every=REPORT_EVERY
            )
            async with start_shop(settings) as shop, httpx.AsyncClient(base_url=shop.url or "", timeout=60) as client:
                print(f"The shop runs at {shop.url}. A mail server and a payment gateway run beside it.")
                print(f"Its page for operators is {shop.url}/_tasks/")
                print(INTRODUCTION)
                demo = Demo(settings, shop, client, inbox, gateway)
                await take_steps(demo)
    happened, expected = sum(demo.checks), len(demo.checks)
    if happened < expected:
        print("\nThe shop has printed:", *shop.output, sep="\n  ")
    print(f"\n{happened} of {expected} checks passed, in {time.monotonic() - began:.1f} seconds.")
    return 0 if happened == expected else 1


async def take_steps(demo: Demo) -> None:
    """Take one step after the other, until one raises."""
    try:
        for step in STEPS:
            await step(demo)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        demo.check("all steps were taken", happened=False)


def main() -> int:
    """Run the demo with the data in a temporary folder."""
    argparse.ArgumentParser(prog="hatch run demo", description=(__doc__ or "").strip()).parse_args()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", line_buffering=True)  # also for a file or a pipe
    with TemporaryDirectory(prefix="shop-") as data:
        return asyncio.run(run(Path(data)))


if __name__ == "__main__":
    sys.exit(main())
