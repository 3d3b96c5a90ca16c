"""The arithmetic of votes, proved on raters whose preference is planted."""

from math import comb

import numpy as np
import pytest

from dnp.evaluation.people import agreement as ag

PROMPTS, RATERS, STUDIES = 40, 10, 300
SD_PROMPTS, SD_RATERS = 0.8, 0.5


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def simulate(rng, preference, ties, side_bias, lapses, raters=RATERS, prompts=PROMPTS):
    """(votes, left answers): votes (R, P) are +1 for A, 0 for a tie, -1 for B; lefts are booleans.

    The log odds of A are preference + a prompt's + a rater's own; `ties` is the share of ties among
    attentive answers, `side_bias` the log odds of the left side, `lapses` the share of answers
    that are given at random.
    """
    own = SD_PROMPTS * rng.standard_normal(prompts) + SD_RATERS * rng.standard_normal((raters, 1))
    a_left = np.stack([rng.permutation(np.arange(prompts) % 2) for _ in range(raters)])
    odds = preference + own + side_bias * (2 * a_left - 1)
    votes = np.where(rng.random(odds.shape) < sigmoid(odds), 1, -1)
    votes = np.where(rng.random(odds.shape) < ties, 0, votes)
    votes = np.where(rng.random(odds.shape) < lapses, rng.integers(-1, 2, odds.shape), votes)
    return votes, votes == 2 * a_left - 1


def truth(preference, ties, side_bias, lapses):
    """The share of A with ties as half, over all prompts and raters that could be drawn."""
    x, w = np.polynomial.hermite_e.hermegauss(60)
    odds = preference + x * np.hypot(SD_PROMPTS, SD_RATERS)
    a = sum((w * sigmoid(odds + side)).sum() / w.sum() / 2 for side in (-side_bias, side_bias))
    return (1 - lapses) * (ties / 2 + (1 - ties) * a) + lapses / 2


@pytest.mark.parametrize("planted", [(0.7, 0.2, 0.0, 0.0), (0.7, 0.2, 0.3, 0.1)])
def test_two_way_interval_covers_the_planted_share_and_the_usual_one_does_not(planted):
    rng, true, covered, usual = np.random.default_rng(17), truth(*planted), 0, 0
    for k in range(STUDIES):
        votes, _ = simulate(rng, *planted)
        share = (votes + 1) / 2
        _, low, high = ag.two_way(share, np.ones_like(share), draws=500, seed=k)
        covered += low <= true <= high
        _, low, high = ag.over_votes(share.ravel())
        usual += low <= true <= high
    assert covered / STUDIES >= 0.93
    assert usual / STUDIES < 0.90


def test_share_of_many_raters_is_the_planted_one():
    votes, _ = simulate(np.random.default_rng(3), 0.7, 0.2, 0.3, 0.1, raters=1500, prompts=2000)
    assert ((votes + 1) / 2).mean() == pytest.approx(truth(0.7, 0.2, 0.3, 0.1), abs=0.01)


def test_ties_dropped_and_ties_as_half_are_two_numbers():
    votes = np.array([[1, 1, 0, 0], [1, -1, 0, 0]])
    half, _, _ = ag.two_way((votes + 1) / 2, np.ones(votes.shape))
    dropped, _, _ = ag.two_way((votes == 1) * 1.0, (votes != 0) * 1.0)
    assert (half, dropped) == (5 / 8, 3 / 4)
    assert ag.two_way(np.zeros((2, 4)), np.zeros((2, 4))) is None  # ties only


def test_interval_of_one_rater_is_over_prompts_and_of_equal_cells_a_point():
    assert ag.two_way(np.full((3, 5), 0.5), np.ones((3, 5))) == (0.5, 0.5, 0.5)
    votes = np.arange(200) % 4 == 0
    value, low, high = ag.two_way(votes[None] * 1.0, np.ones((1, 200)))
    assert value == 0.25
    half = ag.Z95 * np.sqrt(0.25 * 0.75 / 200)
    assert (low, high) == pytest.approx((0.25 - half, 0.25 + half), abs=0.01)


def test_cells_sum_the_votes_of_a_rater_on_a_prompt():
    got = ag.cells([1, 2, 4, 8], ["b", "a", "b", "b"], ["x", "x", "y", "x"])
    assert got.tolist() == [[2, 0], [9, 4]]
    with pytest.raises(ValueError, match="one length"):
        ag.cells([1], ["a", "b"], ["x"])


@pytest.mark.parametrize("wins, losses", [(0, 0), (1, 0), (5, 0), (8, 2), (2, 8), (30, 30), (9, 4)])
def test_sign_test_is_the_binomial_sum(wins, losses):
    n, k = wins + losses, min(wins, losses)
    exact = min(1, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
    assert ag.sign_test(wins, losses) == pytest.approx(exact, rel=1e-12)


def test_sign_test_of_many_votes_is_finite_and_rejects_as_often_as_it_says():
    assert 0 < ag.sign_test(2200, 1800) < 1e-9
    drawn = np.random.default_rng(0).binomial(400, 0.5, 4000)
    assert np.mean([ag.sign_test(int(w), 400 - int(w)) < 0.05 for w in drawn]) <= 0.05


def test_majorities_count_each_prompt_once():
    values, prompts = [1, 1, -1, -1, 0, 1, -1], ["p", "p", "p", "q", "q", "r", "r"]
    assert ag.majorities(values, prompts) == (1, 1)


TEXTBOOK = [  # four observers, twelve units; Krippendorff (2011), Computing alpha, section C
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def table_of(ratings):
    given = [(v, u) for row in ratings for u, v in enumerate(row) if v is not None and v == v]
    return ag.counts(*zip(*given))


def test_alpha_is_the_textbook_number():
    assert ag.krippendorff_alpha(table_of(TEXTBOOK)) == pytest.approx(0.7434, abs=5e-5)


def test_alpha_is_that_of_evalica():
    import evalica  # the oracle, and the table that it takes
    import pandas

    rng = np.random.default_rng(5)
    for _ in range(20):
        ratings = rng.integers(0, 3, (6, 25)).astype(float)
        ratings = np.where(rng.random(25) < 0.5, ratings[0], ratings)  # some agreement
        ratings[rng.random(ratings.shape) < 0.3] = np.nan
        theirs = evalica.alpha(pandas.DataFrame(ratings), distance="nominal").alpha
        assert ag.krippendorff_alpha(table_of(ratings)) == pytest.approx(theirs, abs=1e-12)


def test_alpha_is_one_for_agreement_near_zero_for_chance_and_none_for_nothing():
    assert ag.krippendorff_alpha(np.array([[3, 0], [0, 3], [2, 0]])) == 1
    assert ag.krippendorff_alpha(np.array([[3, 0], [2, 0]])) is None  # nothing could disagree
    assert ag.krippendorff_alpha(np.array([[1, 0], [0, 1]])) is None  # no unit has two answers
    rng = np.random.default_rng(0)
    chance = rng.multinomial(5, [0.5, 0.3, 0.2], 4000)
    assert abs(ag.krippendorff_alpha(chance)) < 0.02


def test_interval_of_alpha_holds_its_value_and_narrows_with_units():
    rng, widths = np.random.default_rng(1), []
    for units in (40, 640):
        table = rng.multinomial(5, [0.2, 0.8], units)
        table += 3 * np.eye(2, dtype=int)[rng.integers(0, 2, units)]
        value, low, high = ag.alpha_interval(table)
        assert low < value < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_a_rater_who_always_answers_left_is_flagged_and_an_honest_one_is_not():
    assert ag.one_sided(PROMPTS, 0, p=0.001)
    assert ag.one_sided(0, PROMPTS, p=0.001)
    rng, flagged = np.random.default_rng(2), 0
    for _ in range(200):
        votes, lefts = simulate(rng, 1.5, 0.2, 0.0, 0.0)
        decided = votes != 0
        flagged += sum(
            ag.one_sided(int((left & d).sum()), int((~left & d).sum()), p=0.001)
            for left, d in zip(lefts, decided)
        )
    assert flagged / (200 * RATERS) < 0.001 * 2


def test_a_planted_side_bias_is_found():
    rng = np.random.default_rng(4)
    _, lefts = simulate(rng, 0.5, 0.0, 3.0, 0.0, raters=100)
    found = [ag.one_sided(int(left.sum()), int((~left).sum()), p=0.001) for left in lefts]
    assert np.mean(found) > 0.9


def test_a_rater_who_answers_at_random_fails_the_checks_and_a_careful_one_does_not():
    rng = np.random.default_rng(6)
    at_random = [ag.inattentive(int(w), 6, 0.5) for w in rng.binomial(6, 2 / 3, 1000)]
    careful = [ag.inattentive(int(w), 6, 0.5) for w in rng.binomial(6, 0.05, 1000)]
    assert np.mean(at_random) > 0.85
    assert np.mean(careful) < 0.01
    assert not ag.inattentive(0, 0, 0.5)
