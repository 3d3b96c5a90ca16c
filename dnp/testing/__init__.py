"""The identities of guidance as asserts, for any rule and any toy, in anyone's tests.

    from dnp.testing import assert_energy, assert_identities, assert_law, assert_reduces, cases

    assert_identities(mine)                         shape, dtype, finite, batch mates, memory, ...
    assert_reduces(mine, "cfg", when="n = phi")     a rule, or phi, p, n
    assert_energy(mine)                             central differences and closed loops
    assert_law(mine, toy, s=3, covariance=0.25)     the chain's law on Gaussians, without samples

What they look at is drawn (`noises`, `levels`, `scales`, `draws`); `seed` draws it again. `toys()`
are exact models. `dnp.testing.strategies` needs hypothesis; the rest needs torch alone.
`dnp.check_rule` is the same as a table.
"""

from dnp.testing.asserts import (
    assert_energy,
    assert_identities,
    assert_law,
    assert_reduces,
    cases,
)
from dnp.testing.inputs import Draw, draws, levels, noises, scales, toys

__all__ = [
    "Draw",
    "assert_energy",
    "assert_identities",
    "assert_law",
    "assert_reduces",
    "cases",
    "draws",
    "levels",
    "noises",
    "scales",
    "toys",
]
