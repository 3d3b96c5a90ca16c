"""The page's audits: the command's own, in the same queue, and handed in from above."""

import json
import shlex
from types import SimpleNamespace

import pytest

from dnp import __main__ as command
from dnp.app import command_line, page
from dnp.app.desk import Desk, Refused
from dnp.evaluation import audit as audits
from dnp.evaluation.page_audits import Audits, told
from dnp.sd import load
from page import Client, serving
from test_audit import of_toy  # noqa: F401 - a fixture

SMALL = {"prompt": "a <b>crown</b>", "pictures": "2", "steps": "2", "seed": "3"}


def test_an_audit_is_what_its_line_writes(mini, tmp_path, monkeypatch):
    with serving(mini, {"seed": 3, "size": (32, 32)}) as (port, _):
        client = Client(port)
        assert json.loads(client.ask("GET", "/about")[2])["audits"] is True
        drawn, (data,) = client.made("audit", SMALL)
        found = json.loads(client.ask("GET", f"/audits/{drawn['id']}")[2])
        assert json.loads(client.ask("GET", "/audits/other")[2]) is None
    (one,) = drawn["pictures"]
    assert one["role"] == "audit" and drawn["kind"] == "audit" and not drawn["maps"]
    assert any("does not take --size" in note for note in drawn["notes"])
    assert any("never read" in note for note in drawn["notes"])
    monkeypatch.setattr(load, "load", lambda *_: mini)
    python, words = shlex.split(one["line"])[:3], shlex.split(one["line"])[3:]
    assert python == ["python", "-m", "dnp.evaluation.audit"] and words[0] == SMALL["prompt"]
    audits.main([*words, "--out", str(tmp_path)])
    assert (tmp_path / one["name"]).read_bytes() == data
    table = (tmp_path / one["name"]).with_suffix(".csv").read_text()
    assert table == found["csv"]
    assert "in 0." in found["power"] and found["verdict"][0].startswith("brings along: ")
    assert "The family (41): cat" in found["labels"]


def test_what_follows_is_a_negative_with_its_rule_and_scale(of_toy):  # noqa: F811
    one = told(of_toy[0.6])
    assert one["follows"] == {"negative": 1, "rule": "negative_prompt_two_term", "s": "3"}
    (red,) = [row for row in one["rows"] if row[0] == "red"]
    assert len(red) == len(one["heads"]) == 8 and red[5].startswith("**")
    assert told(of_toy[0.2])["follows"] is None
    assert not any(cell.startswith("**") for row in told(of_toy[0.2])["rows"] for cell in row)


def test_in_the_table_what_the_verdict_names_is_bold_alone(of_toy):  # noqa: F811
    found = of_toy[0.6]
    rare = found.comparisons[2].fewer  # DNS lacks it, and the verdict asks for more alone
    _, rows = audits.counted(found)
    bold = {(row[0], i) for row in rows for i, cell in enumerate(row) if cell.startswith("**")}
    assert ("red", 5) in bold and ("red", 7) not in bold and [x.label for x in rare] == ["red"]


def test_an_audit_is_stopped_at_its_next_step_and_the_next_draw_goes_on(mini):
    with serving(mini) as (port, desk):
        client, other = Client(port), Client(port)
        _, drawn = client.draw("audit", {"prompt": "a car", "pictures": "20"})
        other.draw("audit", SMALL)
        assert desk.place(desk.queue[1][0])["before"] == 1
        for name, content in client.events():
            if name == "state" and content["place"] and content["place"]["seconds"] is not None:
                break
        place = content["place"]
        assert place["kind"] == "audit" and place["total"] == audits.evaluations(20, 20) // 2
        assert isinstance(place["done"], int) and 0 < place["done"] < place["total"]
        client.ask("POST", "/stop", {})
        assert client.ended(drawn["id"])["sentence"] == "Stopped."
        assert next(c for n, c in other.events() if n == "history" and c)[0]["kind"] == "audit"


def test_the_base_of_the_page_is_in_the_line(mini):
    base = {"device": "cpu", "captioner": "weights/mini/captioner", "prompt": "-x"}
    plan = Audits(mini, base).plan({"prompt": "-x"})
    assert plan.line == (
        "python -m dnp.evaluation.audit --device cpu --captioner weights/mini/captioner -- -x"
    )
    assert plan.total == audits.evaluations(48, 20) // 2


def test_a_desk_without_audits_has_none(mini):
    desk = Desk(mini, {})
    try:
        assert desk.about()["audits"] is False
        with pytest.raises(Refused, match="reload it"):
            desk.ask(desk.welcome(), "audit", SMALL)
    finally:
        desk.close()


def test_the_command_hands_them_in(monkeypatch):
    served = []
    monkeypatch.setattr(page, "serve", lambda typed, audits: served.append(audits))
    command.main(["--page"])
    model = SimpleNamespace()
    assert isinstance(served[0](model, {}), Audits)
    command_line.main(["--page"])
    assert served[1] is None
