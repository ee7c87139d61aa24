"""What the pytest plugin imports when a test is recorded; the plugin itself is `pytest_tasks_testing`."""
