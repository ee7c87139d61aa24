"""The application: `uvicorn --app-dir docs/examples shop.app:app`, or `hatch run serve`."""

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import anyio
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import PlainTextResponse, RedirectResponse
from fastapi_offline import FastAPIOffline
from tasks_fastapi import add_tasks, get_scheduler
from tasks_fastapi.panel import tasks_panel

from . import images, orders, payments, products, users
from .database import open_database
from .dependencies import CurrentShop
from .gateway import open_gateway
from .mail import Mailer
from .reports import report_orders
from .resources import Shop
from .sandbox import Inbox, SandboxGateway
from .search import SearchIndex
from .settings import Settings
from .timeline import read_events, record, render, timelines

LOGGERS = ("shop", "tasks_core", "tasks_fastapi")

DESCRIPTION = """
An example of background tasks. Place an order, then open [/timeline](/timeline), which shows when each task of each
request started and ended. E-mails are in [/inbox](/inbox), unless there is a real mail server, and
[/_tasks/](/_tasks/) is the page for operators.
"""


def create_app(settings: Settings) -> FastAPI:
    """Return the application. Its lifespan opens the resources."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        log_to_stderr()
        for folder in ("images", "thumbnails"):
            await anyio.Path(settings.data / folder).mkdir(parents=True, exist_ok=True)
        async with AsyncExitStack() as stack:
            stack.enter_context(record(settings.timeline, loggers=(*LOGGERS, "uvicorn.error")))
            shop = await open_shop(settings, stack)
            payments.share(shop.database, shop.gateway)
            stack.enter_context(shop.shared())
            get_scheduler(app).periodic(settings.report_when).task(timeout=60).schedule(report_orders)
            yield {"shop": shop}

    # FastAPI() with a page /docs that loads nothing from the internet.
    app = FastAPIOffline(title="Shop", description=DESCRIPTION, lifespan=lifespan)
    engine = payments.engine if settings.durable else None
    workers = settings.workers if settings.durable else 0
    add_tasks(app, grace_period=settings.grace_period, engine=engine, worker_concurrency=workers or None)
    for module in (users, products, images, orders):
        app.include_router(module.router)
    # In an application that can be reached from elsewhere: dependencies=[Depends(admin)] in place of allow_anonymous.
    app.include_router(tasks_panel(allow_anonymous=True), prefix="/_tasks")

    @app.get("/", include_in_schema=False)
    async def go_to_docs() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.get("/inbox", tags=["looking inside"], summary="Show the e-mails", response_class=PlainTextResponse)
    async def read_inbox(shop: CurrentShop) -> str:
        """Every e-mail since the start of the shop; 404 if it sends to a real mail server."""
        if shop.inbox is None:
            raise HTTPException(404, "The e-mails are where SHOP_SMTP sends them")
        return "\n".join(
            f"To: {message['To']}\nSubject: {message['Subject']}\n\n{message.get_content()}"
            for message in shop.inbox.messages
        )

    @app.get("/timeline", tags=["looking inside"], summary="Show when tasks ran", response_class=PlainTextResponse)
    def read_timeline() -> str:
        """The latest requests that had tasks, with the milliseconds since the request arrived."""
        with_tasks = [timeline for timeline in timelines(read_events(settings.timeline)) if timeline.tasks]
        return "\n\n".join(render(timeline) for timeline in with_tasks[-20:][::-1])

    @app.get("/health", tags=["looking inside"], summary="Show how many tasks there are")
    async def read_health(request: Request) -> dict[str, Any]:
        """The numbers of the scheduler: running, pending, ended."""
        return get_scheduler(request.app).statistics().as_dict()

    return app


async def open_shop(settings: Settings, stack: AsyncExitStack) -> Shop:
    """Open all resources of the shop; the stack closes them, last opened first."""
    smtp, inbox = settings.smtp, None
    if smtp is None:
        inbox = Inbox()
        smtp = await stack.enter_async_context(inbox.serve())
    gateway_url = settings.gateway or stack.enter_context(SandboxGateway().serve())
    return Shop(
        data=settings.data,
        database=await stack.enter_async_context(open_database(settings.data / "shop.db")),
        mailer=Mailer.at(smtp),
        gateway=await stack.enter_async_context(open_gateway(gateway_url)),
        search_index=SearchIndex(settings.data / "search.db"),
        product_cache={},
        picture_limiter=anyio.CapacityLimiter(2),
        durable=settings.durable,
        inbox=inbox,
    )


def log_to_stderr() -> None:
    """Show the log of the shop and its tasks, because uvicorn configures its own loggers only."""
    handler = logging.StreamHandler()
    handler.setLevel(logging.INFO)
    logging.basicConfig(format="%(levelname)s:     %(name)s: %(message)s", handlers=[handler])
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG)


app = create_app(Settings.from_environment())
