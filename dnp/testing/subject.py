"""A rule as the identities see it: read once, called with copies, its answer looked at."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dnp.errors import DnpError
from dnp.methods.method import Method
from dnp.methods.rule import NOISES, find, read
from dnp.sampling import ddim_step, noise_like
from dnp.testing.inputs import RANKS, Draw, generator, oblique
from dnp.testing.of_method import Drawn, OfMethod
from dnp.toy import Gaussian, Mixture

LEVEL = ("t", "t_next", "sigma_t", "sigma_next")
STEPS = 3  # of a chain, for a rule that remembers


class Fault(Exception):
    """A rule did not return one noise shaped like z_t; the message ends a sentence about it."""


class Subject:
    """A rule on a toy: a name, FILE.py:NAME, a function, an object, a class, or a Method's class.

    A class that takes a `posterior` gets the toy's exact p(n | z_t). SettingsError for what is
    not a rule.
    """

    def __init__(
        self, rule: str | Callable, options: Mapping | None = None, toy: Mixture | None = None
    ) -> None:
        found = find(rule) if isinstance(rule, str) else rule
        self.source, self.given, self.toy = found, dict(options or {}), toy or oblique()
        filled = self.given
        self.of_method = isinstance(found, type) and issubclass(found, Method)
        takes = isinstance(found, type) and "posterior" in inspect.signature(found).parameters
        if takes and not isinstance(self.toy, Gaussian):  # whose prompts have no share in phi
            filled = {"posterior": self.posterior, **filled}
        self.rule = OfMethod(found, filled) if self.of_method else read(found, filled)
        self.name = rule if isinstance(rule, str) else self.rule.name
        self.needs, self.remembers = self.rule.needs, self.rule.remembers
        self.changed = False  # whether a call has changed an argument
        self.ranks = RANKS  # the numbers of axes of a sample that are drawn
        self.found: dict[tuple, object] = {}  # what `find` found, by (identity, seed, ranks)

    def posterior(self, z_t: Tensor, t: int | Tensor) -> Tensor:
        """The toy's p(n | z_t); of a sample of another size, its first elements'."""
        D = self.toy.means.shape[-1]
        z = torch.nn.functional.pad(z_t.flatten(1)[:, :D].double(), (0, max(D - z_t[0].numel(), 0)))
        return self.toy.posterior(z, t, 1)

    def on(self, toy: Mixture) -> Subject:
        """The same rule on another toy."""
        return Subject(self.source, self.given, toy)

    def __call__(
        self, noises: tuple[Tensor, Tensor, Tensor], z_t: Tensor, s: float, h: float, t: int,
        t_next: int, fresh: bool = True, model: Mixture | None = None,
    ) -> Tensor:  # fmt: skip
        """The rule's noise; before its first step if `fresh`. Fault if it is not a noise.

        `model` is what a method asks for noises; None predicts those that are given.
        """
        eps = dict(zip(NOISES, noises), z_t=z_t)
        copies = {k: x.clone() for k, x in eps.items()}
        rest = dict(s=s, h=h, t=t, t_next=t_next, sigma_t=t, sigma_next=t_next)
        given = {k: x for k, x in {**copies, **rest}.items() if k in self.needs}
        for k in set(given) & set(LEVEL):
            sigma = k.startswith("sigma")
            x = given[k]
            given[k] = (1 - self.toy.schedule.level(x)).sqrt() if sigma else torch.tensor(x)
        try:
            if fresh:
                self.rule = self.rule.begin(z_t.clone())
            if self.of_method:
                held = copies.pop("z_t")
                model = model or Drawn(tuple(copies.values()), z_t, self.toy.schedule)
                copies["z_t"] = held
                value = self.rule.value(model, held, s, h, t, t_next)
            else:  # the function itself, since a Rule would hide what it changes in place
                value = self.rule.function(**given, **self.rule.passed)
        except (Exception, SystemExit) as e:
            raise Fault(f"fails: {e.__cause__ or e}".split("\n")[0]) from e
        self.changed |= any(not same(copies[k], x) for k, x in eps.items())
        if not isinstance(value, Tensor):
            raise Fault(f"returns {'None' if value is None else type(value).__name__}")
        if value.shape != z_t.shape:
            raise Fault(f"returns the shape {tuple(value.shape)} for {tuple(z_t.shape)}")
        if value.dtype != z_t.dtype:
            raise Fault(f"returns {value.dtype} for {z_t.dtype}".replace("torch.", ""))
        return value.detach().clone()

    def at(self, draw: Draw, noises: tuple | None = None, **scales: float) -> Tensor:
        """The value at a draw, with other noises or scales if they are given."""
        s, h = scales.get("s", draw.s), scales.get("h", draw.h)
        return self(noises or draw.noises(), draw.z_t(), s, h, draw.t, draw.t_next)

    def observe(
        self, z_t: Tensor, z_next: Tensor, t: int, t_next: int, noises: Sequence[Tensor]
    ) -> None:
        """After a step, for a rule that remembers."""
        if not self.remembers:
            return
        eps = dict(zip(NOISES, noises))
        seen = {k: x.clone() for k, x in eps.items() if k in self.needs}
        try:
            self.rule.observe(z_t.clone(), z_next.clone(), t, t_next, **seen)
        except DnpError as e:
            raise Fault(f"fails to observe: {e.__cause__ or e}".split("\n")[0]) from e

    def chain(self, draw: Draw, keep: slice = slice(None), forget: bool = False) -> list[Tensor]:
        """The values along three steps of DDPM with random noises, of the kept samples, and the
        value after them, from a new start if `forget`; a rule without a memory has one value."""
        z_t, top = draw.z_t()[keep], max(draw.t, 4 * STEPS)
        ts = [top - i * top // (2 * STEPS) for i in range(STEPS + 2)]
        values: list[Tensor] = []
        for i, (t, t_next) in enumerate(zip(ts, ts[1:])):
            noises = tuple(x[keep] for x in replace(draw, seed=draw.seed + 500 * i).noises())
            fresh = i == 0 or (forget and i == STEPS)
            values.append(self(noises, z_t, draw.s, draw.h, t, t_next, fresh))
            if not self.remembers:
                break
            levels = (self.toy.schedule.level(x) for x in (t, t_next))
            noise = noise_like(z_t, list(map(generator, range(draw.shape[0])))[keep])
            z_next, _ = ddim_step(z_t, values[-1], *levels, 1.0, noise)
            self.observe(z_t, z_next, t, t_next, noises)
            z_t = z_next
        return values

    def predictions(self, z_t: Tensor, t: int) -> tuple[Tensor, Tensor, Tensor]:
        """The toy's (phi, p, n) at a level; NaN for what the rule does not ask for."""
        wanted = zip(NOISES, (None, 0, 1))
        none = torch.full_like(z_t, torch.nan)
        return tuple(self.toy.eps(z_t, t, c) if k in self.needs else none for k, c in wanted)

    def field(
        self, t: int, s: float, h: float, axes: tuple[int, ...] = (), t_next: int | None = None
    ) -> Callable[[Tensor], Tensor]:
        """z (B, D) -> the guided noise (B, D) of the toy at level t, samples shaped (B, *axes)."""

        t_next = max(t - 20, -1) if t_next is None else t_next

        def eps(z: Tensor) -> Tensor:
            z = z.reshape(-1, *(axes or z.shape[1:]))
            three = self.predictions(z, t)
            return self(three, z, s, h, t, t_next, model=self.toy).flatten(1)

        return eps


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in shape and bits, NaN too."""
    return torch.equal(a, b) or (a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num()))


def error(got: Tensor, want: Tensor) -> float:
    """|got - want| / |want| over all elements; infinite where one is not finite."""
    value = ((got - want).norm() / want.norm().clamp(min=1e-300)).item()
    return value if value == value and bool(got.isfinite().all()) else float("inf")
