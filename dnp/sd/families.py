"""The families of Stable Diffusion that are read, as rows of one table."""

from __future__ import annotations

from dataclasses import dataclass

from dnp.sd import config
from dnp.sd.config import TextConfig, UNetConfig, VAEConfig


@dataclass(frozen=True)
class Family:
    """One row: its name, what it is called, and the networks of its published size."""

    name: str
    called: str
    text: TextConfig
    unet: UNetConfig
    vae: VAEConfig
    text_2: TextConfig | None = None  # a second text encoder, whose pooled output is read too

    def fits(self, unet: UNetConfig) -> bool:
        """Whether a U-Net is built as this family's is, at any width."""
        kinds = ((u.use_linear_projection, u.added_dim > 0) for u in (unet, self.unet))
        return len(set(kinds)) == 1


FAMILIES = {
    f.name: f
    for f in (
        Family("mini", "the miniature", config.MINI_TEXT, config.MINI_UNET, config.MINI_VAE),
        Family("sd1", "Stable Diffusion 1.x", config.SD1_TEXT, config.SD1_UNET, VAEConfig()),
        Family("sd2", "Stable Diffusion 2.x", config.SD2_TEXT, config.SD2_UNET, VAEConfig()),
        Family(
            "sdxl", "Stable Diffusion XL (SDXL)", config.SDXL_TEXT, config.SDXL_UNET,
            config.SDXL_VAE, config.SDXL_TEXT_2,
        ),
    )
}  # fmt: skip


def of(unet: UNetConfig) -> Family | None:
    """The family of a U-Net: the row of exactly this network, else the first that is built so."""
    rows = [f for f in FAMILIES.values() if f.unet == unet]
    rows += [f for f in FAMILIES.values() if f.name != "mini" and f.fits(unet)]
    return rows[0] if rows else None
