"""
A model of one durable call in the engine: deliver, report, deliver again, reap. Every state of it is looked at.

Two worker processes share one row. What may go wrong goes wrong in every combination, up to `MISHAPS` times: a worker
dies, loses the database alone, or together with the other one; the answer to a statement is lost, after which the
statement is sent again or, for a delivery, the call belongs to a worker that does not know of it; an attempt fails.

The model is a breadth-first search and not a random test, because it is small: some twenty thousand states in all, so
that "no state breaks a promise" is a proof for this size, and a counterexample is a shortest one. Left out are time (a
worker is silent for long, or it is not), the error handler of a call that is given up, and cancellation.

`GUARDS` are the conditions in the statements of the engine that the promises rest on. `explore(without=...)` leaves one
out. `test_core_durable_model.py` says which promise breaks then, and finds the text of each guard in the engine.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

MAX_DEATHS = 2
MISHAPS = 3

GUARDS = (
    "deliver: only what waits",
    "report: only of the current delivery",
    "report: success always counts",
    "reap: only what runs",
    "reap: only of the silent",
    "reap: not what runs here",
    "reap: also of workers that are forgotten",
    "reap: also what was lost on its way",
    "reap: not right after an outage",
    "reap: one at a time",
    "reap: not again and again",
)


class Row(NamedTuple):
    """The row of the call."""

    status: str = "waits"
    attempts: int = 0
    """How many deliveries have ended."""
    failures: int = 0
    worker: tuple[int, int] | None = None
    """The number and the generation of the worker process that has it."""
    lost_on_its_way: bool = False
    """Whether the answer that gave it to a worker was lost."""
    locked: bool = False
    deaths: int = 0
    returns: int = 0
    """How many deliveries a worker has not learned of."""

    @property
    def ended(self) -> bool:
        return self.status in ("succeeded", "failed")


class Delivery(NamedTuple):
    """What a worker knows of the call that it has."""

    attempts: int
    phase: str = "runs"
    """`runs`, then `succeeded` or `failed` until that is stored."""
    taken_away: bool = False
    """Whether the worker was silent for so long that the call was given to another one."""


class Worker(NamedTuple):
    """A worker process."""

    generation: int = 0
    alive: bool = True
    silent: bool = False
    in_outage: bool = False
    """Whether it is silent because the database was away, so that it is back as soon as that is."""
    judges: bool = True
    sees: int | None = None
    """The number of deliveries of the row that it has judged, until that is stored."""
    delivery: Delivery | None = None


class State(NamedTuple):
    row: Row = Row()
    workers: tuple[Worker, Worker] = (Worker(), Worker())
    mishaps: int = MISHAPS

    def change(self, number: int, worker: Worker, row: Row | None = None, mishaps: int = 0) -> State:
        workers = tuple(worker if n == number else w for n, w in enumerate(self.workers))
        return State(row or self.row, (workers[0], workers[1]), self.mishaps - mishaps)


class Move(NamedTuple):
    """What happens next."""

    name: str
    after: State
    mishap: bool = False
    breaks: str | None = None
    """The promise that it breaks."""


DEAD_CALLED = "a worker that lives is not called dead"
RUNS_ONCE = "two workers run a call at the same time only if one of them was silent for long"
SUCCESS_STAYS = "a success that was reported is stored, and a stored end never changes"
COUNTED = "each delivery that has ended is counted once: as a failure, as a death, or as not learned of"
NOT_AGAIN = "a call that as many workers died of as may is not delivered again"
ENDS = "a call ends when nothing more goes wrong"
PROMISES = (DEAD_CALLED, RUNS_ONCE, SUCCESS_STAYS, COUNTED, NOT_AGAIN, ENDS)


def moves(state: State, guards: frozenset[str]) -> Iterator[Move]:
    """Yield everything that may happen in *state*."""
    for number, worker in enumerate(state.workers):
        if not worker.alive:
            yield Move(f"{number} is started", state.change(number, Worker(worker.generation + 1, judges=False)))
            if state.row.worker == (number, worker.generation):
                row = state.row._replace(worker=None)
                yield Move(f"{number} is forgotten", state._replace(row=row))
            continue
        yield from _mishaps(state, number, worker)
        yield from _run(state, number, worker)
        if worker.silent:
            back = worker._replace(silent=False, in_outage=False, judges=False)
            yield Move(f"{number} is back", state.change(number, back))
        else:
            if not state.row.locked:
                yield from _deliver(state, number, worker, guards)
                yield from _report(state, number, worker, guards)
            yield from _reap(state, number, worker, guards)


def _mishaps(state: State, number: int, worker: Worker) -> Iterator[Move]:
    if not state.mishaps:
        return
    unlocked = state.row._replace(locked=state.row.locked and worker.sees is None)
    dead = Worker(worker.generation, alive=False)
    yield Move(f"{number} dies", state.change(number, dead, unlocked, 1), mishap=True)
    if not worker.silent:
        silent = worker._replace(silent=True, sees=None)
        yield Move(f"{number} loses the database", state.change(number, silent, unlocked, 1), mishap=True)
    if number == 0 and not any(w.silent for w in state.workers):
        first, second = (w._replace(silent=True, in_outage=True, sees=None) if w.alive else w for w in state.workers)
        after = State(state.row._replace(locked=False), (first, second), state.mishaps - 1)
        yield Move("the database is away", after, mishap=True)


def _run(state: State, number: int, worker: Worker) -> Iterator[Move]:
    delivery = worker.delivery
    if delivery is None or delivery.phase != "runs":
        return
    for phase, cost in (("succeeded", 0), ("failed", 1)):
        if state.mishaps >= cost:
            ended = worker._replace(delivery=delivery._replace(phase=phase))
            yield Move(f"{number}: the attempt {phase}", state.change(number, ended, None, cost), mishap=bool(cost))


def _deliver(state: State, number: int, worker: Worker, guards: frozenset[str]) -> Iterator[Move]:
    row = state.row
    if row.ended or worker.delivery is not None or worker.sees is not None:
        return
    if "deliver: only what waits" in guards and row.status != "waits":
        return
    given = row._replace(status="runs", worker=(number, worker.generation), lost_on_its_way=False)
    has = worker._replace(delivery=Delivery(row.attempts))
    yield Move(f"{number} takes it", state.change(number, has, given))
    if state.mishaps:
        lost = given._replace(lost_on_its_way=True)
        yield Move(f"{number} is given it, and does not learn it", state.change(number, worker, lost, 1), mishap=True)


def _report(state: State, number: int, worker: Worker, guards: frozenset[str]) -> Iterator[Move]:
    row, delivery = state.row, worker.delivery
    if delivery is None or delivery.phase == "runs":
        return
    succeeded = delivery.phase == "succeeded"
    stores = row.status == "runs" and row.attempts == delivery.attempts
    stores |= "report: only of the current delivery" not in guards
    stores |= "report: success always counts" in guards and succeeded and not row.ended
    after = row
    if stores:
        status, failures = ("succeeded", 0) if succeeded else ("waits", 1)
        attempts = row.attempts + (row.status == "runs")
        after = row._replace(status=status, attempts=attempts, failures=row.failures + failures, worker=None)
    is_lost = (row.ended and after.status != row.status) or (succeeded and not after.ended)
    breaks = SUCCESS_STAYS if is_lost else None
    name = f"{number} reports that it {delivery.phase}"
    yield Move(name, state.change(number, worker._replace(delivery=None), after), breaks=breaks)
    if state.mishaps:
        yield Move(f"{name}, without an answer", state.change(number, worker, after, 1), mishap=True, breaks=breaks)


def _reap(state: State, number: int, worker: Worker, guards: frozenset[str]) -> Iterator[Move]:
    row = state.row
    if worker.sees is not None:
        yield _store_judgement(state, number, worker, guards)
        return
    if not worker.judges and not any(w.silent and w.in_outage for w in state.workers):
        yield Move(f"{number} judges again", state.change(number, worker._replace(judges=True)))
    if row.locked or row.ended:
        return
    if "reap: only what runs" in guards and row.status != "runs":
        return
    own = row.worker == (number, worker.generation)
    runs_here = worker.delivery is not None and worker.delivery.attempts == row.attempts
    if "reap: not what runs here" in guards and runs_here:
        return
    may = worker.judges or "reap: not right after an outage" not in guards
    stalled = may and _is_silent(state, guards)
    # A worker that has lost an answer leaves, and others of its process take its place: all that it has is looked at.
    stalled |= own and "reap: also what was lost on its way" in guards and (row.lost_on_its_way or runs_here)
    if stalled:
        seen = worker._replace(sees=row.attempts)
        locked = row._replace(locked="reap: one at a time" in guards)
        breaks = DEAD_CALLED if _lives(state) else None
        yield Move(f"{number} judges the call", state.change(number, seen, locked), breaks=breaks)


def _is_silent(state: State, guards: frozenset[str]) -> bool:
    """Return whether the worker that the row names is silent, or not known any more."""
    if state.row.worker is None:
        return "reap: also of workers that are forgotten" in guards
    if "reap: only of the silent" not in guards:
        return True
    number, generation = state.row.worker
    worker = state.workers[number]
    return worker.generation != generation or not worker.alive or worker.silent


def _lives(state: State) -> bool:
    """Return whether the worker that the row names has the call, and was not silent for its own reasons."""
    if state.row.worker is None:
        return False
    number, generation = state.row.worker
    worker = state.workers[number]
    has = worker.delivery is not None and worker.delivery.attempts == state.row.attempts
    return worker.generation == generation and worker.alive and has and (not worker.silent or worker.in_outage)


def _store_judgement(state: State, number: int, worker: Worker, guards: frozenset[str]) -> Move:
    row = state.row
    breaks = RUNS_ONCE if row.attempts != worker.sees or row.status != "runs" else None
    after = state.change(number, worker._replace(sees=None), row._replace(locked=False))
    if row.ended:
        return Move(f"{number} stores the judgement", after, breaks=breaks)
    deaths, returns = (row.deaths, row.returns + 1) if row.lost_on_its_way else (row.deaths + 1, row.returns)
    is_failed = deaths >= MAX_DEATHS and "reap: not again and again" in guards
    after_row = row._replace(
        status="failed" if is_failed else "waits",
        attempts=row.attempts + 1,
        worker=None,
        locked=False,
        deaths=deaths,
        returns=returns,
    )
    first, second = (_lose(w, row.attempts) for w in after.workers)
    return Move(f"{number} stores the judgement", State(after_row, (first, second), state.mishaps), breaks=breaks)


def _lose(worker: Worker, attempts: int) -> Worker:
    if worker.delivery is None or worker.delivery.attempts != attempts:
        return worker
    return worker._replace(delivery=worker.delivery._replace(taken_away=True))


def broken_in(state: State) -> str | None:
    """Return the promise that *state* breaks, if it breaks one."""
    row = state.row
    running = [w for w in state.workers if w.delivery and w.delivery.phase == "runs" and not w.delivery.taken_away]
    if len(running) > 1 or (running and row.status == "waits"):
        return RUNS_ONCE
    if not row.ended and row.attempts != row.failures + row.returns + row.deaths:
        return COUNTED
    if row.status == "waits" and row.deaths >= MAX_DEATHS:
        return NOT_AGAIN
    return None


class Result(NamedTuple):
    """What a search has found."""

    states: int
    broken: str | None = None
    trace: tuple[str, ...] = ()


def explore(without: str | None = None) -> Result:
    """Look at every state, or at those up to the first that breaks a promise."""
    guards = frozenset(GUARDS) - {without}
    start = State()
    found: dict[State, tuple[State, str] | None] = {start: None}
    before: dict[State, list[State]] = {}
    waiting = deque([start])

    def trace(state: State, *last: str) -> tuple[str, ...]:
        names = list(last)
        while (step := found[state]) is not None:
            state, name = step
            names.insert(0, name)
        return tuple(names)

    while waiting:
        state = waiting.popleft()
        for move in moves(state, guards):
            broken = move.breaks or broken_in(move.after)
            if broken is not None:
                return Result(len(found), broken, trace(state, move.name))
            if not move.mishap:
                before.setdefault(move.after, []).append(state)
            if move.after not in found:
                found[move.after] = (state, move.name)
                waiting.append(move.after)
    stuck = _cannot_end(list(found), before)
    if stuck is not None:
        return Result(len(found), ENDS, trace(stuck))
    return Result(len(found))


def _cannot_end(states: list[State], before: dict[State, list[State]]) -> State | None:
    """Return the first state from which the call cannot end unless something else goes wrong."""
    can_end = {state for state in states if state.row.ended}
    waiting = deque(can_end)
    while waiting:
        for earlier in before.get(waiting.popleft(), ()):
            if earlier not in can_end:
                can_end.add(earlier)
                waiting.append(earlier)
    return next((state for state in states if state not in can_end), None)
