"""What diffusers' schedulers mean: the keys that a config may leave out, and who has no eps.

diffusers fills in what a config does not say by its class, so this does too. A test compares the
tables with the installed diffusers.
"""

from __future__ import annotations

from dnp.errors import WeightsError

_LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}
_COMMON = {"num_train_timesteps": 1000, "prediction_type": "epsilon", "steps_offset": 0}
_DDPM = {**_COMMON, **_LINEAR, "timestep_spacing": "leading"}
_DDIM = {**_DDPM, "set_alpha_to_one": True}
_PNDM = {**_DDPM, "set_alpha_to_one": False}
_SOLVER = {**_COMMON, **_LINEAR, "timestep_spacing": "linspace"}
_KARRAS = {**_SOLVER, "beta_start": 0.00085, "beta_end": 0.012}
DEFAULTS = {
    "DDIMScheduler": _DDIM,
    "DDIMParallelScheduler": _DDIM,
    "DDPMScheduler": _DDPM,
    "DDPMParallelScheduler": _DDPM,
    "PNDMScheduler": _PNDM,
    "EulerDiscreteScheduler": _SOLVER,
    "EulerAncestralDiscreteScheduler": _SOLVER,
    "LMSDiscreteScheduler": _SOLVER,
    "DEISMultistepScheduler": _SOLVER,
    "DPMSolverMultistepScheduler": _SOLVER,
    "SASolverScheduler": _SOLVER,
    "UniPCMultistepScheduler": _SOLVER,
    # Its class has no key for the spacing, and starts at T - 1 and ends above 0.
    "DPMSolverSinglestepScheduler": {**_SOLVER, "timestep_spacing": "trailing"},
    "HeunDiscreteScheduler": _KARRAS,
    "KDPM2DiscreteScheduler": _KARRAS,
    "KDPM2AncestralDiscreteScheduler": _KARRAS,
    "DPMSolverSDEScheduler": _KARRAS,
}
_FLOW = "flow matching, as Stable Diffusion 3 and Flux have it"
_FEW = "a model that was distilled to few steps (consistency)"
_EDM = "EDM's preconditioning, as Playground v2.5 and CosXL have it"
# By how a scheduler's name begins: what its model is. Their configs may carry betas all the same.
_FOREIGN = {
    "FlowM": _FLOW,
    "Helios": _FLOW,
    "Piflow": _FLOW,
    "LTX": _FLOW,
    "EDM": _EDM,
    "LCM": _FEW,
    "TCD": _FEW,
    "CMStochastic": _FEW,
    "SCM": _FEW,
    "CogVideoX": "a video model, whose noise levels are shifted",
    "KarrasVe": "a variance-exploding model",
    "ScoreSde": "a variance-exploding model",
    "UnCLIP": "unCLIP (DALL-E 2, Kandinsky)",
    "DDPMWuerstchen": "Wuerstchen",
}


def filled(d: dict, path: object) -> dict:
    """A scheduler config with its class's defaults; WeightsError for one of another kind of model,
    by its name."""
    name = str(d.get("_class_name"))
    kind = next((kind for start, kind in _FOREIGN.items() if name.startswith(start)), None)
    if kind is None and (d.get("use_flow_sigmas") or d.get("prediction_type") == "flow_prediction"):
        kind = _FLOW
    if kind is not None:
        raise WeightsError(
            f"{path}: {name} is the scheduler of {kind}, which is not supported; give weights of "
            "Stable Diffusion 1.x, 2.x or XL."
        )
    d = {**DEFAULTS.get(name, {}), **d}
    if d.get("beta_start") is None and d.get("beta_end") is None and "_class_name" in d:
        raise WeightsError(
            f"{path}: {name} does not give betas, so it is not a scheduler of Stable Diffusion; "
            "give a folder that has one, such as DDIMScheduler."
        )
    return d
