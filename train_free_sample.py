#!/usr/bin/env python3
"""Diffusion-negative sampling (arXiv:2411.05473) without training: the whole algorithm, to read.

    python train_free_sample.py "a cat and a red car"
    python train_free_sample.py "a cat and a red car" --scale 3 --seed 7 --ask

    1  CFG     eps_phi + s (eps_p - eps_phi)      Eq. 3   the picture that guidance alone makes
    2  DNS     eps_phi + s (eps_phi - eps_p)      Eq. 19  what the model takes for p's opposite
    3  n*      words for that picture: a captioner's, or with --ask yours
    4  DNP     eps_phi + s (eps_p - eps_n*)       Eq. 4   away from it, from the same noise

`python -m dnp` has every method and option, and PNGs that can be made again.
"""

from pathlib import Path

import torch

import dnp
from dnp import guidance
from dnp.app.sheet import contact_sheet
from dnp.app.terminal import Parser, ask, run
from dnp.sampling import ddim_step


@torch.no_grad()
def sample(model, prompts, rule, z_T, steps):
    """z_0 from z_T: at each step the noise of every prompt, one rule, one DDIM step (Eq. 2)."""
    c, z_t = model.encode(prompts), z_T  #                           (k, L, D), (1, C, H, W)
    for t, t_next in model.schedule.pairs(steps, model.config.spacing):
        eps = model.eps(z_t.repeat(len(prompts), 1, 1, 1), torch.tensor(t), c)
        eps = rule(*eps.chunk(len(prompts)))
        z_t, _ = ddim_step(z_t, eps, model.schedule.level(t), model.schedule.level(t_next))
    return z_t


def main() -> None:
    about = __doc__.split("\n")[0]
    p = Parser(prog="python -m dnp has every option; this script's", description=about)
    p.add_argument("prompt")
    p.add_argument("--weights", default=Path(__file__).parent / "weights" / "mini", metavar="PATH")
    p.add_argument("--scale", type=float, default=3.0, metavar="S", help="s; default 3")
    p.add_argument("--steps", type=int, default=50, metavar="N", help="default 50")
    p.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    p.add_argument("--ask", action="store_true", help="ask a person for n*, not the captioner")
    p.add_argument("--out", type=Path, default=Path("outputs"), metavar="FOLDER")
    args = p.parse_args()
    model, prompt, s = dnp.load(args.weights), args.prompt, args.scale
    if hasattr(model, "takes"):
        raise dnp.SettingsError("this script reads no SDXL weights; use python -m dnp.")
    if not 1 <= args.steps <= len(model.schedule.abar):
        raise dnp.SettingsError(f"--steps {args.steps} is not possible; choose 1 to 1000.")
    if not args.ask and model.captioner is None:
        raise dnp.SettingsError("these weights have no captioner; add --ask to give the words.")
    generator = torch.Generator().manual_seed(args.seed)
    z_T = torch.randn(1, *model.latent_shape(), generator=generator, dtype=torch.float32)
    args.out.mkdir(parents=True, exist_ok=True)

    def draw(name, prompts, rule):
        (picture,) = model.decode(sample(model, prompts, rule, z_T, args.steps))
        picture.save(args.out / f"{name}.png")
        print(args.out / f"{name}.png")
        return picture

    cfg = draw("cfg", ["", prompt], lambda phi, p: guidance.cfg(phi, p, s))
    dns = draw("dns", ["", prompt], lambda phi, p: guidance.dns(phi, p, s))
    if args.ask:
        n_star = ask(f"{args.out / 'dns.png'}: what does it show? n* = ", "leave --ask out")
    else:
        (n_star,) = model.captioner([dns])
    dnp_picture = draw(
        "dnp", ["", prompt, n_star], lambda phi, p, n: guidance.negative_prompt(phi, p, n, s)
    )
    words = ["", "", f"n* = {n_star}"]
    row = (f"s = {s:g}", [cfg, dns, dnp_picture], words)
    contact_sheet([row], ["CFG", "DNS", "DNP"], f'p = "{prompt}"').save(args.out / "sheet.png")
    print(f'{args.out / "sheet.png"}  n* = "{n_star}"')


if __name__ == "__main__":
    run(main, "interrupted; what was printed is saved.")
