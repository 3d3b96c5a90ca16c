"""`dnp.load` and `dnp.generate` as a library user calls them."""

import copy
import functools
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

import dnp
from conftest import MINI, ROOT
from dnp import sampling
from dnp.energy import eps_from_v
from dnp.generation import prepared
from dnp.guidance import cfg
from dnp.methods.conditions import guided_model
from dnp.sd import speed
from experiments import world

small = functools.partial(dnp.generate, size=(32, 32))


@pytest.fixture(scope="module")
def model():
    """Small random networks; where it matters what they have learnt, a test takes `mini`."""
    return dnp.load(world())


def test_result_holds_what_is_needed_to_make_it_again(model):
    r = dnp.generate(model, "a cat", steps=3, seed=5, images=2)
    assert len(r.images) == 2 and r.images[0].size == (64, 64) and r.dns_images == []
    for z in r.latents:
        assert z.shape == (2, 4, 16, 16) and z.dtype == torch.float32 and z.device.type == "cpu"
    z_T = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(6))
    assert_close(r.latents[0][1], z_T, rtol=0, atol=0)
    assert (r.settings["prompt"], r.settings["seed"], r.settings["steps"]) == ("a cat", 5, 3)
    assert r.negative is None
    again = model.decode(r.latents[1])
    assert [i.tobytes() for i in again] == [i.tobytes() for i in r.images]


@pytest.mark.parametrize(("method", "per_step"), [("cfg", 2), ("np", 3), ("np2", 2), ("dns", 2)])
def test_nfe_counts_the_network_evaluations_of_a_picture(model, monkeypatch, method, per_step):
    counted, forward = [], model.unet.forward
    monkeypatch.setattr(
        model.unet, "forward", lambda z, *a: (counted.append(len(z)), forward(z, *a))[1]
    )
    negative = "a dog" if method in ("np", "np2") else None
    r = small(model, "a cat", method, negative, s=2.0, steps=4, images=2)
    assert r.nfe == per_step * 4 and sum(counted) == 2 * r.nfe
    assert len(counted) == 4 * 2  # one batched forward for all conditions of a step
    assert r.negative == negative


def test_scale_defaults_to_the_recommendation_then_to_seven_and_a_half(model, tiny):
    assert small(model, "a", "dns", steps=1).settings["s"] == model.config.scales["dns"]
    other = dnp.load(tiny)
    assert other.config.scales == {}
    assert dnp.generate(other, "a", steps=1).settings["s"] == 7.5


def test_negative_scale_is_the_two_scale_form(model):
    kw = dict(negative="a dog", steps=3, s=2.0)
    same = small(model, "a cat", "np", negative_scale=2.0, **kw)
    three = small(model, "a cat", "np", **kw)
    assert_close(same.latents[1], three.latents[1], atol=1e-5, rtol=1e-5)
    two = small(model, "a cat", "np2", **kw)
    as_two = small(model, "a cat", "np", negative_scale=1.0, **kw)
    assert_close(as_two.latents[1], two.latents[1], atol=1e-4, rtol=1e-4)
    cfg = small(model, "a cat", "cfg", steps=3, s=2.0)
    as_cfg = small(model, "a cat", "np", negative_scale=0.0, **kw)
    assert_close(as_cfg.latents[1], cfg.latents[1], atol=1e-5, rtol=1e-5)


def test_dns_is_np_with_an_empty_prompt(model):
    """Eq. (20), through the whole sampler."""
    dns = small(model, "a cat", "dns", s=1.5, steps=3)
    np = small(model, "", "np", "a cat", s=1.5, steps=3)
    assert_close(dns.latents[1], np.latents[1], atol=1e-5, rtol=1e-5)


def test_every_picture_is_its_own_whatever_its_batch(model):
    """On a GPU pictures share a batch; the rule and the sampler must not mix them."""
    z = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    context = model.encode(["", "a cat"])
    guided = guided_model(model.eps, context, lambda phi, p: cfg(phi, p, 3.0))
    t = torch.tensor(500)
    together = guided(z, t)
    for i in range(3):
        assert_close(together[i : i + 1], guided(z[i : i + 1], t), atol=1e-5, rtol=1e-5)


def test_a_batch_on_a_gpu_makes_the_same_pictures(model, monkeypatch):
    alone = small(model, "a cat", steps=4, seed=2, images=3, eta=1.0)
    monkeypatch.setattr(dnp.generation, "batch_size", lambda device: 2)
    together = small(model, "a cat", steps=4, seed=2, images=3, eta=1.0)
    assert_close(together.latents[0], alone.latents[0], rtol=0, atol=0)
    assert_close(together.latents[1], alone.latents[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("bad", [{"steps": 2.5}, {"images": 1.0}, {"seed": "1"}, {"size": (64,)}])
def test_settings_of_the_wrong_kind_are_named(model, bad):
    with pytest.raises(dnp.SettingsError, match="not possible"):
        dnp.generate(model, "a", **bad)


def test_what_is_no_model_no_prompt_or_no_number_is_named(model):
    with pytest.raises(dnp.SettingsError, match=r"str is not a model .*weights with dnp\.load"):
        dnp.generate("weights/mini", "a cat")
    with pytest.raises(dnp.SettingsError, match="a list is not a prompt"):
        dnp.generate(model, ["a cat", "a dog"])
    with pytest.raises(dnp.SettingsError, match="s = '3' is not possible; give a number"):
        dnp.generate(model, "a cat", s="3")
    with pytest.raises(dnp.SettingsError, match="rule perp_neg needs a negative prompt"):
        dnp.generate(model, "a cat", rule="perp_neg")


def test_latents_can_be_used_in_autograd(model):
    z_0 = dnp.generate(model, "a", steps=1).latents[1].requires_grad_()
    (z_0**2).sum().backward()
    assert z_0.grad is not None


def test_encode_keeps_the_end_token_and_says_what_was_cut(mini):
    long = "a cat and " * 12 + "a dog"
    told = 'has 38 tokens and the limit is 30; cut off: "a cat and a cat and a dog"'
    with pytest.warns(UserWarning, match=told):
        cut = mini.encode(long)
    ids = mini.tokenizer(long, truncation=True, max_length=32).input_ids
    assert len(ids) == 32 and ids[-1] == mini.tokenizer.eos_token_id
    assert_close(cut, mini.text_encoder(torch.tensor([ids])))
    assert mini.encode(["", "a cat"]).shape == (2, 32, 128)


def test_words_outside_the_cut_vocabulary_still_encode_byte_by_byte(mini):
    ids = mini.tokenizer("zürich 猫").input_ids
    assert len(ids) > 6
    assert mini.tokenizer.decode(ids[1:-1]) == "zürich 猫"
    assert torch.isfinite(mini.encode("zürich 猫")).all()


def test_the_cut_vocabulary_keeps_one_token_for_each_word_of_the_world(mini):
    for word in ("elephant", "backpack", "glasses", "purple", "beach", "ugly"):
        assert len(mini.tokenizer(word).input_ids) == 3
    one = mini.tokenizer("a red car").input_ids
    assert one == mini.tokenizer("  A  Red CAR ").input_ids


def test_decode_and_encode_images_are_inverse_and_change_nothing(mini):
    z = dnp.generate(mini, "a red car", steps=10, seed=1).latents[1]
    before = z.clone()
    (picture,) = mini.decode(z)
    assert_close(z, before, rtol=0, atol=0)
    back = mini.encode_images([picture])
    assert back.shape == z.shape
    assert torch.nn.functional.cosine_similarity(back.flatten(), z.flatten(), dim=0) > 0.9


def test_sizes_other_than_the_trained_one(model):
    assert dnp.generate(model, "a", steps=1, size=(48, 96)).images[0].size == (96, 48)
    with pytest.raises(dnp.SettingsError, match="multiples of 4"):
        dnp.generate(model, "a", steps=1, size=(50, 64))


def test_v_prediction_is_converted_to_eps(tiny):
    model = dnp.load(tiny)
    assert model.config.prediction_type == "v_prediction"
    z, c = torch.randn(2, 4, 12, 12), model.encode("a cat")
    for t in (torch.tensor(300), torch.tensor([10, 990])):
        v = model.unet(z, t, c.expand(2, -1, -1))
        abar = model.schedule.level(t).float().reshape(-1, 1, 1, 1)
        assert_close(model.eps(z, t, c), eps_from_v(z, v, abar))


def test_eps_lets_gradients_through_to_the_latent(model):
    z = torch.randn(1, 4, 16, 16, requires_grad=True)
    model.eps(z, torch.tensor(500), model.encode("a cat")).sum().backward()
    assert z.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in model.unet.parameters())


def test_the_dtype_is_the_one_that_was_asked_for(tiny):
    model = dnp.load(tiny, dtype=torch.float64)
    assert {p.dtype for p in model.unet.parameters()} == {torch.float64}
    half = dnp.load(tiny, dtype=torch.float16)
    assert half.unet.conv_in.weight.dtype == torch.float16
    assert half.vae.post_quant_conv.weight.dtype == torch.float32


def test_progress_is_called_after_every_step(model):
    calls = []
    small(model, "a", steps=3, images=2, progress=calls.append)
    assert calls == [1] * 6


class NoFloat64(TorchDispatchMode):
    """Fails when a float64 tensor comes to be on a device that is not the CPU, as on MPS.

    The device is torch's meta device, which has types and no numbers; only t is read back from it.
    """

    seen, t = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        back = (kwargs or {}).get("device") == torch.device("cpu")
        if args and isinstance(args[0], torch.Tensor) and args[0].device.type == "meta":
            if func is torch.ops.aten._local_scalar_dense.default:
                return self.t
            if back:
                return torch.tensor(self.t)
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves((args, kwargs, out)):
            if isinstance(x, torch.Tensor) and x.device.type == "meta":
                assert x.dtype != torch.float64, func
                self.seen += 1
        return out


@pytest.mark.parametrize("method", ["cfg", "answer"])
def test_no_float64_reaches_a_device(tiny, method):
    model = dnp.load(tiny)  # a v-predicting one
    for network in (model.text_encoder, model.unet, model.vae):
        for part in (network, *network.children()):
            part._forward_pre_hooks.clear()
        network.to("meta")
    with NoFloat64() as mode:
        c_phi, c_p = (model.encode([text]) for text in ("", "a cat"))
        pairs = model.schedule.pairs(2)
        if method == "answer":
            given = dict(s=2.0, steps=2, K_until=1.0)
            call, rule = prepared(model, "a cat", "answer", None, None, None, given)
            rule.begin(call, [None], torch.zeros(1, *model.latent_shape(), device="meta"))
        else:
            rule = guided_model(model.eps, [c_phi, c_p], lambda a, b: cfg(a, b, 2.0))
        levels = iter(pairs)

        def guided(z_t, t):
            mode.t, _ = next(levels)
            return rule(z_t, t)

        z_T = torch.randn(1, *model.latent_shape(), device="meta")
        g = [torch.Generator().manual_seed(0)]
        *_, (_, z_0, _) = sampling.ddim_sample(guided, z_T, model.schedule, 2, 1.0, g)
        assert model.vae.decode(z_0).device.type == "meta"
    assert mode.seen > 1000


# ------------------------------------------------------------------ weights, first use and memory


@pytest.fixture
def one(tiny):
    """(model, a call of it), with float32 weights in its files."""
    z, context = torch.randn(1, 4, 12, 8), dnp.load(tiny).encode("a cat")

    @torch.no_grad()
    def call(model):
        return model.eps(z, 500, context)

    return dnp.load(tiny), call


def test_what_is_done_to_weights_before_their_first_use_counts(tiny, one):
    model, call = one
    plain = call(dnp.load(tiny))
    with torch.no_grad():
        model.unet.conv_in.weight.mul_(2)
        model.unet.conv_out.weight.data *= 3
        model.unet.conv_out.bias.data[1] += 1  # and a single number
        model.unet.conv_out.weight.data.view(-1)[5] += 1
    before = {k: v.clone() for k, v in model.unet.state_dict().items()}
    got = call(model)
    assert all(model.unet.state_dict()[k].equal(v) for k, v in before.items())
    model.unet.conv_in.weight.div_(2)
    model.unet.conv_out.bias.data[1] -= 1
    model.unet.conv_out.weight.data[0, 0, 1, 2] -= 1
    model.unet.conv_out.weight.data /= 3
    assert not got.isclose(plain).all()
    assert_close(call(model), plain, atol=5e-6, rtol=0)


def test_load_changes_nothing_and_speed_lays_the_decoder_out_with_the_same_numbers(tiny):
    z, model = torch.randn(1, 4, 12, 8), dnp.load(tiny)
    plain, before = model.vae.decode(z), {k: v.clone() for k, v in model.vae.state_dict().items()}
    modules = [m for n in (model.text_encoder, model.unet, model.vae) for m in n.modules()]
    assert not any(m._forward_pre_hooks for m in modules)
    assert not any(isinstance(m, speed.Linear) for m in modules)
    assert len(speed.apply(model)) >= 1
    assert_close(model.vae.decode(z), plain, atol=5e-6, rtol=0)
    assert all(model.vae.state_dict()[k].equal(v) for k, v in before.items())
    weights = [p for p in model.vae.decoder.parameters() if p.ndim == 4]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_a_model_outlives_its_files_and_its_copies(tiny, tmp_path, one, monkeypatch):
    model, call = one
    want = call(model)
    shutil.copytree(tiny, tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    model = dnp.load("gone")
    first = copy.deepcopy(model.unet)
    second = pickle.loads(pickle.dumps(model.unet))
    shutil.rmtree("gone")
    assert_close(call(model), want, atol=5e-6, rtol=0)
    for unet in (first, second):
        model.unet = unet
        assert_close(call(model), want, atol=5e-6, rtol=0)


def test_the_first_use_may_be_in_many_threads_or_in_inference_mode(tiny, one):
    model, call = one
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(call, [model] * 8))
    with torch.inference_mode():
        results.append(call(dnp.load(tiny)))
    for eps in results[1:]:
        assert_close(eps, results[0], atol=5e-6, rtol=0)


@pytest.mark.slow
def test_a_model_of_float32_files_needs_few_open_files(tiny):
    """Each file is mapped once: 1,130 tensors would be more than most machines allow."""
    code = (
        "import resource, sys, dnp, torch; m = dnp.load(sys.argv[2]); m.encode('a cat');"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32)); m = dnp.load(sys.argv[1]);"
        "print(m.eps(torch.randn(1, 4, 8, 8), 5, m.encode('a cat')).isfinite().all().item())"
    )
    run = [sys.executable, "-c", code, str(tiny), str(MINI)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "True", done.stderr
