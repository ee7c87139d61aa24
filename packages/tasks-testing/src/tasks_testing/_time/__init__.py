"""Waiting: for a condition on any thread or event loop, and for virtual time."""
