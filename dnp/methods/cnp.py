"""Complete negative prompting (arXiv:2508.02973), which asks a captioner at every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnp.errors import SettingsError
from dnp.methods.answer import dns_chain, inner_pairs
from dnp.methods.fields import setting
from dnp.methods.method import SCALE, Method
from dnp.methods.words import captioner_of, describe

if TYPE_CHECKING:
    from torch import Tensor


class CNP(Method):
    """phi + s (p - n_t), a caption n_t at each step

    At every step t a complete DNS chain from z_t, a caption of its picture, and Eq. (4) with it:
    steps^2 + 2 steps evaluations. At step i two and one for the negative, and 2 (steps - i - 1) for
    the chain, whose first step shares its two with the outer one.
    """

    s_dns: float | None = setting(None, "scale of the inner chain; default: the weights', else s")
    name, own_rule, has_negative = "cnp", "negative_prompt_two_scale", True
    two_scale, cost = True, "T^2 + 2T"

    def complete(self, call) -> None:
        super().complete(call)
        if self.s_dns is None:
            self.s_dns = call.recommended("dns", SCALE if self.s is None else self.s)
        if not hasattr(call.model, "decode"):
            raise SettingsError("method cnp captions pictures, and this model makes none.")

    def words(self, call):
        self.captioner, self.decode = captioner_of(call, self.name), call.model.decode
        return super().words(call)

    def negative(self, z_t: Tensor, t: Tensor, eps_phi: Tensor, eps_p: Tensor) -> Tensor:
        """The noise of the words for what DNS makes of z_t; `negatives` holds the last of them."""
        rest = inner_pairs(int(t), self.pairs, len(self.pairs), 1.0)
        *_, (_, z_0, _) = dns_chain(
            self.both, z_t, rest, self.schedule, self.s_dns, (eps_phi, eps_p)
        )
        self.negatives = describe(self.captioner, self.decode(z_0))
        return self.noises(z_t, t, [self.encode(self.negatives)])[0]
