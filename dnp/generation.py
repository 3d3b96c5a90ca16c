"""A prompt, a method and a seed -> pictures: `dnp.generate`, and its steps: `dnp.trajectory`.

    generate = the words for n, if the method makes them + one chain for each batch + the decoder
    a chain  = a method, which is a guided model (z_t, t) -> eps, under a sampler

A model is an object with `eps(z_t, t, c) -> eps`, `schedule`, and `latent_shape(size)` or
`sample(n, t, c, generator=)`: a Stable Diffusion, a toy, a pipeline of diffusers, or your own
(`dnp/methods/models.py` says what else it may have). `t` is the index of a level in
`schedule.abar`; where the levels depend on the number of steps, a call asks for the model on those,
`model.at_steps(steps, size)`, so that the rest of it sees one fixed schedule.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from dnp import dpmpp, process, sampling
from dnp.errors import NonFiniteError, SettingsError
from dnp.methods import METHODS, models, own, sorted_out, weighted
from dnp.methods.chain import Chain
from dnp.methods.method import Asked, Method
from dnp.methods.result import Result, record, whole

SAMPLERS = {"ddim": sampling, "dpmpp2m": dpmpp}  # a name: the file that has its loop
Row = tuple[int, Tensor, Tensor, Tensor | None]  # (t, z_t, z0_hat, eps)


class Call(Chain):
    """A chain's settings, with what is drawn. SettingsError for what cannot be."""

    rows = ()  # of `generate_rows`: what each picture is of

    def open(self, model, prompt, negative, captioner, progress) -> Call:
        """With the model, the prompt and what is given for n."""
        models.require(model)
        if hasattr(model, "at_steps"):
            model = model.at_steps(self.steps, self.size)
        self.model, self.prompt, self.negative = model, prompt, negative
        self.captioner, self.progress = captioner, progress
        self.config, self.takes = getattr(model, "config", None), getattr(model, "takes", ())
        self.device = torch.device(getattr(model, "device", "cpu"))
        if isinstance(prompt, list | tuple):
            raise SettingsError("a list is not a prompt; give one, and call again for the next.")
        for what, text in (("prompt", prompt), ("negative prompt", negative)):
            if hasattr(model, "encode") and not isinstance(text, str | None):
                raise SettingsError(f"a {what} is a text, not {type(text).__name__}; give one.")
        if hasattr(model, "encode") and prompt is None:
            raise SettingsError('a prompt is a text, not None; the empty one is "".')
        if self.steps > (T := len(model.schedule.abar)):
            raise SettingsError(f"steps = {self.steps} is not possible; choose 1 to {T}.")
        if self.sampler != "ddim" and self.eta:
            raise SettingsError(f"sampler {self.sampler} has no eta; leave it out.")
        for name in ("phi", "original_size", "crop", "target_size"):
            if getattr(self, name) is not None and name not in self.takes:
                raise SettingsError(f"{name} belongs to SDXL weights; leave it out.")
        if "phi" in self.takes and self.phi is None:
            self.phi = self.config.phi
        self.empty = "" if hasattr(model, "encode") else None
        self.spacing = getattr(model, "spacing", getattr(self.config, "spacing", "leading"))
        self.pairs = model.schedule.pairs(self.steps, self.spacing)
        if self.pairs[0][0] < 0.9 * (T - 1):
            warnings.warn(
                f"with steps = {self.steps}, {self.spacing} spacing starts at t = "
                f"{self.pairs[0][0]} of {T}, where a picture should be half made; choose 10 or "
                "more steps, best a divisor of the levels",
                stacklevel=5,
            )
        return self

    def encode(self, prompts: list) -> object:
        """The condition of prompts; that of a toy is its own integer, one for a whole forward."""
        if not hasattr(self.model, "encode"):
            if any(prompt is not prompts[0] and prompt != prompts[0] for prompt in prompts):
                raise SettingsError("a model without encode takes one prompt in a forward.")
            return prompts[0]
        return self.model.encode(prompts, **{k: getattr(self, k) for k in self.takes})

    def recommended(self, method: str, fallback: float) -> float:
        """The scale that the weights recommend for a method, or for CFG to one of your own."""
        scales = getattr(self.config, "scales", {})
        return scales.get(method, fallback if method in METHODS else scales.get("cfg", fallback))

    def row(self, i: int) -> Asked:
        """What picture i is of."""
        return self.rows[i] if self.rows else Asked(self.prompt, self.seed + i, self.negative)

    def again(self, method: str, rows: Sequence[Asked], **other: object) -> Result:
        """Another method on the same model and chain: DNS images."""
        names = ("steps", "eta", "sampler", "batch", "size", *self.takes)
        same = {k: getattr(self, k) for k in names}
        return generate_rows(self.model, rows, method, progress=self.progress, **same | other)

    def generators(self, rows: Sequence[int]) -> list[torch.Generator]:
        """One CPU generator for each picture, by its seed."""
        return [torch.Generator().manual_seed(self.row(i).seed) for i in rows]

    def noise(self, generators: list[torch.Generator], positive: str) -> Tensor:
        """z_T of each generator; of a toy from its own law at the first level."""
        model = self.model
        models.require_latents(model)
        if hasattr(model, "latent_shape"):
            shape = len(generators), *model.latent_shape(self.size)
            empty = torch.empty(shape, dtype=torch.float32)
            kinds = (getattr(model, k, torch.float32) for k in ("dtype", "latent_dtype"))
            dtype = functools.reduce(torch.promote_types, kinds, torch.float32)
            return sampling.noise_like(empty, generators).to(self.device, dtype)
        t, c = self.pairs[0][0], self.prompt if positive == "p" else None
        return torch.cat([model.sample(1, t, c, generator=g) for g in generators])


@process.apart()
def generate(
    model, prompt, method: str | type | None = None, negative=None, s: float | None = None,
    steps: int = 50, seed: int = 0, images: int = 1, captioner: Callable | None = None, *,
    progress: Callable[[int], None] | None = None, **settings,
) -> Result:  # fmt: skip
    """Samples `images` pictures of `prompt`, with the seeds seed, seed + 1, ...

    method    a name of `dnp.METHODS`, a subclass of `dnp.methods.method.Method`, or FILE.py:NAME;
              None is cfg, np2 where a negative is given, or what the signature of `rule` asks for
    negative  the negative prompt n; "" is phi. np and np2 need one; dnp and auto-dnp take it as n*
              and then make no DNS image
    s         guidance scale; None is the weights' recommendation for the method, else 7.5
    captioner dnp: a callable picture -> text. auto-dnp, cnp: pictures -> texts, or the weights' own
    progress  called after every step with the number of pictures that made it
    settings  the other fields of `Call` and of the method, as `python -m dnp --help` lists them

    The initial noise of a picture comes from its own CPU generator, so a seed means one picture. On
    a CPU it depends, to the bit, on seed, settings and `batch`, not on what is sampled beside it.
    SettingsError for what is not possible; NonFiniteError names the step.
    """
    given = {**settings, "s": s, "steps": steps, "seed": seed, "images": images}
    return made_of(*prepared(model, prompt, method, negative, captioner, progress, given))


@process.apart()
def generate_rows(
    model, rows: Sequence[Asked], method: str | type, captioner: Callable | None = None, *,
    progress: Callable[[int], None] | None = None, **settings,
) -> Result:  # fmt: skip
    """`generate` for pictures that each have their own prompt, seed, words n and subjects."""
    first = rows[0]
    given = {**settings, "images": len(rows), "seed": first.seed, "subjects": first.subjects}
    call, guided = prepared(model, first.prompt, method, first.negative, captioner, progress, given)
    call.rows = rows
    return made_of(call, guided)


def made_of(call: Call, guided: Method) -> Result:
    """The pictures of a call."""
    made = record(call, guided)  # now: a weight file that was changed is told before the work
    words, dns, evaluated = guided.words(call)
    latents, pictures, gradients, negatives, sizes = [], [], [], [], []
    for rows, k in batches(call):
        z_T, chain = begun(call, guided, rows, [words[i] for i in rows])
        for t, z_0, _, _ in chain:  # noqa: B007
            if t >= 0 and call.progress:
                call.progress(k)
        latents.append((z_T[:k].float().cpu(), z_0[:k].float().cpu()))
        for some in z_0[:k].split(batch_size(call.device)) if hasattr(call.model, "decode") else ():
            pictures += call.model.decode(some)
        gradients += guided.gradients[:k]
        negatives += guided.negatives[:k]
        sizes += [guided.sizes] if call.particles else []
        evaluated += guided.evaluations * k + sum(guided.gradients[:k])
    z_T, z_0 = (torch.cat(parts) for parts in zip(*latents))
    made["negative"] = negatives[0]
    nfe = whole(evaluated / call.images)
    return Result(pictures, (z_T, z_0), negatives, nfe, gradients, made, dns, sizes)


@process.apart()
def trajectory(
    model, prompt, method: str | type | None = None, negative=None, s: float | None = None,
    steps: int = 50, seed: int = 0, images: int = 1, captioner: Callable | None = None, *,
    z_T: Tensor | None = None, **settings,
) -> Iterator[Row]:  # fmt: skip
    """The chain of `generate` as rows (t, z_t, z0_hat, eps), of all pictures in one batch.

    steps + 1 rows; the last is (-1, z_0, z_0, None). `model` may be a toy: its prompts are integers
    and phi is None. `z_T` (B, *S) is where the chain starts; None draws it from the seeds, for a
    toy from its own law at the first level, since its noisiest level is not quite N(0, I).
    """
    given = {**settings, "s": s, "steps": steps, "seed": seed, "images": images}
    for name in ("batch", "particles", "corrector"):
        if settings.get(name) is not None:
            raise SettingsError(f"trajectory is one chain of all its pictures; leave {name} out.")
    call, guided = prepared(model, prompt, method, negative, captioner, None, given)
    call.images = images if z_T is None else len(z_T)
    words, _, _ = guided.words(call)
    return process.each_apart(begun(call, guided, range(call.images), words, z_T)[1])


def begun(
    call: Call, guided: Method, rows: Sequence[int], words: list, z_T: Tensor | None = None
) -> tuple[Tensor, Iterator[Row]]:
    """z_T and the chain of a batch: the pictures of these rows with their words n."""
    if weighted.asked(call):
        return weighted.begun(call, guided, rows[0], words[0])
    generators = call.generators(rows)
    with torch.no_grad():
        z_T = call.noise(generators, guided.positive) if z_T is None else z_T
        guided.begin(call, words, z_T, [call.row(i) for i in rows])
    return z_T, walk(call, guided, z_T, generators)


def walk(call: Call, guided: Method, z_T: Tensor, generators) -> Iterator[Row]:
    """The rows of `trajectory` from z_T on. NonFiniteError names a step that overflows."""
    sample = getattr(SAMPLERS[call.sampler], f"{call.sampler}_sample")
    at_fault = f", rule {guided.rule.name}" if guided.named else ""
    with torch.no_grad():
        chain = sample(guided, z_T, call.model.schedule, call.steps, call.eta, generators,
                       call.spacing, guided.move)  # fmt: skip
        for step, ((t, t_next), (_, z_next, z0_hat)) in enumerate(zip(call.pairs, chain), 1):
            if not torch.isfinite(z_next).all():
                raise NonFiniteError(
                    f"eps is not finite at step {step} of {call.steps}: the weights are damaged, "
                    f"or the scale{at_fault} or the half precision overflows; try a smaller `s=S` "
                    "or `dtype=float32`."
                )
            z_t, eps = guided.observe(z_next, t, t_next)
            yield t, z_t, z0_hat, eps
    yield -1, z_next, z_next, None


def prepared(model, prompt, method, negative, captioner, progress, given) -> tuple[Call, Method]:
    """The call and the method of settings by name, checked and filled in."""
    kind, of_call, of_method = sorted_out(method, negative, given)
    call = Call(**of_call).open(model, prompt, negative, captioner, progress)
    guided = kind(**of_method)
    guided.label = method if own.is_file(method) else kind.name
    guided.complete(call)
    weighted.require(call, guided)
    return call, guided


def batches(call: Call) -> Iterator[tuple[list[int], int]]:
    """The rows of each forward, and how many of them are pictures. With `batch` the others repeat
    the last: every forward has one shape, in which a row's bits do not depend on the others."""
    size = 1 if weighted.asked(call) else call.batch or batch_size(call.device)
    for first in range(0, call.images, size):
        rows = list(range(first, min(first + size, call.images)))
        yield rows + rows[-1:] * ((call.batch or 0) - len(rows)), len(rows)


def batch_size(device: torch.device) -> int:
    """How many pictures are sampled together at most where `batch` is not given."""
    return 1 if device.type == "cpu" else 16
