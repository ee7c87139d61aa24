"""
When a periodic task runs: `every()`, `cron()`, and the protocol for a trigger of your own.

`tasks_core` offers `every` and `cron` as well; `Trigger` is for those who write one.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Protocol

from ._support.rules import check_fields, is_finite_seconds, must_be
from .exceptions import InvalidConfigError

__all__ = ("Cron", "Every", "Trigger", "cron", "every")


class Trigger(Protocol):
    """
    Says when a periodic task is due. All moments are aware `datetime` objects.

    ```python
    class FirstOfTheMonth:
        jitter = 0.0

        def next_after(self, previous: datetime | None, now: datetime) -> datetime | None:
            return (now.replace(day=1, hour=0, minute=0, second=0, microsecond=0) + timedelta(days=32)).replace(day=1)
    ```
    """

    @property
    def jitter(self) -> float:
        """Seconds by which each run is late at most, by chance; they do not change what `next_after()` returns."""
        ...

    def next_after(self, previous: datetime | None, now: datetime) -> datetime | None:
        """
        Return the first occurrence after *now*; `None` if there is none, which ends the periodic task.

        Args:
            previous: The occurrence before, or `None` when the periodic task starts; the first may be *now* itself.

            now: The present, in UTC.
        """
        ...


def _is_first(value: object) -> bool:
    return value is None or is_finite_seconds(value) or (isinstance(value, datetime) and value.tzinfo is not None)


@dataclass(frozen=True, slots=True)
class Every:
    """What `every()` returns: an interval."""

    seconds: float = field(
        metadata=must_be(
            lambda v: is_finite_seconds(v) and 0 < v < timedelta.max.total_seconds(),
            "an interval of more than 0 seconds, as in every(minutes=10)",
        )
    )
    jitter: float = field(default=0.0, metadata=must_be(is_finite_seconds, "a number of seconds, 0 or more"))
    immediately: bool = field(
        default=False, metadata=must_be(lambda v: isinstance(v, bool), "True or False, as in immediately=True")
    )
    first: float | datetime | None = field(
        default=None,
        metadata=must_be(
            _is_first, "a number of seconds, 0 or more, or a datetime with a time zone, as in first=datetime.now(UTC)"
        ),
    )

    def __post_init__(self) -> None:  # noqa: D105
        check_fields(self, "every(")
        if self.jitter >= self.seconds:
            raise InvalidConfigError(
                f"every(jitter={self.jitter!r}): jitter must be less than the interval of {self.seconds:g} seconds"
            )
        if self.immediately and self.first is not None:
            raise InvalidConfigError(
                "every(immediately=True, first=...): write one of them, since both set the first run"
            )

    def next_after(self, previous: datetime | None, now: datetime) -> datetime | None:
        """Return the next multiple of the interval after *previous*, so that a late run does not move the others."""
        if previous is None:
            if isinstance(self.first, datetime):
                return self.first if self.first >= now else self.next_after(self.first, now)
            wait = self.first if self.first is not None else 0.0 if self.immediately else self.seconds
            return now + timedelta(seconds=wait)
        number = max(1, math.floor((now - previous).total_seconds() / self.seconds) + 1)
        return previous + timedelta(seconds=number * self.seconds)


def every(
    *,
    seconds: float = 0,
    minutes: float = 0,
    hours: float = 0,
    days: float = 0,
    jitter: float = 0.0,
    immediately: bool = False,
    first: float | datetime | None = None,
) -> Every:
    """
    Make a trigger for an interval: `every(minutes=10)`. The parts are added.

    The interval is measured by the monotonic clock, so that changes of the wall clock and daylight saving time do not
    shorten or stretch it. A day is 24 hours.

    Args:
        seconds: Seconds of the interval.

        minutes: Minutes of the interval.

        hours: Hours of the interval.

        days: Days of the interval.

        jitter: Seconds by which each run is late at most, by chance, so that several processes do not run at the same
            moment. The next runs are not moved by it.

        immediately: Whether the first run is at the start. Otherwise it is one interval later.

        first: When the first run is: seconds after the start, or a moment, from which the others are counted.
            `scheduler.periodic(...).schedule()` refuses a moment that is past. A registry and `@durable(periodic=)` do
            not, because what they have is written once, and read by each process that starts later.

    Raises:
        InvalidConfigError: an argument has a value that it cannot have, or the interval is 0.
    """
    for name, part in (("seconds", seconds), ("minutes", minutes), ("hours", hours), ("days", days)):
        if not is_finite_seconds(part):
            raise InvalidConfigError(f"every({name}={part!r}): {name} must be a number, 0 or more")
    return Every(seconds + 60 * minutes + 3600 * hours + 86400 * days, jitter, immediately, first)


@dataclass(frozen=True, slots=True)
class Cron:
    """What `cron()` returns: moments of the wall clock in a time zone."""

    expression: str
    timezone: tzinfo
    jitter: float = field(default=0.0)

    def next_after(self, previous: datetime | None, now: datetime) -> datetime | None:
        """Return the first moment after *now* that the expression names."""
        found: datetime | None = next(_iterate(self.expression, now.astimezone(self.timezone)), None)
        return None if found is None else found.astimezone(UTC)


def cron(expression: str, *, timezone: str | tzinfo = "UTC", jitter: float = 0.0) -> Cron:
    """
    Make a trigger for moments of the wall clock: `cron("0 3 * * *", timezone="Europe/Berlin")`.

    Daylight saving time is handled as by the cron of Debian. A moment that does not exist when clocks go forward is
    due directly after the gap. A moment that exists twice when clocks go back is due once, unless the expression has a
    `*` in the field of hours or minutes. Needs cronsim: `pip install 'tasks-core[cron]'`.

    Args:
        expression: The five fields of cron: minute, hour, day of the month, month, day of the week. A sixth field, in
            front of them, is that of seconds.

        timezone: A name such as `"Europe/Berlin"`, or a `tzinfo`.

        jitter: As in `every()`.

    Raises:
        InvalidConfigError: the expression or the time zone does not exist, or no day matches the expression.
        ModuleNotFoundError: cronsim is not installed.
    """
    if not isinstance(expression, str):
        raise InvalidConfigError(f"cron({expression!r}): expression must be a text, as in cron('0 3 * * *')")
    if not is_finite_seconds(jitter):
        raise InvalidConfigError(f"cron(jitter={jitter!r}): jitter must be a number of seconds, 0 or more")
    zone = _zone(timezone)
    try:
        _iterate(expression, datetime.now(zone))
    except ValueError as error:
        raise InvalidConfigError(
            f"cron({expression!r}): {error}. The fields are minute, hour, day of the month, month and day of the week, "
            "as in cron('0 3 * * *') for each day at 3:00"
        ) from None
    return Cron(expression, zone, jitter)


def _zone(timezone: object) -> tzinfo:
    if isinstance(timezone, tzinfo):
        return timezone
    # Not imported with this module, because reading the configuration of time zones takes milliseconds.
    zoneinfo = importlib.import_module("zoneinfo")
    try:
        if isinstance(timezone, str):
            zone: tzinfo = zoneinfo.ZoneInfo(timezone)
            return zone
    except (zoneinfo.ZoneInfoNotFoundError, ValueError):
        pass
    raise InvalidConfigError(
        f"cron(timezone={timezone!r}): there is no such time zone. Write a name such as timezone='Europe/Berlin'"
    )


def _iterate(expression: str, after: datetime) -> Any:
    try:
        # Not imported with this module, because tasks-core needs anyio only.
        cronsim = importlib.import_module("cronsim")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("cron() needs cronsim: pip install 'tasks-core[cron]'", name=error.name) from None
    try:
        return cronsim.CronSim(expression, after)
    except cronsim.CronSimError as error:
        raise ValueError(str(error)) from None
