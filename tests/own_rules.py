"""Small rules, a method and a toy that counts its evaluations, for the tests of one's own."""

import functools

import torch
import torch.nn.functional as F

import dnp
from dnp import sampling, toy
from dnp.methods.fields import setting
from dnp.methods.method import Method
from dnp.schedule import Schedule

F64, STEPS = torch.float64, 10
SCHEDULE = Schedule(Schedule.stable_diffusion().abar, abar_final=1.0)
PAIRS = SCHEDULE.pairs(STEPS)


class Counted(toy.Mixture):
    """A toy that notes the (level, prompt) of each evaluation."""

    def __init__(self):
        means = torch.tensor([[-1.0, 0.5, 0.2], [1.0, -0.5, 0.9], [0.3, 1.4, -1.1]])
        covariances = 0.2 * torch.eye(3).expand(3, 3, 3)
        super().__init__([0.3, 0.3, 0.4], means, covariances, [[0, 1], [2]], SCHEDULE)
        self.calls = []

    def eps(self, z_t, t, c=None):
        self.calls.append((int(t), c))
        return super().eps(z_t, t, c)


def walk(rule=None, z_T=None, model=None, **given):
    """The rows of a chain of ten steps on the toy, of two samples from fixed noise."""
    z_T = torch.tensor([[0.4, -1.2, 0.1], [-0.7, 0.3, 0.8]], dtype=F64) if z_T is None else z_T
    return list(dnp.trajectory(model or Counted(), 0, rule=rule, z_T=z_T, steps=STEPS, **given))


def end(rule=None, **given):
    return walk(rule, **given)[-1][1]


def pull(eps_phi, eps_p, s, tau=1.0):
    return eps_phi + s * tau * (eps_p - eps_phi)


def push(eps_phi, eps_p, eps_n, s, h=None, w=1.0):
    return eps_phi + s * (eps_p - eps_phi) - w * (s if h is None else h) * (eps_n - eps_phi)


class Module(torch.nn.Module):
    def __init__(self, tau=1.0):
        super().__init__()
        self.tau, self.weight = tau, torch.nn.Parameter(torch.ones((), dtype=F64))

    def forward(self, eps_phi, eps_p, s):
        return pull(eps_phi, eps_p, s, self.tau * self.weight)


class Called:
    def __call__(self, eps_phi, eps_p, s, tau=1.0):
        return pull(eps_phi, eps_p, s, tau)

    def method(self, eps_phi, eps_p, s):
        return pull(eps_phi, eps_p, s)


def decorated(k):
    def decorate(f):
        @functools.wraps(f)
        def inner(**given):
            return k * f(**given)

        return inner

    return decorate


def midpoint(guided, z_t, schedule, steps, eta=0, generators=None, spacing="leading", move=None):
    """A sampler that evaluates between two levels too: twice a step, the last one once."""
    for t, t_next in schedule.pairs(steps, spacing):
        eps = guided(z_t, torch.tensor(t))
        if t_next >= 0:
            half, level = (t + t_next) // 2, schedule.level
            middle, _ = sampling.ddim_step(z_t, eps, level(t), level(half))
            eps = guided(middle, torch.tensor(half))
        z_t, z0_hat = sampling.ddim_step(z_t, eps, schedule.level(t), schedule.level(t_next))
        yield t_next, z_t, z0_hat


class Memory:
    """CFG that notes what it is told."""

    def __init__(self):
        self.resets, self.steps = [], []

    def reset(self, z_T):
        self.resets.append(z_T)
        self.looks = torch.zeros(len(z_T))

    def __call__(self, eps_phi, eps_p, eps_n, s):
        self.looks += 1
        return eps_phi + s * (eps_p - eps_n)

    def observe(self, z_t, z_next, t, t_next, **eps):
        self.steps.append((z_t, z_next, t, t_next, eps))


class Blurred(Method):
    """phi + s (p - n_t), n_t: p's noise of the blurred latent"""

    radius: int = setting(1, "pixels of the blur", low=1, high=8)
    name, own_rule, has_negative = "blurred", "negative_prompt", True

    def negative(self, z_t, t, eps_phi, eps_p):
        k = 2 * self.radius + 1
        blurred = F.avg_pool2d(z_t, k, stride=1, padding=self.radius, count_include_pad=False)
        return self.noises(blurred, t, [self.conditions["p"]])[0]
