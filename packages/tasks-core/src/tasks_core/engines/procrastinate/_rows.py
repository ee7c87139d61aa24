"""How a call is stored in `args` of its row, and read from there by a worker that may be older or newer."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from tasks_core import RetryPolicy
from tasks_core.engines import (
    DEFAULT_RETRY,
    AttemptRecord,
    CallLabel,
    DurableCall,
    DurableState,
    DurableStatus,
    Json,
    StoredResult,
)

from ._options import WorkOptions

_DEFAULT = object()

STATES = {
    "todo": DurableState.PENDING,
    "doing": DurableState.RUNNING,
    "succeeded": DurableState.SUCCEEDED,
    "failed": DurableState.FAILED,
    "cancelled": DurableState.CANCELLED,
    "aborting": DurableState.RUNNING,
    "aborted": DurableState.CANCELLED,
}


def is_job_id(receipt_id: str) -> bool:
    """Return whether the text is a number that fits into the column `id`."""
    return receipt_id.isascii() and receipt_id.isdecimal() and len(receipt_id) < 19


def stored_calls(calls: Sequence[DurableCall], options: WorkOptions) -> str:
    """Return the JSON that the statements of a submit take."""
    return json.dumps(
        [
            {
                "args": _stored(call),
                "queue": options.stored_queue(call.queue),
                "priority": call.priority,
                "delay": _delay(call),
                "dedup": call.dedup,
                "lock": None if call.key is None else _lock(call, options),
                "on_conflict": call.on_conflict,
            }
            for call in calls
        ]
    )


def _stored(call: DurableCall) -> dict[str, Any]:
    stored: dict[str, Any] = {"name": call.name, "args": dict(call.args), "key": call.idempotency_key}
    if call.retry != DEFAULT_RETRY:  # which most calls have: it costs no row anything
        stored["retry"] = None if call.retry is None else call.retry.as_json()
    if call.headers:
        stored["headers"] = dict(call.headers)
    return stored


def _lock(call: DurableCall, options: WorkOptions) -> str:
    """Return what a key is called among all locks of procrastinate; as JSON, in which no two of them are the same."""
    return json.dumps([options.stored_queue(call.queue), call.name, call.key], ensure_ascii=False)


def _delay(call: DurableCall) -> float | None:
    """Return seconds, which the database adds to its own time: the clock of this process may be wrong."""
    return None if call.not_before is None else call.not_before - time.time()


@dataclass(frozen=True, slots=True)
class History:
    """What a row remembers about the earlier deliveries of its call."""

    failures: int = 0
    """Attempts that ended in an exception and were followed by another attempt."""
    returns: int = 0
    """Deliveries that were put back, so that they are no attempts."""
    deaths: tuple[float, ...] = ()
    """When a worker died that ran the call, in seconds since the epoch by the clock of the database."""
    misfits: int = 0
    """How often a worker did not understand the call."""
    misfit_since: float | None = None
    """When a worker did not understand the call for the first time, or did not know its function."""
    given_up: str | None = None
    """Why the call is not run any more; the next worker reports it to the error handler of the function."""

    errors: tuple[AttemptRecord, ...] = ()
    """The attempts that have failed, as far as they are kept."""

    def as_json(self, result: StoredResult | None = None, reason: str | None = None) -> str:
        """Return what takes the place of the history in the row, and the result of the task, or why it is cancelled."""
        fields = ("failures", "returns", "deaths", "misfits", "misfit_since", "given_up")
        note: dict[str, Any] = {name: value for name in fields if (value := getattr(self, name))}
        if self.errors:
            note["errors"] = [record.as_json() for record in self.errors]
        if result is not None:
            note["result"] = {"value": result.value} if result.problem is None else {"problem": result.problem}
        if reason is not None:
            note["reason"] = reason
        return json.dumps(note)

    def after_failure(self) -> History:
        """Return what remains when the call has failed for good: an operator who retries it has it begin again."""
        # The retry of procrastinate adds one to `attempts`, as if there had been a delivery.
        return History(failures=self.failures, returns=self.returns + 1, given_up=self.given_up, errors=self.errors)

    def when_understood(self) -> History:
        """Return what remains when a worker has understood the call, and is to have it again."""
        deaths = () if self.given_up else self.deaths  # its error handler asked for another attempt
        return replace(self, misfits=0, misfit_since=None, deaths=deaths, given_up=None)


@dataclass(frozen=True, slots=True)
class Row:
    """A call that a worker has claimed."""

    id: int
    attempts: int
    """Deliveries before this one, however they ended."""
    claimed_at: float
    """Seconds since the epoch by the clock of the database."""
    name: str
    key: str
    queue: str
    """Its name in the database."""
    call_queue: str
    """Its name in the call."""
    priority: int
    fields: dict[str, Any]
    history: History
    read_at: float = field(default_factory=monotonic)
    """When this process read it, by the clock of this process."""

    @property
    def attempt(self) -> int:
        return attempt_of(self.attempts, self.history.returns)

    @property
    def label(self) -> CallLabel:
        """What log lines call it."""
        return CallLabel(self.name, self.key, str(self.id), self.call_queue, self.attempt)

    @classmethod
    def read(
        cls,
        options: WorkOptions,
        id_: int,
        attempts: int,
        fields: dict[str, Any],
        now: float,
        queue: str,
        priority: int,
    ) -> Row:
        """Read what a claim returns. Nothing in *fields* makes it fail, because an operator may have written it."""
        deaths = fields.get("deaths")
        since = fields.get("misfit_since")
        given_up = fields.get("given_up")
        history = History(
            failures=_count(fields.get("failures")),
            returns=_count(fields.get("returns")),
            deaths=tuple(t for t in deaths if isinstance(t, float | int)) if isinstance(deaths, list) else (),
            misfits=_count(fields.get("misfits")),
            misfit_since=since if isinstance(since, float | int) else None,
            given_up=given_up if isinstance(given_up, str) else None,
            errors=read_errors(fields.get("errors")),
        )
        name, key = str(fields.get("name")), str(fields.get("key"))
        return cls(id_, attempts, now, name, key, queue, options.queue_of(queue), priority, fields, history)

    def failed(self, error: BaseException) -> History:
        """Return the history with this attempt, which raised *error*."""
        ended = self.claimed_at + monotonic() - self.read_at
        record = AttemptRecord.of(error, attempt=self.attempt, began=self.claimed_at, ended=ended)
        return replace(self.history, errors=record.added_to(self.history.errors))

    def call(self) -> DurableCall:
        """
        Return the call.

        Raises:
            Exception: the row has something else in it, of whatever kind.
        """
        retry, headers = self.fields.get("retry", _DEFAULT), self.fields.get("headers") or {}
        return DurableCall(
            name=self.name,
            args=dict(self.fields["args"].items()),
            idempotency_key=self.fields["key"],
            retry=DEFAULT_RETRY if retry is _DEFAULT else None if retry is None else RetryPolicy.from_json(retry),
            headers=dict(headers.items()),
            queue=self.call_queue,
            priority=self.priority,
        )


def read_result(stored: Any) -> StoredResult | None:
    """Read the result of a task from its row."""
    if not isinstance(stored, dict):
        return None
    problem = stored.get("problem")
    return StoredResult(stored.get("value"), None if problem is None else str(problem))


def read_errors(stored: Any) -> tuple[AttemptRecord, ...]:
    """Read the attempts that have failed from a row."""
    records = map(AttemptRecord.from_json, stored if isinstance(stored, list) else ())
    return tuple(record for record in records if record is not None)


def read_status(
    state: str, attempts: int, progress: Json, reason: str | None, errors: Any, returns: object, given_up: str | None
) -> DurableStatus:
    """Read how far a task is from its row."""
    known, records = STATES[state], read_errors(errors)
    ended = ended_attempts(known, attempts, returns, given_up, records[-1].attempt if records else None)
    return DurableStatus(known, ended, progress, read_reason(known, given_up, reason), records)


def read_reason(state: DurableState, given_up: object, reason: object) -> str | None:
    """Read why a task has failed without an attempt that failed, or why it has cancelled itself."""
    why = {DurableState.FAILED: given_up, DurableState.CANCELLED: reason}.get(state)
    return why if isinstance(why, str) else None


def ended_attempts(state: DurableState, attempts: int, returns: object, given_up: object, last: object) -> int:
    """Return how many attempts have ended of so many deliveries; *last* is the number of the last that failed."""
    if state is DurableState.FAILED and given_up is None and isinstance(last, int):
        return last  # the failure counts as a return, too: see `History.after_failure()`
    return max(0, attempts - _count(returns))


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value < 1_000_000 else 0


def attempt_of(attempts: int, returns: Any) -> int:
    """Return the number of the attempt that follows so many deliveries, of which *returns* were none."""
    return max(1, attempts - _count(returns) + 1)
