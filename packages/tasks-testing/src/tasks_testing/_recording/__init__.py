"""What is recorded: requests, tasks, events, and which recording each of them belongs to."""
