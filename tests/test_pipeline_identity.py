"""Whatever changes a pipeline's pictures changes its fingerprint, and what changes none does not.

Weights, LoRAs and textual inversions are in test_from_diffusers*.py.
"""

import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dnp
from dnp.diffusers import identity
from dnp.diffusers.identity import Identity
from dnp.errors import WeightsError
from dnp.evaluation import contestants, runner
from dnp.evaluation.grid import Grid, Run
from dnp.evaluation.measure import Instruments
from dnp.evaluation.trio import Prompt
from dnp.sd import probe
from tiny_pipelines import build

KINDS = ["1.x", "SDXL"]


@pytest.fixture(params=KINDS)
def changed(request):
    pipe, _ = build(request.param)
    return pipe, dnp.from_diffusers(pipe)


def freeu(pipe):
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.0001, b2=1.0)


def tiling(pipe):
    pipe.vae.enable_tiling()


def smaller_tiles(pipe):
    pipe.vae.tile_overlap_factor = 0.5


def processor(pipe):
    class Mine(type(next(iter(pipe.unet.attn_processors.values())))):
        def __call__(self, attn, hidden_states, *args, **kw):
            return 1.001 * super().__call__(attn, hidden_states, *args, **kw)

    pipe.unet.set_attn_processor(Mine())


def attention_mask_of_a_processor(pipe):
    p = next(m for m in pipe.unet.modules() if hasattr(m, "processor")).processor
    p.strength = 0.3


def circular(pipe):
    for module in pipe.vae.modules():
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"


def circular_by_hand(pipe):
    for module in pipe.unet.modules():
        if isinstance(module, nn.Conv2d) and module.padding != (0, 0):

            def forward(self, x, weight, bias):
                x = F.pad(x, self._reversed_padding_repeated_twice, mode="circular")
                return F.conv2d(x, weight, bias, self.stride, 0)

            module._conv_forward = types.MethodType(forward, module)


def hook(pipe):
    pipe.unet.mid_block.register_forward_hook(lambda module, args, out: 1.001 * out)


def hook_of_inputs(pipe):
    pipe.vae.decoder.register_forward_pre_hook(lambda module, args: (args[0] + 0.01, *args[1:]))


def hook_of_text(pipe):
    encoder = pipe.text_encoder
    layer = getattr(encoder, "text_model", encoder).encoder.layers[0]
    layer.mlp.register_forward_hook(lambda module, args, out: 1.01 * out)


def patched_forward(pipe):
    own = pipe.unet.forward
    pipe.unet.forward = lambda *args, **kw: tuple(1.01 * x for x in own(*args, **kw))


def patched_class(pipe):
    block = pipe.unet.mid_block.resnets[0]

    class Louder(type(block)):
        def forward(self, *args, **kw):
            return 1.01 * super().forward(*args, **kw)

    block.__class__ = Louder


def patched_decode(pipe):
    own = pipe.vae.decode
    pipe.vae.decode = lambda z, **kw: own(1.01 * z, **kw)


def patched_encode_prompt(pipe):
    own = pipe.encode_prompt
    pipe.encode_prompt = lambda *args, **kw: tuple(
        None if x is None else 1.01 * x for x in own(*args, **kw)
    )


def written_through_data(pipe):
    pipe.unet.conv_in.weight.data.mul_(1.01)


def padding_token(pipe):
    pipe.tokenizer.pad_token = "cat</w>"


def length(pipe):
    pipe.tokenizer.model_max_length = 12


def skipped_norm(pipe):
    pipe.unet.conv_norm_out.eps = 0.1


CHANGES = [
    freeu, tiling, smaller_tiles, processor, attention_mask_of_a_processor, circular,
    circular_by_hand, hook, hook_of_inputs, hook_of_text, patched_forward, patched_class,
    patched_decode, patched_encode_prompt, written_through_data, padding_token, length,
    skipped_norm,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_pipeline_changes_its_fingerprint(changed, change):
    pipe, model = changed
    name = model.config.fingerprint
    change(pipe)
    if change is length:  # every tokenizer of a pipeline has the same
        getattr(pipe, "tokenizer_2", pipe.tokenizer).model_max_length = 12
    told = model.config.fingerprint
    assert told != name and model.config.fingerprint == told


@pytest.mark.parametrize("change", [freeu, hook, patched_forward])
def test_a_change_before_the_pipeline_is_wrapped_is_in_its_fingerprint(change):
    names = []
    for do in (lambda pipe: None, change, change):
        pipe, _ = build("1.x")
        do(pipe)
        names.append(dnp.from_diffusers(pipe).config.fingerprint)
    assert names[0] != names[1] == names[2]


def test_what_changes_no_picture_leaves_the_fingerprint(changed, tmp_path):
    pipe, model = changed
    name, x = model.config.fingerprint, probe.numbers(model)
    dnp.generate(model, "a cat", steps=2, size=(32, 32))
    assert model.config.fingerprint == name
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert model.config.fingerprint == name
    finally:
        torch.set_num_threads(threads)
    for network in (pipe.unet, pipe.vae):
        network.to(memory_format=torch.channels_last)
    assert probe.numbers(model) == x
    pipe.save_pretrained(tmp_path)
    again = dnp.from_diffusers(type(pipe).from_pretrained(tmp_path))
    assert again.config.fingerprint == name == model.config.fingerprint


def test_the_probe_changes_no_tensor_and_draws_no_number(changed):
    pipe, model = changed
    before = {k: (x, x.data_ptr(), x._version) for k, x in pipe.unet.state_dict().items()}
    state = torch.get_rng_state()
    model.config.fingerprint  # noqa: B018
    assert torch.equal(torch.get_rng_state(), state)
    for k, x in pipe.unet.state_dict().items():
        assert (x.data_ptr(), x._version) == before[k][1:]


def test_a_weight_that_the_small_forward_does_not_reach_is_in_the_fingerprint(changed):
    pipe, model = changed
    name, x = model.config.fingerprint, probe.numbers(model)
    with torch.no_grad():
        pipe.vae.encoder.conv_out.weight[-1, -1, -1, -1] += 1
    assert probe.numbers(model) == x and model.config.fingerprint != name


def test_the_last_number_of_a_small_and_of_a_large_tensor_is_hashed():
    tensors = {"small": torch.zeros(3), "large": torch.zeros(2**17)}
    known = identity._digests(tensors)
    for name, x in tensors.items():
        x[-1] = 1
        told = identity._digests(tensors)
        assert [k for k in known if told[k] != known[k]] == [name]
        known = told


def grid(*seeds):
    return Grid((Prompt("a cat", "x"),), (contestants.parse("cfg"),), (3.0,), seeds, 3, (32, 32))


def test_a_run_and_a_unit_of_a_grid_ask_for_the_name_once(monkeypatch, tmp_path):
    model, asked, name = dnp.from_diffusers(build("1.x")[0]), [], Identity.name
    monkeypatch.setattr(Identity, "name", lambda self: asked.append(name(self)) or asked[-1])
    made = dnp.generate(model, "a cat", steps=1, size=(32, 32))
    assert asked == [made.settings["fingerprint"]]
    work = Run(grid(0, 1, 2), model, Instruments(None, None, None), tmp_path)
    contents = work.contents(work.grid.units()[0])
    assert [c["weights"] for c in contents] == asked[:1] * 3 and len(asked) == 2


def test_a_pipeline_that_moves_itself_says_where_it_computes(changed):
    pipe, model = changed
    assert model.device == pipe.device == torch.device("cpu")
    hook = types.SimpleNamespace(execution_device="meta")
    for network in pipe.components.values():
        if isinstance(network, nn.Module):
            network._hf_hook = hook
    assert model.device == pipe._execution_device == torch.device("meta")


def test_a_network_in_groups_says_where_it_computes(changed):
    pipe, model = changed
    onto, off = torch.device("cpu:0"), torch.device("cpu")
    assert model.device == off != onto
    pipe.unet.enable_group_offload(onto, off, offload_type="leaf_level")
    assert model.device == pipe._execution_device == onto


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_the_probe_sees_half_precision_too(kind):
    pipe, _ = build("1.x")
    pipe.to(dtype=kind)
    model = dnp.from_diffusers(pipe)
    name = model.config.fingerprint
    assert model.config.fingerprint == name
    hook(pipe)
    assert model.config.fingerprint != name


def test_a_pipeline_that_draws_or_remembers_is_refused():
    for dropout in (True, False):
        pipe, _ = build("1.x")
        model, seen = dnp.from_diffusers(pipe), []
        if dropout:
            pipe.unet.mid_block.resnets[0].dropout.p = 0.5
            pipe.unet.train()
        else:
            pipe.unet.mid_block.register_forward_hook(
                lambda m, args, out, seen=seen: seen.append(1) or out * len(seen)
            )
        with pytest.raises(WeightsError, match="gives two results for one input"):
            dnp.generate(model, "a cat", steps=1)


def test_a_pipeline_that_cannot_be_seen_is_refused():
    pipe, _ = build("1.x")
    model = dnp.from_diffusers(pipe)

    def only_float32(module, args):
        if args[0].dtype != torch.float32:
            raise NotImplementedError("no kernel for float64")

    pipe.unet.mid_block.register_forward_pre_hook(only_float32)
    with pytest.raises(WeightsError, match=r"cannot be seen, since .* no kernel for float64"):
        dnp.generate(model, "a cat", steps=1)


def test_what_a_wrapped_pipeline_may_not_become_is_told():
    from diffusers import DDIMScheduler, EulerDiscreteScheduler

    pipe, _ = build("1.x")
    model, own = dnp.from_diffusers(pipe), pipe.scheduler
    for other in (
        EulerDiscreteScheduler.from_config(own.config, timestep_spacing="trailing"),
        DDIMScheduler.from_config(own.config, prediction_type="v_prediction"),
        DDIMScheduler.from_config(own.config, beta_end=0.02),
    ):
        pipe.scheduler = other
        with pytest.raises(WeightsError, match="scheduler was changed after it was read"):
            dnp.generate(model, "a cat", steps=1)
    own.set_timesteps(5)  # its own steps are not used
    pipe.scheduler = own
    assert model.config.fingerprint
    pipe.unet.register_to_config(encoder_hid_dim_type="ip_image_proj")
    with pytest.raises(WeightsError, match="IP-Adapter"):
        dnp.generate(model, "a cat", steps=1)


def test_a_run_after_a_change_makes_new_pictures(tmp_path):
    pipe, _ = build("1.x")
    model = dnp.from_diffusers(pipe)

    def pictures(folder):
        runner.run(Run(grid(0), model, Instruments(None, None, None), tmp_path / folder), 0, 1)
        return sorted(f.read_bytes() for f in (tmp_path / folder / "images").iterdir())

    first = pictures("one")
    freeu(pipe)
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.4, b2=1.6)
    again, other = pictures("one"), pictures("two")
    assert other != first and len(again) == 2 and other[0] in again


def test_a_half_moved_pipeline_is_told_before_the_work(changed):
    pipe, model = changed
    for part in ("text_encoder", "vae"):
        network = getattr(pipe, part)
        setattr(pipe, part, network.to("meta"))
        with pytest.raises(WeightsError, match=r"move it as a whole, with pipe\.to"):
            dnp.generate(model, "a cat", steps=1)
        pipe.components[part].to_empty(device="cpu")


def test_parts_in_two_types_sample():
    pipe, _ = build("1.x")
    model = dnp.from_diffusers(pipe)
    for part in ("text_encoder", "vae", "unet"):
        getattr(pipe, part).to(torch.bfloat16)
        (picture,) = dnp.generate(model, "a cat", steps=1, size=(32, 32)).images
        assert np.asarray(picture).any()
