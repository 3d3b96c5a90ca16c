"""A blind study with people: its page, and what their answers say. See `pairs.py` above."""
