"""Complete negative prompting (arXiv:2508.02973), which asks a captioner at every step."""

from __future__ import annotations

import torch
from PIL import Image

from dnp import guidance, prompting
from dnp.answer import dns_chain
from dnp.guided import together
from dnp.sampling import ddim_sample, noise_like


@torch.no_grad()
def cnp(
    model, prompt: str, seed: int, captioner: prompting.Captioner, s: float, steps: int,
    s_dns: float, negative_scale: float | None = None, size: tuple[int, int] | None = None,
) -> tuple[Image.Image, str, int]:  # fmt: skip
    """Complete negative prompting: at every step t a complete DNS chain from z_t, a caption of its
    picture, and Eq. (4) with it. Returns the picture, the last caption, and the evaluations.

    steps^2 + 2 steps evaluations: at step i two and one for the negative, and 2 (steps - i - 1) for
    the chain, whose first step shares its two with the outer one.
    """
    c_phi, c_p = model.encode([""]), model.encode([prompt])
    h, spacing = s if negative_scale is None else negative_scale, model.config.spacing
    pairs = model.schedule.pairs(steps, spacing)
    step_of, captions, nfe = {t: i for i, (t, _) in enumerate(pairs)}, [], 0

    def noises(z, t, *conditions):
        nonlocal nfe
        nfe += len(conditions)
        return together(model.eps, z, torch.as_tensor(t), conditions)

    def both(z, t):
        return noises(z, t, c_phi, c_p)

    def guided(z_t, t):
        eps_phi, eps_p = both(z_t, t)
        rest = pairs[step_of[int(t)] :]
        *_, (_, z_0, _) = dns_chain(both, z_t, rest, model.schedule, s_dns, (eps_phi, eps_p))
        captions.append(prompting.describe(captioner, model.decode(z_0))[0])
        (eps_n,) = noises(z_t, t, model.encode([captions[-1]]))
        return guidance.negative_prompt_two_scale(eps_phi, eps_p, eps_n, s, h)

    generator = torch.Generator().manual_seed(seed)
    z_T = noise_like(torch.empty(1, *model.latent_shape(size)), [generator])
    z_T = z_T.to(model.device, model.dtype)
    *_, (_, z_0, _) = ddim_sample(guided, z_T, model.schedule, steps, spacing=spacing)
    return model.decode(z_0)[0], captions[-1], nfe
