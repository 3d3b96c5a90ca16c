"""A rule of one's own: what its file imports, and what it may not do to a chain or remember."""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import dnp
from dnp.errors import SettingsError
from dnp.methods import own, rule
from own_rules import STEPS, Counted, end, pull, walk

NEIGHBOURS = {
    "at the top": ("from near import k", "", "near"),
    "as a module": ("import near", "k = near.k", "near"),
    "inside the function": ("", "from near import k", "near"),
    "a neighbour of a neighbour": ("from near import k", "", "far"),
    "a module of a folder": ("from parts.of import k", "", "parts/of"),
}


@pytest.mark.parametrize("changed", ["own_file", "own_neighbour"])
def test_a_change_of_equal_size_within_a_second_is_run(tmp_path, monkeypatch, changed):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    texts = {
        "own_file": f"from {changed}_near import k\nsoft = lambda eps_p: 1 * k * eps_p\n",
        "own_neighbour": "k = 1\n",
    }
    files = {"own_file": tmp_path / "own_file.py", "own_neighbour": tmp_path / f"{changed}_near.py"}
    values = []
    for factor in (1, 3):
        files[changed].write_text(texts[changed].replace("1", str(factor)))
        for name in files.keys() - {changed}:
            files[name].write_text(texts[name])
        for file in files.values():
            os.utime(file, (1e9, 1e9))
        values.append(own.find(f"{files['own_file']}:soft", "rule")(1))
    assert values == [1, 3]


@pytest.mark.parametrize("how", NEIGHBOURS)
def test_a_neighbour_that_is_imported_belongs_to_the_identity(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    top, inside, file = NEIGHBOURS[how]
    (tmp_path / "parts").mkdir()
    for name in ("near", "far", "parts/of", "other"):
        text = "from far import k" if file == "far" and name == "near" else "k = 1.0"
        (tmp_path / f"{name}.py").write_text(text + "\n")
    signature = "def soft(eps_phi, eps_p, s):"
    (tmp_path / "mine.py").write_text(
        f"{top}\n{signature}\n    {inside}\n    return eps_phi + k * eps_p\n"
    )
    before, first = rule.read("mine.py:soft").sha256, end("mine.py:soft")
    (tmp_path / "other.py").write_text("k = 2.0\n")
    assert rule.read("mine.py:soft").sha256 == before != own.UNKNOWN
    (tmp_path / f"{file}.py").write_text("k = -200.0\n")
    assert rule.read("mine.py:soft").sha256 != before
    assert not torch.equal(end("mine.py:soft"), first)


def in_place(eps_phi, eps_p, eps_n, s, z_t):
    z_t.zero_()
    return eps_p.sub_(eps_n.add_(0.0)).mul_(s).add_(eps_phi)


class InPlace:
    """Eq. 4 that spoils all it is given, in `reset` and `observe` too."""

    def reset(self, z_T):
        z_T.zero_()

    def __call__(self, eps_phi, eps_p, eps_n, s, z_t):
        return in_place(eps_phi, eps_p, eps_n, s, z_t)

    def observe(self, z_t, z_next, t, t_next, **eps):
        for x in (z_t, z_next, *eps.values()):
            x.zero_()


@pytest.mark.parametrize("spoiling", [in_place, InPlace])
@pytest.mark.parametrize("method", ["np", "answer"])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp2m"])
def test_a_rule_that_works_in_place_makes_the_pictures_of_the_pure_one(spoiling, method, sampler):
    given = {"method": method, "s": 2.0, "sampler": sampler}
    given |= {"negative": 1} if method == "np" else {}
    made, pure = (walk(r, **given) for r in (spoiling, "negative_prompt"))
    for row, want in zip(made[:-1], pure[:-1]):
        assert all(torch.allclose(x, y, rtol=1e-9, atol=1e-9) for x, y in zip(row[1:], want[1:]))
    assert torch.allclose(made[-1][1], pure[-1][1], rtol=1e-9, atol=1e-9)


class Counting:
    """CFG whose scale grows with each evaluation."""

    def __init__(self, by=0.1):
        self.by, self.k = by, 0

    def __call__(self, eps_phi, eps_p, s):
        self.k += 1
        return pull(eps_phi, eps_p, s * (1 + self.by * self.k))


class Reset(Counting):
    def reset(self, z_T):
        assert self.k == 0


def test_a_class_with_a_memory_begins_anew_with_each_picture():
    """Without reset and observe too: a seed means one picture, whatever its place in a call."""
    for kind in (Counting, Reset):
        how = {"rule": kind, "steps": STEPS, "s": 2.0, "rule_options": {"by": 0.3}}
        together = dnp.generate(Counted(), 0, seed=4, images=3, **how).latents[1]
        for i, z_0 in enumerate(together):
            assert torch.equal(dnp.generate(Counted(), 0, seed=4 + i, **how).latents[1][0], z_0)
        assert len({z_0.sum().item() for z_0 in together}) == 3
    once = Counting(0.3)  # an object is the caller's, and so is what it remembers
    how["rule"], how["rule_options"] = once, None
    dnp.generate(Counted(), 0, images=2, **how)
    assert once.k == 2 * STEPS


class Observing(Counting):
    def observe(self, z_t, z_next, t, t_next, **eps):
        pass


@pytest.mark.parametrize("remembering", [Observing, Observing()])
def test_observe_without_reset_is_refused_and_reset_alone_is_called(remembering):
    with pytest.raises(SettingsError, match=r"rule Observing has observe\(\) and no reset\(z_T\)"):
        walk(remembering)
    told = []
    only = Counting()
    only.reset = lambda z_T: told.append(z_T)
    rows = walk(only)
    assert len(told) == 1 and torch.equal(told[0], rows[0][1])


def test_files_are_parsed_by_one_thread_at_a_time(monkeypatch):
    """CPython 3.11 raises SystemError otherwise, now and then, as visitors of the page saw."""
    inside, most, parse = [], [], own.ast.parse

    def watched(*source):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.01)
        inside.pop()
        return parse(*source)

    own._imports.cache_clear()
    monkeypatch.setattr(own.ast, "parse", watched)
    with ThreadPoolExecutor(4) as pool:
        names = set(pool.map(own.identity, [dnp.rules.ccfg] * 8))
    assert len(names) == 1 and own.UNKNOWN not in names and max(most) == 1
