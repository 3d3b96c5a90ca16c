"""ANSWER (Desai and Vasconcelos, arXiv:2508.02973) as a guided model, in our reading.

The paper's body was not at hand. Certain from its abstract and project page: ANSWER needs one
prompt and no captioner; it makes the negative with a chain of at most K DNS steps, Eq. (19) of
arXiv:2411.05473, at the iteration t, and conditions on it in latent space. Everything else is a
choice, and an argument of `answer`; `python -m dnp.evaluation` compares them, see README.md.

    argument    choices
    K           inner DNS steps at t, K_t; cut to the steps that are left
    K_until     the fraction of the steps that have them; after it the step is CFG
    s_dns       scale of the inner chain; None is s
    tensor      which noise is the negative one:
                last           the DNS noise of the last inner step
                next           the DNS noise where the inner chain ends: last, with K + 1
                unconditional  eps_phi where the inner chain ends
                jump           the noise that takes one DDIM step from t to where the chain ends
    form        three-term, phi + s (p - eps_neg), or two-term, eps_neg + s (p - eps_neg)
    normalize   eps_neg gets eps_phi's mean and standard deviation: per sample, per channel, or none
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from dnp.guidance import cfg, dns, negative_prompt, negative_prompt_two_term
from dnp.sampling import ddim_step
from dnp.schedule import EpsFn, Schedule, column

TENSORS = ("last", "next", "unconditional", "jump")
FORMS = {
    "three-term": negative_prompt,
    "two-term": lambda _, p, n, s: negative_prompt_two_term(p, n, s),
}
NORMALIZE = ("sample", "channel", "none")
DEFAULTS = {
    "K": 2,
    "K_until": 0.5,
    "tensor": "last",
    "form": "three-term",
    "normalize": "sample",
}


def each(eps_fn: EpsFn, z_t: Tensor, t: Tensor, conditions: Sequence[object]) -> list[Tensor]:
    """The noises of several conditions, one evaluation after another."""
    return [eps_fn(z_t, t, c) for c in conditions]


def answer(
    eps_fn: EpsFn,
    c_phi: object,
    c_p: object,
    s: float,
    schedule: Schedule,
    pairs: Sequence[tuple[int, int]],
    K: int = DEFAULTS["K"],
    K_until: float = DEFAULTS["K_until"],
    s_dns: float | None = None,
    tensor: str = DEFAULTS["tensor"],
    form: str = DEFAULTS["form"],
    normalize: str = DEFAULTS["normalize"],
    evaluate: Callable = each,
) -> Callable[[Tensor, Tensor], Tensor]:
    """ANSWER as a guided model (z_t, t) -> eps over the steps `pairs`, for any sampler.

    eps = eps_phi + s * (eps_p - eps_neg),  eps_neg from K_t DNS steps that start at z_t
    arXiv:2508.02973, our reading. K_t = 0 is Eq. (3), CFG, bit for bit. The outer chain's state is
    not touched. `evaluations` tells the cost; `evaluate` may put conditions into one forward.
    """
    check(K, K_until, tensor, form, normalize)
    s_dns = s if s_dns is None else s_dns
    step_of = {t: i for i, (t, _) in enumerate(pairs)}
    noises = partial(evaluate, eps_fn)  # (z, t, conditions) -> their noises

    def guided(z_t: Tensor, t: Tensor) -> Tensor:
        eps_phi, eps_p = noises(z_t, t, (c_phi, c_p))
        inner = inner_pairs(step_of[int(t)], pairs, K, K_until, tensor)
        if not inner:
            return cfg(eps_phi, eps_p, s)
        known = (eps_phi, eps_p)
        eps_neg = negative_noise(noises, c_phi, c_p, z_t, inner, schedule, s_dns, tensor, known)
        return FORMS[form](eps_phi, eps_p, match(eps_neg, eps_phi, normalize), s)

    return guided


def negative_noise(
    noises: Callable, c_phi: object, c_p: object, z_t: Tensor, inner: Sequence[tuple[int, int]],
    schedule: Schedule, s_dns: float, tensor: str, known: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """The noise that the inner chain over `inner` gives, in the reading `tensor`; shaped like z_t.

    `known` holds (eps_phi, eps_p) at z_t. arXiv:2508.02973, our reading.
    """

    def both(z: Tensor, t: int) -> Sequence[Tensor]:
        return noises(z, torch.tensor(t, device=z.device), (c_phi, c_p))

    *_, (t_n, z_n, eps_neg) = dns_chain(both, z_t, inner, schedule, s_dns, known)
    if tensor == "next":
        eps_neg = dns(*both(z_n, t_n), s_dns)
    elif tensor == "unconditional":
        (eps_neg,) = noises(z_n, torch.tensor(t_n, device=z_n.device), (c_phi,))
    elif tensor == "jump":
        levels = schedule.level(inner[0][0]), schedule.level(t_n)
        eps_neg = jump(z_t, z_n, *levels, eps_neg)
    return eps_neg


def dns_chain(
    noises: Callable[[Tensor, int], Sequence[Tensor]],
    z_t: Tensor,
    pairs: Sequence[tuple[int, int]],
    schedule: Schedule,
    s: float,
    first: Sequence[Tensor] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """DDIM steps away from p: yields (t_next, z_next, eps), eps being the DNS noise of the step.

    z_next = sample(z_t, eps_phi + s * (eps_phi - eps_p), t)
    Eqs. (2) and (19), arXiv:2411.05473. `noises(z, t)` gives (eps_phi, eps_p); `first` holds them
    at z_t where they are known.
    """
    for t, t_next in pairs:
        eps = dns(*(first or noises(z_t, t)), s)
        z_t, _ = ddim_step(z_t, eps, schedule.level(t), schedule.level(t_next))
        first = None
        yield t_next, z_t, eps


def jump(z_t: Tensor, z_n: Tensor, abar_t: Tensor, abar_n: Tensor, last: Tensor) -> Tensor:
    """The noise for which one DDIM step (eta = 0) from level abar_t to abar_n leads to z_n.

    eps = (z_n - r z_t) / (sigma_n - r sigma_t),  r = sqrt(abar_n / abar_t)
    Solved from Eq. (12), arXiv:2010.02502. Between equal levels no noise moves anything: `last`.
    """
    if abar_n == abar_t:
        return last
    r = (abar_n / abar_t).sqrt()
    below = (1 - abar_n).sqrt() - r * (1 - abar_t).sqrt()
    eps = (z_n - column(r, z_t) * z_t) / column(below, z_t)
    return eps


def match(eps: Tensor, reference: Tensor, normalize: str) -> Tensor:
    """`eps` with the mean and standard deviation of `reference`, of each sample or channel.

    eps = (eps - mean(eps)) / std(eps) * std(reference) + mean(reference)
    A constant eps has no standard deviation: it becomes the mean. ValueError for "channel" if
    there is nothing but channels.
    """
    if normalize == "none":
        return eps
    if normalize == "channel" and eps.ndim < 3:
        raise ValueError(f'{tuple(eps.shape)} has no channels of several numbers; use "sample".')
    dims = tuple(range(1 if normalize == "sample" else 2, eps.ndim))
    (std, mean), (std_r, mean_r) = (
        torch.std_mean(x, dims, correction=0, keepdim=True) for x in (eps, reference)
    )
    std = torch.where(std > 0, std, 1)
    eps = (eps - mean) / std * std_r + mean_r
    return eps


def inner_pairs(
    i: int, pairs: Sequence[tuple[int, int]], K: int, K_until: float, tensor: str
) -> Sequence[tuple[int, int]]:
    """The K_t steps of the inner chain at step i of the outer one; none from K_until on.

    A reading that evaluates where the chain ends needs a level to evaluate at, so that it cannot
    use the last step, to the clean end.
    """
    if i >= K_until * len(pairs):
        return []
    end = len(pairs) if tensor in ("last", "jump") else len(pairs) - 1
    return pairs[i : min(i + K, end)]


def evaluations(steps: int, K: int, K_until: float, tensor: str) -> int:
    """Network evaluations per sample: two for a step, and what its inner chain costs.

    The first inner step uses the two of the outer one; every further step costs two, and the
    evaluation where the chain ends two (next), one (unconditional) or none (last, jump).
    """
    ends = {"last": 0, "jump": 0, "unconditional": 1, "next": 2}[tensor]
    moves = [len(inner_pairs(i, range(steps), K, K_until, tensor)) for i in range(steps)]
    return 2 * steps + sum(2 * (m - 1) + ends for m in moves if m)


def check(K: int, K_until: float, tensor: str, form: str, normalize: str) -> None:
    """ValueError, one sentence with the mend, for options that are not possible."""
    for name, value, known in (
        ("tensor", tensor, TENSORS),
        ("form", form, FORMS),
        ("normalize", normalize, NORMALIZE),
    ):
        if value not in known:
            raise ValueError(f"{name} = {value!r} is unknown; choose {', '.join(known)}.")
    if type(K) is not int or not 0 <= K <= 1000:
        raise ValueError(f"K = {K} inner steps are not possible; choose 0 to 1000.")
    if not isinstance(K_until, int | float) or not 0 <= K_until <= 1:
        raise ValueError(f"K_until = {K_until} is not possible; choose a fraction from 0 to 1.")
