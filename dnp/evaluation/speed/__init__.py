"""Times and memory, ours and of diffusers. See `benchmark.py` above."""
