"""A picture depends on nothing that is not in its record: dnp/process.py."""

import functools
from contextlib import contextmanager

import pytest
import torch

import dnp
from conftest import MINI, ROOT
from dnp import toy
from experiments import world


@contextmanager
def default_float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def products_of_bfloat16():
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def nothing_set():
    precision = torch.get_float32_matmul_precision()
    return torch.get_default_dtype(), precision, torch.is_autocast_enabled("cpu")


AROUND = {
    "default dtype": default_float64,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("meta"),
    "precision of products": products_of_bfloat16,
}
CALLS = [("cfg", {}), ("auto-dnp", {}), ("answer", {}), ("ae", {"subjects": "cat, car"})]


WORDS = "a cat and a red car"


@functools.cache
def alone_once(weights, **given):
    """(model, what it makes with nothing around)"""
    model = dnp.load(weights)
    return model, dnp.generate(model, WORDS, **given)


@pytest.mark.filterwarnings("ignore:with steps")
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize(("method", "settings"), CALLS)
def test_what_surrounds_a_call_does_not_change_its_picture(around, method, settings):
    given = dict(method=method, s=3, steps=2, seed=1, size=(32, 32), **settings)
    small = around != "precision of products"  # products of small networks keep their bits in it
    weights = world() if small else MINI
    model, alone = alone_once(weights, **given)
    with AROUND[around]():
        set_by_the_caller = nothing_set()
        within = dnp.generate(dnp.load(weights), WORDS, **given)
        last = [row[1] for row in dnp.trajectory(model, WORDS, **given)][-1]
        assert nothing_set() == set_by_the_caller
    assert nothing_set() == (torch.float32, "highest", False)
    assert all(map(torch.equal, within.latents, alone.latents))
    assert torch.equal(last.float(), alone.latents[1])
    assert [x.tobytes() for x in within.images] == [x.tobytes() for x in alone.images]
    assert (within.settings, within.negatives) == (alone.settings, alone.negatives)


@pytest.mark.parametrize("around", AROUND)
def test_a_toys_chain_is_the_same_too(around):
    model = toy.Mixture([0.5, 0.5], [[2.0], [-2.0]], [[[1.0]], [[1.0]]], [[0]])
    alone = list(dnp.trajectory(model, 0, s=2, steps=10))
    with AROUND[around]():
        within = list(dnp.trajectory(model, 0, s=2, steps=10))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(within, alone, strict=True))


@pytest.mark.parametrize("around", AROUND)
def test_a_rule_of_ones_own_sees_torch_as_it_starts(around):
    model, seen, before = toy.PointMass([2.0], [[-2.0]]), [], nothing_set()

    def rule(eps_phi, eps_p, s):
        seen.append((nothing_set(), torch.get_default_device().type))
        return eps_phi + s * (eps_p - eps_phi)

    with AROUND[around]():
        dnp.generate(model, 0, rule=rule, steps=10)
    assert set(seen) == {(before, "cpu")}


def test_between_the_rows_of_a_trajectory_the_callers_settings_hold():
    model = dnp.load(world())
    with default_float64():
        for _ in dnp.trajectory(model, "a cat", steps=10):
            assert torch.get_default_dtype() == torch.float64
            break
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.filterwarnings("ignore:with steps")
def test_a_model_does_not_depend_on_where_the_process_stands_later(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    here, there = dnp.load("weights/mini"), dnp.load("weights/mini")
    given = dict(method="auto-dnp", s=3, steps=2, size=(32, 32))
    made = dnp.generate(here, "a cat", **given)
    monkeypatch.chdir(tmp_path)
    later = dnp.generate(there, "a cat", **given)
    assert (later.settings, later.negatives) == (made.settings, made.negatives)
    assert torch.equal(later.latents[1], made.latents[1])
