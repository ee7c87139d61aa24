"""Every text that a user reads: failing assertions, refused calls, the checks at the end of a test, the timeline."""
