"""Durable tasks: functions that one process calls and another process runs."""
