"""What a scheduler's config leaves out is what diffusers' class has; other kinds are named."""

import inspect
import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

import dnp
from dnp.errors import WeightsError
from dnp.sd.files import folder
from dnp.sd.files.schedulers import DEFAULTS
from tiny_pipelines import build

BETAS = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "trained_betas": None,
}  # fmt: skip


def own(name):
    """The defaults of a scheduler's class in the installed diffusers."""
    import diffusers

    init = getattr(diffusers, name).__init__
    return {k: p.default for k, p in inspect.signature(init).parameters.items()}


@pytest.mark.parametrize("name", [n for n in DEFAULTS if n != "DPMSolverSDEScheduler"])
def test_the_defaults_of_a_scheduler_are_those_of_its_class(name):
    have = own(name)
    mine = {k: v for k, v in DEFAULTS[name].items() if k in have}
    assert mine == {k: have[k] for k in mine}
    shared = {"beta_start", "beta_end", "beta_schedule", "prediction_type", "num_train_timesteps"}
    assert shared <= set(mine)
    assert ("set_alpha_to_one" in DEFAULTS[name]) == ("set_alpha_to_one" in have)
    assert ("timestep_spacing" in mine) == (name != "DPMSolverSinglestepScheduler")


def test_every_scheduler_of_betas_in_diffusers_is_read_or_refused_by_name():
    import diffusers

    inverse = {"DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler", "RePaintScheduler"}
    for name in (n for n in dir(diffusers) if n.endswith("Scheduler") and n not in inverse):
        if name in DEFAULTS or "beta_schedule" not in own(name):
            continue
        with pytest.raises(WeightsError, match=f"x: {name} is the scheduler of "):
            folder.read_schedule({"_class_name": name, **BETAS}, "x")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A saved pipeline of each kind, which no test changes."""
    made = {kind: tmp_path_factory.mktemp(kind) for kind in ("1.x", "SDXL")}
    for kind, path in made.items():
        build(kind)[0].save_pretrained(path)
    return made


def saved(folder, tmp_path, **config):
    """A copy of a folder, whose scheduler_config.json is `config`."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    index = tmp_path / "model_index.json"
    named = json.loads(index.read_text()) | {"scheduler": ["diffusers", config["_class_name"]]}
    index.write_text(json.dumps(named))
    return tmp_path


@pytest.mark.parametrize("kind", ["1.x", "SDXL"])
@pytest.mark.parametrize(
    "name",
    ["EulerDiscreteScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverSinglestepScheduler"],
)
def test_a_folder_with_few_keys_is_what_its_open_pipeline_is(folders, tmp_path, kind, name):
    import diffusers

    saved(folders[kind], tmp_path, _class_name=name, **BETAS)
    pipe = getattr(diffusers, f"StableDiffusion{'XL' * (kind == 'SDXL')}Pipeline")
    a, b = dnp.load(tmp_path), dnp.from_diffusers(pipe.from_pretrained(tmp_path))
    assert a.config.spacing == b.config.spacing
    assert a.schedule.pairs(8, a.config.spacing) == b.schedule.pairs(8, b.config.spacing)
    assert torch.equal(a.schedule.abar, b.schedule.abar)
    assert a.schedule.abar_final == b.schedule.abar_final


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}, "flow matching"),
        ({"_class_name": "EDMDPMSolverMultistepScheduler", "sigma_data": 0.5}, "Playground"),
        ({"_class_name": "EDMEulerScheduler", "sigma_max": 120.0}, "CosXL"),
        ({"_class_name": "LCMScheduler", **BETAS}, "distilled to few steps"),
        ({"_class_name": "TCDScheduler", **BETAS}, "distilled to few steps"),
        ({"_class_name": "CogVideoXDDIMScheduler", **BETAS}, "a video model"),
        ({"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True, **BETAS}, "flow mat"),
        ({"_class_name": "UnCLIPScheduler", "beta_schedule": "squaredcos_cap_v2"}, "unCLIP"),
        ({"_class_name": "IPNDMScheduler"}, "does not give betas"),
        ({"_class_name": "MyScheduler", "num_train_timesteps": 1000}, "does not give betas"),
    ],
)
def test_a_scheduler_of_another_kind_of_model_is_named(folders, tmp_path, config, what):
    with pytest.raises(WeightsError, match=f"{config['_class_name']} .*{what}") as e:
        dnp.load(saved(folders["1.x"], tmp_path, **config))
    assert "restore" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "what"),
    [("edm_vpred.sigma_max", "CosXL"), ("edm_mean", "Playground"), ("edm_std", "Playground")],
)
def test_a_single_file_of_edm_is_named(tmp_path, name, what):
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(4), "model.diffusion_model.out.2.weight": torch.zeros(4)}, path)
    with pytest.raises(WeightsError, match=f"this looks like {what}"):
        dnp.load(path)
