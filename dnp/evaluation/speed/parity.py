"""How far this package's numbers are from diffusers' on the same weights."""

from __future__ import annotations

import argparse
import statistics

from dnp.evaluation.speed.rivals import (
    PROMPT,
    Cell,
    noise,
    open_diffusers,
    open_dnp,
    picture,
    require_diffusers,
    side_of,
)

HEAD = [
    "| part | greatest difference of dnp and diffusers / greatest value | dnp to float32, of its "
    "norm | diffusers to float32 |",
    "|---|---|---|---|",
]


class Parity:
    """Compares, in a process of its own: rows of the table for the weights and dtype of a cell."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        require_diffusers()

    def __call__(self, what: str, cell: Cell) -> list[str]:
        import torch

        with torch.no_grad():
            return self.rows(cell)

    def rows(self, cell: Cell) -> list[str]:
        from dnp.sd import speed

        folder, device = self.args.folders[cell.size], self.args.device
        ours = open_dnp(folder, device, cell.dtype)
        speed.apply(ours)
        side = side_of(ours.config.unet, self.args)
        z = noise(device, 1, ours.unet.conv_in.in_channels, side, side)
        mine = numbers_of(ours, z)
        theirs = numbers_of_theirs(open_diffusers(folder, device, cell.dtype), z, mine[0])
        head = f"{cell.size}, {cell.dtype}"
        if cell.dtype == "float32":
            return [
                f"| {head}, {part} | {greatest(x, y):.1e} | | |"
                for part, x, y in zip(PARTS, mine, theirs)
            ]
        wide = open_dnp(folder, device, "float32")
        exact = numbers_of(wide, z)
        rows = [
            f"| {head}, {part} | {greatest(x, y):.1e} | {off(x, e):.1e} | {off(y, e):.1e} |"
            for part, x, y, e in zip(PARTS, mine, theirs, exact)
        ]
        one, two = (picture(m, 1, side, self.args.steps)[0] for m in (ours, wide))
        distance = [abs(a - b) for a, b in zip(one.tobytes(), two.tobytes())]
        said = f"{statistics.mean(distance):.2f} mean, {max(distance)} greatest, of 255"
        return [*rows, f"| {head}, picture of {self.args.steps} steps | | {said} | |"]


PARTS = "text encoder", "U-Net", "VAE decode"


def numbers_of(model, z) -> tuple:
    """Ours: the context, the noise at t = 500 and the decoded latent."""
    import torch

    c = model.encode([PROMPT])
    vae = model.vae.decode(z)
    return getattr(c, "context", c), model.eps(z, torch.tensor(500, device=z.device), c), vae


def numbers_of_theirs(pipe, z, context) -> tuple:
    """diffusers': the noise with our context, so that an error of one part is not another's."""
    import torch

    said = pipe.encode_prompt(
        PROMPT, device=z.device, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    kind, also = pipe.unet.dtype, None
    if len(said) == 4:
        pixels = z.shape[-1] * pipe.vae_scale_factor
        six = torch.tensor([[pixels, pixels, 0, 0, pixels, pixels]], device=z.device)
        also = {"text_embeds": said[2], "time_ids": six.to(kind)}
    eps = pipe.unet(z.to(kind), 500, context.to(kind), added_cond_kwargs=also).sample
    vae = pipe.vae
    if kind == torch.float16 and getattr(vae.config, "force_upcast", False):
        vae = vae.float()  # as its pipeline does
    return said[0], eps, vae.decode(z.to(vae.dtype)).sample


def greatest(x, y) -> float:
    return float((x.float() - y.float()).abs().max() / y.float().abs().max())


def off(x, exact) -> float:
    return float((x.float() - exact.float()).norm() / exact.float().norm())
