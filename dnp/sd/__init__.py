"""The model: Stable Diffusion's networks, and reading their weights."""

OF_PIPELINE = "pipeline-"  # how the fingerprint of weights begins that a diffusers pipeline held
