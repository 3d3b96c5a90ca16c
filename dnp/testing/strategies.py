"""Hypothesis strategies for rules: `given(noises())`, `given(scales())`, ... Needs hypothesis.

    from hypothesis import given
    from dnp.testing import strategies

    @given(strategies.noises(), strategies.scales())
    def test_mine_at_n_equal_to_phi(three, s): ...

Noises are drawn by a seed, so that a failing case shrinks to a small shape and prints short.
"""

from __future__ import annotations

from hypothesis import strategies as st

from dnp.testing import inputs


def scales(low: float = -10.0, high: float = 40.0) -> st.SearchStrategy[float]:
    """Scales s or h; 0 and 1 come first when a case shrinks."""
    return st.sampled_from([0.0, 1.0]) | st.floats(low, high, allow_nan=False)


def levels(T: int = 1000) -> st.SearchStrategy[int]:
    return st.integers(0, T - 1)


def norms(low: float = 1e-2, high: float = 1e3) -> st.SearchStrategy[float]:
    return st.floats(low, high)


def shapes(axes: tuple[int, ...] = inputs.RANKS, batch: int = 9) -> st.SearchStrategy[tuple]:
    """(B, *S) of a batch of 1 to `batch`, and `axes` sides of 2 to 7."""
    sides = st.sampled_from(axes).flatmap(lambda n: st.tuples(*[st.integers(2, 7)] * n))
    return st.tuples(st.integers(1, batch), sides).map(lambda x: (x[0], *x[1]))


def noises(**sizes: object) -> st.SearchStrategy[tuple]:
    """(phi, p, n) of one drawn shape and size; `sizes` are those of `shapes`."""
    return st.builds(inputs.noises, shapes(**sizes), st.integers(0, 2**16), norms())


def toys() -> st.SearchStrategy:
    return st.sampled_from(list(inputs.toys().values()))
