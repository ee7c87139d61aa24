"""
Durable tasks on PostgreSQL, in the tables of procrastinate: `pip install tasks-core[procrastinate]`.

```python
engine = ProcrastinateEngine("postgresql://app@db/app")
engine = ProcrastinateEngine.embedded("./tasks-db")  # on a laptop, with tasks-core[embedded]
```

Start reading at `_engine.py` (what the scheduler and the worker call) and `_sql.py` (what is asked of the database).
Imports go one way:

```text
_engine
_trio | _operate
_work
_housekeeping
_events | _liveness
_reports
_connection | _rows | _schema | _slots | _transaction | _waits | _embedded
_errors | _options | _sql
```
"""

from ._engine import ProcrastinateEngine

__all__ = ("ProcrastinateEngine",)
