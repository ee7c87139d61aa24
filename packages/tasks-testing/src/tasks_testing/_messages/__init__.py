"""The texts that a user reads about a recording: failing assertions, waits, findings after a test, the timeline."""
