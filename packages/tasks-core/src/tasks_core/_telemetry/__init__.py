"""
Spans and metrics of the tasks of a scheduler, for OpenTelemetry. Durable tasks have more: `_durable/telemetry.py`.

Only `config` may be imported without OpenTelemetry.
"""
