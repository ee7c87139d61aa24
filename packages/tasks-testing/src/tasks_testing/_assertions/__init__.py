"""What a test can assert, and what is checked at its end."""
