"""dnp: diffusion-negative sampling from scratch. Start at `dnp/guidance.py`."""
