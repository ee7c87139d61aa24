"""The settings, from environment variables."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tasks_core import cron, every
from tasks_core.triggers import Trigger


@dataclass(frozen=True)
class Settings:
    """Where the shop stores its data, and the addresses of other systems."""

    data: Path = Path(".cache/shop")
    """`SHOP_DATA`: the folder for the database, the pictures and the other files."""
    smtp: str | None = None
    """`SHOP_SMTP`: `host:port` of a mail server. Unset: one that stores the messages, shown at `/inbox`."""
    gateway: str | None = None
    """`SHOP_GATEWAY`: URL of the payment gateway. Unset: one that moves no money."""
    durable: bool = True
    """`SHOP_DURABLE=0`: payments are tasks in memory, for a shop without PostgreSQL; see `payments.py`."""
    workers: int = 4
    """`SHOP_WORKERS`: how many payments this process runs at once; with 0, a worker process runs them."""
    report_every: float | None = None
    """`SHOP_REPORT_EVERY`: seconds between two reports. Unset: each night at three."""
    grace_period: float = 10.0
    """`SHOP_GRACE_PERIOD`: seconds that tasks may take at shutdown. Shielded tasks have no bound."""

    @classmethod
    def from_environment(cls) -> Settings:
        """Return the settings of this process, with defaults for what is not set."""
        variables = os.environ
        return cls(
            data=Path(variables.get("SHOP_DATA", cls.data)),
            smtp=variables.get("SHOP_SMTP"),
            gateway=variables.get("SHOP_GATEWAY"),
            durable=variables.get("SHOP_DURABLE") != "0",
            workers=int(variables.get("SHOP_WORKERS", cls.workers)),
            report_every=float(variables["SHOP_REPORT_EVERY"]) if "SHOP_REPORT_EVERY" in variables else None,
            grace_period=float(variables.get("SHOP_GRACE_PERIOD", cls.grace_period)),
        )

    def as_environment(self) -> dict[str, str]:
        """Return the variables that make another process have the same settings."""
        variables = {
            "SHOP_DATA": str(self.data),
            "SHOP_DURABLE": str(int(self.durable)),
            "SHOP_WORKERS": str(self.workers),
            "SHOP_GRACE_PERIOD": str(self.grace_period),
        }
        if self.report_every is not None:
            variables["SHOP_REPORT_EVERY"] = str(self.report_every)
        if self.smtp is not None:
            variables["SHOP_SMTP"] = self.smtp
        if self.gateway is not None:
            variables["SHOP_GATEWAY"] = self.gateway
        return variables

    @property
    def report_when(self) -> Trigger:
        """When the report of the orders is sent."""
        if self.report_every is not None:
            return every(seconds=self.report_every)
        return cron("0 3 * * *", timezone="Europe/Berlin")

    @property
    def timeline(self) -> Path:
        """The file in which the times of requests and tasks are recorded."""
        return self.data / "timeline.jsonl"
