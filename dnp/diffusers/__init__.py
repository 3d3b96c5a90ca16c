"""Pipelines of diffusers: as a model of ours, and through their own call."""
