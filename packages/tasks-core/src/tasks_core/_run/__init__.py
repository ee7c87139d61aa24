"""
The machinery that takes a task from `schedule()` to its terminal state.

```text
schedule() ─→ Runner.accept() ─→ phase opens ─→ Runner.ready() ─→ Limits.admit() ─→ Runner.start()
                 │ Ledger.enter()                  │ delay, limiter    │ queued          │ spawns
                 │                                 │ held              │                 ↓
                 │                                 ↓                   ↓              Attempts.run()
                 │                              Runner._wait_...    released by          │
                 │                                 ↑                another task         ├─ succeeded, failed
                 │                                 └── Runner.run_again() ←── Retry ─────┤
                 ↓                                                                       ↓
              Runner.stop() ─ cancel(), shutdown ──────────────────────────────→ Ledger.settle()
```

- `runner.py`: the transitions of a task, and its cancellation. Start reading there.
- `attempt.py`: one attempt, and what its end means; `threads.py`: the threads that plain functions run in.
- `limits.py`: which task may start; it returns the tasks that may start, and the runner starts them.
- `ledger.py`: which tasks have not ended, the totals of those that have, and the only way into a terminal state.
- `following.py`: what tasks emit, and the tasks that are kept for followers.
- `shutdown.py`: the end of a scheduler, in five steps.
- `extension.py`: what a room above this one may open and close together with a scheduler.
"""
