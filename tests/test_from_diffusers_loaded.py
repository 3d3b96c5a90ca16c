"""`dnp.from_diffusers` with what a user has loaded: LoRAs and textual inversions, 1.x and SDXL."""

import pytest
import torch
from torch.testing import assert_close

import dnp
from dnp.diffusers import pipelines
from tiny_pipelines import build

PROMPT, SIZE = "a red car and a cat", (32, 32)
NEAR = {"atol": 1e-5, "rtol": 1e-5}
WORD = "a <thing> and a cat"


@pytest.fixture(params=["1.x", "SDXL"])
def changed(request):
    """(pipeline, model from it) of small random networks, which a test may change."""
    pipe, _ = build(request.param)
    return pipe, dnp.from_diffusers(pipe)


def encoders(pipe):
    """(text encoder, its tokenizer), one or two"""
    names = ("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")
    return [(getattr(pipe, a), getattr(pipe, b)) for a, b in names if hasattr(pipe, a)]


def adapters(pipe):
    """A LoRA of rank 2 on the attention of the U-Net and of the text encoders, as a state dict."""
    state, g = {}, torch.Generator().manual_seed(7)
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, module in getattr(pipe, part, torch.nn.Module()).named_modules():
            if name.endswith(("to_q", "to_v", "q_proj", "v_proj")):
                out, into = module.weight.shape
                for kind, shape in (("lora_A", (2, into)), ("lora_B", (out, 2))):
                    x = torch.randn(shape, generator=g)
                    state[f"{part}.{name}.{kind}.weight"] = 0.5 * x
    return state


@torch.no_grad()
def forwards(pipe, model, prompts):
    """The condition and eps of prompts, which are the pipeline's own."""
    z, t = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(500)
    if not hasattr(pipe, "text_encoder_2"):
        context, added = pipe.encode_prompt(prompts, "cpu", 1, False)[0], None
        c = model.encode(prompts)
        assert_close(c, context, **NEAR)
    else:
        context, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
        c = model.encode(prompts, phi="text", size=SIZE)
        assert_close((c.context, c.pooled), (context, pooled), **NEAR)
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * 2)}
    eps = model.eps(z, t, c)
    assert_close(eps, pipe.unet(z, t, context, added_cond_kwargs=added).sample, **NEAR)
    return context, eps


def test_a_lora_changes_eps_as_in_diffusers(changed):
    pytest.importorskip("peft", reason="diffusers loads LoRAs by peft")
    pipe, model = changed
    (plain_c, plain), names = forwards(*changed, [PROMPT, "cup"]), [model.config.fingerprint]
    pipe.load_lora_weights(adapters(pipe), adapter_name="mine")
    c, eps = forwards(*changed, [PROMPT, "cup"])
    assert (eps - plain).abs().max() > 1e-3 and (c - plain_c).abs().max() > 1e-3
    names.append(model.config.fingerprint)
    pipe.set_adapters("mine", 0.5)
    assert (forwards(*changed, [PROMPT, "cup"])[1] - eps).abs().max() > 1e-4
    names.append(model.config.fingerprint)
    pipe.fuse_lora()
    forwards(*changed, [PROMPT, "cup"])
    names.append(model.config.fingerprint)
    assert len(set(names)) == 4
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert_close(forwards(*changed, [PROMPT, "cup"])[1], plain, atol=1e-4, rtol=1e-4)
    made = dnp.generate(model, PROMPT, "answer", steps=2, size=SIZE)
    assert len(made.images) == 1


def test_a_textual_inversion_is_read_with_all_its_vectors(changed):
    pipe, model = changed
    (before, _), name = forwards(*changed, [WORD, "cup"]), model.config.fingerprint
    for encoder, tokenizer in encoders(pipe):
        vectors = torch.randn(2, encoder.config.hidden_size)
        pipe.load_textual_inversion(
            {"<thing>": vectors}, token="<thing>", text_encoder=encoder, tokenizer=tokenizer
        )
        rows = tokenizer.convert_tokens_to_ids(["<thing>", "<thing>_1"])
        ids = tokenizer("a <thing> <thing>_1 and a cat").input_ids
        assert all(row in ids for row in rows)
    after, _ = forwards(*changed, [WORD, "cup"])
    assert (after - before).abs().max() > 1e-2 and model.config.fingerprint != name
    phi = {"phi": "text"} if hasattr(pipe, "text_encoder_2") else {}
    made = dnp.generate(model, WORD, "dns", s=2.0, steps=2, size=SIZE, **phi)
    z_T, z_0 = made.latents
    want = pipelines.dns(
        pipe, WORD, 2.0, num_inference_steps=2, latents=z_T, height=32, width=32,
        output_type="latent",
    ).images  # fmt: skip
    assert_close(z_0, want, atol=1e-3, rtol=1e-4)
