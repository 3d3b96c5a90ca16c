"""Our rules in diffusers' modular pipelines: `dnp.diffusers.guider(rule)`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from dnp.errors import SettingsError, is_finite
from dnp.methods import rule as rules
from dnp.methods.method import SCALE

GIVEN = {"eps_phi", "eps_p", "s", "h", "t"}  # what a guider can give to a rule


def guider(rule: str | Callable, s: float = SCALE, start=0.0, stop=1.0, **options: object):
    """A guider of diffusers' kind, for `pipe.update_components(guider=dnp.diffusers.guider(rule))`.

    rule         as `dnp.generate` takes it: a name, FILE.py:NAME or a function; `options` are its
    s            guidance scale; `new(guidance_scale=...)` of the guider makes another
    start, stop  the share of the steps from which and up to which it guides, as diffusers has them;
                 elsewhere the prompt's prediction stands alone

    eps_p and eps_phi are what the pipeline predicts for the prompt and for its negative prompt, ""
    where none is given: noise, v, or a flow's velocity. A rule that `check_rule` finds the same in
    v is the same there. `t` is the pipeline's timestep. SettingsError for a rule with eps_n, since
    a guider gets two predictions alone, and for one that reads the latent, a sigma or what a step
    made of them: `dnp.from_diffusers(pipe)` runs every rule.
    """
    try:
        from diffusers.guiders import ClassifierFreeGuidance
        from diffusers.guiders.guider_utils import GuiderOutput
    except ImportError:
        raise SettingsError(
            "a guider needs diffusers with guiders, 0.36 or later; install it with pip."
        ) from None
    if not is_finite(s):
        raise SettingsError(f"s = {s!r} is not possible; give a number such as 7.5.")
    ours = rules.read(rule, options)
    if "eps_n" in ours.needs:
        raise SettingsError(
            f"rule {ours.name} needs eps_n, and a guider gets only two predictions, of the prompt "
            "and of the negative prompt; choose a rule without it, or dnp.from_diffusers(pipe)."
        )
    lacks = [*(x for x in ours.needs if x not in GIVEN), *["observe"] * ours.remembers]
    if lacks:
        raise SettingsError(
            f"rule {ours.name} needs {', '.join(lacks)}, which a guider does not get; choose "
            "another, or dnp.from_diffusers(pipe)."
        )

    class RuleGuider(ClassifierFreeGuidance):
        """Two predictions in, the rule's out."""

        of_chain = None

        def _is_cfg_enabled(self) -> bool:
            scale, self.guidance_scale = self.guidance_scale, 0.0  # at 1 too, where theirs is off
            try:
                return super()._is_cfg_enabled()
            finally:
                self.guidance_scale = scale

        def forward(self, pred_cond, pred_uncond=None):
            pred = pred_cond
            if self._is_cfg_enabled():
                if self.of_chain is None or not self._step:
                    self.of_chain = ours.begin(pred_cond)
                scale, t = self.guidance_scale, 0 if self._timestep is None else self._timestep
                seen = {"eps_phi": pred_uncond, "eps_p": pred_cond, "s": scale, "h": scale}
                pred = self.of_chain({**seen, "z_t": pred_cond, "t": torch.as_tensor(t)})
            return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    return RuleGuider(guidance_scale=float(s), start=start, stop=stop)
