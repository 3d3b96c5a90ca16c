"""Which rule for a negative: the benchmark `not`. See `command.py`."""
