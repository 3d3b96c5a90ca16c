"""A model from a pipeline of diffusers that is open in Python: `dnp.from_diffusers(pipe)`.

The networks, the tokenizers and the text pass are the pipeline's own, with its LoRAs and textual
inversions. The samplers, rules and seeds are ours: of its scheduler only the levels are read.
diffusers is not imported here; whoever has a pipeline has it already.
"""

from __future__ import annotations

import warnings

from dnp.diffusers.pipelines import DistilledNote, distilled
from dnp.diffusers.transformers import FromFlux, FromPixArt, FromSD3
from dnp.diffusers.unets import FromPipeline, FromPipelineXL
from dnp.errors import SettingsError

KINDS = {
    "StableDiffusionXLPipeline": FromPipelineXL,
    "StableDiffusionPipeline": FromPipeline,
    "StableDiffusion3Pipeline": FromSD3,
    "FluxPipeline": FromFlux,
    "PixArtAlphaPipeline": FromPixArt,
    "PixArtSigmaPipeline": FromPixArt,
}


def from_diffusers(pipe) -> FromPipeline:
    """A model for `dnp.generate`, `dnp.trajectory` and the experiments, from a pipeline of Stable
    Diffusion 1.x, 2.x, XL or 3, Flux or PixArt.

    It follows the pipeline: what is loaded into it later, or moved to a GPU, counts from then on.
    Its scheduler is read now; a flow's again at each call, since its levels depend on the number of
    steps and the size. Not used: its scheduler's own steps, its safety checker, watermark and
    `clip_skip`. SettingsError for another pipeline; WeightsError for one that cannot be used. A
    note says where a distilled model may ignore negatives.
    """
    kinds = {c.__name__ for c in type(pipe).__mro__}
    for name, kind in KINDS.items():
        if name in kinds:
            if why := distilled(pipe, getattr(pipe, kind.denoiser).config):
                warnings.warn(f"{why}: it may ignore negatives", DistilledNote, stacklevel=2)
            return kind(pipe)
    raise SettingsError(
        f"from_diffusers takes {', '.join(KINDS)}, not {type(pipe).__name__}: what its denoiser "
        "takes and predicts, and what its levels are, is not known here. Write that as a model of "
        "your own (dnp/methods/models.py), or use dnp.pipelines if it is listed there."
    )
