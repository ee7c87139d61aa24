"""The machinery that takes a task from `schedule()` to its terminal state."""
