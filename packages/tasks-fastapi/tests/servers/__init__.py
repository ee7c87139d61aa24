"""Real servers in processes of their own: what runs in them, how they are started, and the log that all write to."""
