"""Pipelines of diffusers: as a model of ours, and through their own call."""


def __getattr__(name: str):
    if name == "guider":  # imported when it is first used, as everything of `dnp`
        from dnp.diffusers.guiders import guider

        return guider
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
