"""`--batch` of the experiments: several prompts of a method in one forward, and the same bytes in
any order."""

import pytest

from runs import evaluate, of

pytestmark = pytest.mark.usefixtures("weights_are_opened_once")
FOUR = ("--batch", 4, "--method", "cfg", "auto-dnp", "ae:ae_refinements=1")


def test_a_picture_does_not_depend_on_what_is_in_its_batch(tmp_path, made):
    evaluate(tmp_path / "one", *FOUR)
    assert [(method, seed) for method, _, seed in made[:6]] == [("cfg", 0), ("cfg", 1)] * 3
    evaluate(tmp_path / "two", *FOUR[:2], "--method", "ae:ae_refinements=1", "--seeds", 1)
    evaluate(tmp_path / "two", *FOUR[:2], "--method", "auto-dnp", "--per-category", 2)
    evaluate(tmp_path / "two", *FOUR)
    one, two = (of(tmp_path / name) for name in ("one", "two"))
    assert len(one) == 3 * 6 + 6 and one.keys() < two.keys()
    for key, record in one.items():
        assert record["content"]["settings"]["batch"] == 4
        for name in ("sha256", "negative", "nfe", "words_nfe"):
            assert record[name] == two[key][name]


def test_a_batch_asks_each_row_for_its_own_prompt(tmp_path, made):
    words = ("--seeds", 1, "--method", "unconditional", "random", "negative-alone", "neglect")
    evaluate(tmp_path / "four", *words, "--batch", 4)
    evaluate(tmp_path / "one", *words)
    named = [
        {(r["content"]["method"], r["content"]["prompt"]): r for r in of(tmp_path / name).values()}
        for name in ("four", "one")
    ]
    assert named[0].keys() == named[1].keys() and len(named[0]) == 5 * 3
    for what, record in named[0].items():
        other = named[1][what]
        assert (record["negative"], record["nfe"]) == (other["negative"], other["nfe"])
        assert "batch" not in other["content"]["settings"]
