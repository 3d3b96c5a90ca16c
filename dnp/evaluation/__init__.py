"""Experiments: benchmarks, metrics, a runner that can be stopped, tables. See `__main__.py`.

The benchmark `not`, the study with people, and speed have rooms of their own."""
