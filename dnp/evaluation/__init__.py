"""Experiments: benchmarks, metrics, a runner that can be stopped, tables. See `__main__.py`."""
