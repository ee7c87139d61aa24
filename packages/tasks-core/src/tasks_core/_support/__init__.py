"""What every other module may use: calls, logging, overrides."""
