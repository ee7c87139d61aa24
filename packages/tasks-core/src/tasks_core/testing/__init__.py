"""
What tests and testing libraries need of tasks-core, and applications do not.

```python
from tasks_core.testing import override_clock

with override_clock(my_clock):
    ...
```
"""

from tasks_core._clock import MonotonicClock, override_clock
from tasks_core._durable.function import durable_function, periodic_functions
from tasks_core._durable.host import override_engine
from tasks_core._durable.memory import MemoryCompletion
from tasks_core._durable.periodic import next_occurrence, occurrence_call
from tasks_core._service import service_clock
from tasks_core._support.call import function_name
from tasks_core._task import event_loop_runs, release_task

__all__ = (
    "MemoryCompletion",
    "MonotonicClock",
    "durable_function",
    "event_loop_runs",
    "function_name",
    "next_occurrence",
    "occurrence_call",
    "override_clock",
    "override_engine",
    "periodic_functions",
    "release_task",
    "service_clock",
)
