"""The live page's server: the command line's pictures, one at a time, for whom they are."""

import copy
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time

import pytest
from PIL import Image

from command_line import once_of
from conftest import ROOT, refused
from dnp.app import command_line, desk, drawing, options
from dnp.app import page as served_page
from dnp.app.asks import interval
from dnp.errors import NonFiniteError, WeightsError
from dnp.generation import prepared
from dnp.methods.models import load_own
from dnp.sd import load
from experiments import world
from page import TINY, Client, serving
from test_models import FILE

WORDS = {"negative": "a white balloon"}
SMALL = {"weights": str(world())}  # what `small_model` was opened from; its lines name it


@pytest.fixture(scope="module")
def the_page(small_model):
    with serving(small_model, {"size": (32, 32), **SMALL}) as (port, its_desk):
        yield port, its_desk


@pytest.fixture
def cli(cli, monkeypatch):
    """As for all tests, and the networks of the page are opened once."""
    monkeypatch.setattr(load, "load", once_of(world().resolve(), load.load))
    return cli


@pytest.fixture
def client(the_page):
    return Client(the_page[0])


# ---------------------------------------------------------------------------- the same pictures


def same_as_typed(cli, drawn, pictures, *trusted):
    """Each picture is to the byte what its line writes, and --from makes it again; `trusted` names
    what no picture makes run."""
    for told, data in zip(drawn["pictures"], pictures, strict=True):
        prog, words = shlex.split(told["line"])[:3], shlex.split(told["line"])[3:]
        assert prog == ["python", "-m", "dnp"]
        code, new, _, err = cli(*words)
        assert code == 0, err
        (path,) = [p for p in new if p.name == told["name"]]
        assert path.read_bytes() == data
        kept = path.rename(path.with_name("kept.png"))
        _, (again,), _, _ = cli("--from", kept, *trusted)
        assert again.read_bytes() == data
        kept.unlink()
        again.unlink()


def test_a_look_and_the_picture_by_its_words_are_what_the_lines_below_them_write(
    cli, client, small_model
):
    look, pictures = client.made("look", {**TINY, "seed": "3", "s": "2.5", "s_dns": "1.5"})
    assert [p["role"] for p in look["pictures"]] == ["cfg", "dns"]
    same_as_typed(cli, look, pictures)
    assert look["words"] == small_model.captioner([Image.open(io.BytesIO(pictures[1]))])[0]
    form = {**WORDS, "of": look["id"], "negative_scale": "1.5"}
    picture, own = client.made("picture", form)
    same_as_typed(cli, picture, own)
    line = picture["pictures"][0]["line"]
    assert "--seed 3" in line and '--method dnp --negative "a white balloon"' in line
    assert "--scale" not in line.replace("--negative-scale", "")  # CFG's 2.5 is not this one's


def test_a_rule_with_options_and_steps_is_what_its_line_writes(cli, client):
    look, _ = client.made("look", {"prompt": "a cat & a <b>", "steps": "4", "eta": "0.5"})
    form = {**WORDS, "of": look["id"], "rule": "perp_neg", "rule_options": "w=0.5", "s": "3",
            "first": "2", "last": "3"}  # fmt: skip
    picture, own = client.made("picture", form)
    same_as_typed(cli, picture, own)
    assert "--option w=0.5" in picture["pictures"][0]["line"]


def test_a_sheet_is_what_its_line_writes(cli, client):
    drawn, pictures = client.made("sheet", {"prompt": "a plain sky", "steps": "1", "seed": "5"})
    same_as_typed(cli, drawn, pictures)
    assert [p["role"] for p in drawn["pictures"]] == ["sheet"]
    assert "--batch" not in drawn["pictures"][0]["line"]


def test_the_columns_of_a_sheet_share_their_forwards(cli, small_model):
    form = {"prompt": "a plain sky", "steps": "1", "images": "2"}
    for base, batch in ((SMALL, 2), ({"batch": 3}, 3)):
        with serving(small_model, base) as (port, _):
            drawn, pictures = Client(port).made("sheet", form)
            assert f"--batch {batch}" in drawn["pictures"][0]["line"]
            if batch == 2:
                same_as_typed(cli, drawn, pictures)


def test_what_is_typed_beside_the_page_is_in_every_line(cli, mini):
    base = {"sampler": "dpmpp2m", "size": (32, 48), "steps": 9}
    with serving(mini, base) as (port, _):
        client = Client(port)
        assert json.loads(client.ask("GET", "/about")[2])["start"] == {"steps": "9"}
        look, pictures = client.made("look", TINY)
        same_as_typed(cli, look, pictures)
        assert "--sampler dpmpp2m --size 32 48 --steps 2" in look["pictures"][0]["line"]
        assert look["pictures"][0]["size"] == [48, 32]
        maps = json.loads(client.ask("GET", f"/maps/{look['id']}")[2])
        assert maps["size"] == [4, 6]  # the latent of 8 x 12, halved


def test_a_model_of_ones_own_is_drawn_with_too(cli, tmp_path):
    """Without a captioner and without attention; its lines name it."""
    (tmp_path / "mine.py").write_text(FILE)
    trusted = ("--model", "mine.py:Colours")
    with serving(load_own(trusted[1]), {"model": trusted[1]}) as (port, _):
        client = Client(port)
        assert json.loads(client.ask("GET", "/about")[2])["weights"] == "mine.py:Colours"
        look, pictures = client.made("look", {"prompt": "a cat", "steps": "4"})
        assert look["words"] is None and not look["maps"]
        same_as_typed(cli, look, pictures, *trusted)
        form = {**WORDS, "of": look["id"], "last": "2"}
        picture, own = client.made("picture", form)
        line = picture["pictures"][0]["line"]
        _, (path,), _, _ = cli(*shlex.split(line)[3:])
        assert [path.read_bytes()] == own
        assert "--model mine.py:Colours" in line and "--negative-interval" in line


@pytest.mark.parametrize(
    "typed",
    [
        ["a red car", "--seed", "3", "--scale", "7.5", "--size", "64", "32"],
        ["-x", "--negative=-n", "--normalize", "no"],
        ["a --help", "--compare", "--negative", ""],
        ['a "b" $x `ls` \\ ! %PATH% é 中', "--interval", "0.3", "inf"],
        ["", "--ae-thresholds", "0.1:0.2", "--option", "w=1", "--option", 'k="1"', "--rule", "dng"],
    ],
)
def test_a_line_is_read_as_what_it_was_made_of(typed):
    prompt, *rest = typed
    once = options.parse([*rest, "--", prompt])
    line = options.line(once)
    assert options.parse(shlex.split(line)[3:]) == once


@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_the_steps_in_which_words_act_are_those_of_the_sliders(small_model, steps):
    call, _ = prepared(small_model, "a cat", None, None, None, None, {"steps": steps})
    for first in {1, 2, steps // 2, steps} & set(range(1, steps + 1)):
        for last in {first, (first + steps) // 2, steps}:
            lo, hi = interval(call, first, last)
            inside = [lo < float(small_model.schedule.sigma_ve(t)) <= hi for t, _ in call.pairs]
            assert inside == [first <= i <= last for i in range(1, steps + 1)]


def test_attention_has_a_map_for_each_word(client):
    look, _ = client.made("look", {**TINY, "prompt": "a red elephant"})
    maps = json.loads(client.ask("GET", f"/maps/{look['id']}")[2])
    assert look["maps"] and [word for word, _ in maps["words"]] == ["a", "red", "elephant"]
    height, width = maps["size"]
    for _, values in maps["words"]:
        assert len(values) == height * width and max(values) == 255 and min(values) >= 0


def test_notes_of_a_draw_stand_on_the_page(client):
    look, _ = client.made("look", {**TINY, "prompt": "a zebra (cat:1.3)"})
    assert any("never read zebra" in note for note in look["notes"])
    assert any("weights such as (cat:1.3)" in note for note in look["notes"])
    assert len(look["notes"]) == len(set(look["notes"]))


# ------------------------------------------------------------------------------------ bad input

BAD = [
    ("look", {"prompt": " "}, "prompt", "no prompt"),
    ("look", {**TINY, "steps": "abc"}, "steps", "whole number"),
    ("look", {**TINY, "steps": "0"}, "steps", "at least 1"),
    ("look", {**TINY, "steps": "1001"}, "steps", "choose 1 to 1000"),
    ("look", {**TINY, "seed": "-1"}, "seed", "from 0"),
    ("look", {**TINY, "seed": "--from=x.png"}, "seed", "whole number"),
    ("look", {**TINY, "s": "much"}, "s", "give a number"),
    ("look", {**TINY, "s": "1e400"}, "s", "give a number"),
    ("look", {**TINY, "s_dns": "nan"}, "s_dns", "give a number"),
    ("look", {**TINY, "eta": "2"}, "eta", "from 0 to 1"),
    ("look", {**TINY, "prompt": "x" * 3000}, "prompt", "shorten it to 2000"),
    ("look", {**TINY, "prompt": "a\0b"}, "prompt", "cannot be typed"),
    ("look", {**TINY, "prompt": "\ud800"}, "prompt", "cannot be typed"),
    ("look", {**TINY, "out": "/tmp"}, "prompt", "not a text field"),
    ("look", {**TINY, "seed": 3}, "seed", "not a text field"),
    ("picture", WORDS, "negative", "draw it again"),
    ("sheet", {**TINY, "images": "0"}, "images", "from 1"),
    ("sheet", {**TINY, "images": "900"}, "steps", "steps, and 5,000 are the most here"),
    ("audits", TINY, "", "reload it"),
    ("audit", {**TINY, "prompt": " "}, "prompt", "no prompt"),
    ("audit", {**TINY, "pictures": "1"}, "pictures", "choose 2 to 1000"),
    ("audit", {**TINY, "pictures": "--out=x"}, "pictures", "whole number"),
    ("audit", {**TINY, "seed": "-1"}, "seed", "whole number"),
    ("audit", {**TINY, "steps": "0"}, "steps", "at least 1"),
    ("audit", {**TINY, "steps": "²"}, "steps", "whole number"),
    ("audit", {"prompt": "a cat", "pictures": "900"}, "steps", "steps, and 5,000 are the most"),
    ("audit", {**TINY, "negative": "x"}, "prompt", "not a text field"),
    (["look"], TINY, "", "reload it"),
    ("look", ["prompt"], "prompt", "reload it"),
]


@pytest.mark.parametrize("kind, form, field, sentence", BAD)
def test_a_wrong_setting_is_a_sentence_beside_its_field(client, kind, form, field, sentence):
    status, told = client.draw(kind, form)
    assert (status, told["field"]) == (422, field) and sentence in told["sentence"]


BAD_PICTURES = [
    ({"negative": ""}, "negative", "no negative"),
    ({"s": "x"}, "s", "give a number"),
    ({"negative_scale": "x"}, "negative_scale", "give a number"),
    ({"rule": "perp_neg", "negative_scale": "1"}, "negative_scale", "leave negative_scale out"),
    ({"rule": "perp_neg", "rule_options": "v=1"}, "rule_options", "does not have the option"),
    ({"rule": "perp_neg", "rule_options": "w"}, "rule_options", "KEY=VALUE"),
    ({"rule": "perp"}, "rule", "is unknown"),
    ({"rule": "dng"}, "rule", "choose --eta 1"),
    ({"first": "2", "last": "1"}, "last", "choose 1 to 2"),
    ({"last": "3"}, "last", "choose 1 to 2"),
    ({"last": "²"}, "last", "whole number"),
]


def test_a_wrong_setting_of_a_picture_is_a_sentence_beside_its_field(client, tmp_path):
    look, _ = client.made("look", TINY)
    trap, ran = tmp_path / "trap.py", tmp_path / "ran"
    trap.write_text(f"open({str(ran)!r}, 'w')\ndef f(eps_n): return eps_n")
    files = [({"rule": f"{trap}:f"}, "rule", "is unknown")]
    for form, field, sentence in BAD_PICTURES + files:
        status, told = client.draw("picture", {**WORDS, "of": look["id"], **form})
        assert (status, told["field"]) == (422, field), told
        assert sentence in told["sentence"]
    assert not ran.exists()
    assert client.draw("picture", {**WORDS, "of": "other"})[0] == 422


def test_what_is_found_while_drawing_is_a_sentence_too_and_the_next_draw_goes_on(
    client, monkeypatch, capfd
):
    faults = {
        NonFiniteError("eps is not finite; try a smaller `s=S`."): ("s", "smaller --s S"),
        MemoryError(): ("prompt", "memory is full"),
        ValueError("a bug"): ("prompt", "the terminal"),
    }
    for error, (field, sentence) in faults.items():
        with monkeypatch.context() as patch:
            patch.setattr(drawing, "draw", lambda *_, error=error: (_ for _ in ()).throw(error))
            _, told = client.draw("look", TINY)
            ended = client.ended(told["id"])
        assert ended["field"] == field and sentence in ended["sentence"]
    assert "ValueError: a bug" in capfd.readouterr().err
    assert client.made("look", TINY)[1]


# ------------------------------------------------------------------------------ one at a time


def test_stop_works_at_the_next_step_and_leaves_no_picture(client, the_page):
    _, its_desk = the_page
    _, told = client.draw("look", {**TINY, "steps": "1000"})
    for name, content in client.events():
        if name == "state" and content["place"] and content["place"]["done"] > 0:
            break
    assert client.draw("look", TINY)[1]["sentence"].startswith("A draw of yours is not finished")
    other = Client(the_page[0])
    _, waits = other.draw("look", TINY)
    assert its_desk.place(its_desk.queue[1][0])["before"] == 1
    other.ask("POST", "/stop", {})  # one that waits ends at once
    assert other.ended(waits["id"])["sentence"] == "Stopped." and len(its_desk.queue) == 1
    client.ask("POST", "/stop", {})
    ended = client.ended(told["id"])
    assert ended["sentence"] == "Stopped." and its_desk.visitors and not its_desk.queue
    assert next(c for n, c in client.events() if n == "history") == []


def test_20_clients_that_press_draw_at_once_are_drawn_one_after_the_other(the_page, monkeypatch):
    port, its_desk = the_page
    clients, results, running, most = [Client(port) for _ in range(20)], [None] * 20, [], []
    draws, gate = drawing.draw, threading.Event()

    def counted(*args):
        gate.wait(30)
        running.append(1)
        most.append(len(running))
        draws(*args)
        running.pop()

    monkeypatch.setattr(drawing, "draw", counted)
    monkeypatch.setattr(its_desk.model, "captioner", lambda pictures: ["a quick one"])

    failed = []

    def visit(i):
        try:
            results[i] = clients[i].made("look", {**TINY, "steps": "1", "seed": str(i % 2)})
        except BaseException as e:
            failed.append(repr(e))
            raise

    threads = [threading.Thread(target=visit, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 25  # before the gate opens by itself
    while len(its_desk.queue) < 20:
        assert not failed and time.monotonic() < end, (failed, len(its_desk.queue))
        time.sleep(0.01)
    places = sorted(its_desk.place(who)["before"] for who, _ in its_desk.queue)
    gate.set()
    for thread in threads:
        thread.join(120)
    assert places == list(range(20)) and max(most) == 1
    assert all(r[1] == results[i % 2][1] for i, r in enumerate(results))
    assert results[0][1] != results[1][1]


def test_the_seconds_to_go_are_those_of_all_before(the_page, client):
    _, its_desk = the_page
    first = Client(the_page[0])
    first.draw("look", {**TINY, "steps": "500"})
    client.draw("look", TINY)
    with its_desk.turn:
        own, others = its_desk.queue[1][0], its_desk.queue[0][1]
        left = others.total - others.done + 4
        assert its_desk.place(own)["seconds"] == round(left * its_desk.pace) if its_desk.pace else 1
    for one in (client, first):
        one.ask("POST", "/stop", {})
    while its_desk.queue:
        time.sleep(0.01)


def test_the_oldest_pictures_make_room(small_model, monkeypatch):
    with serving(small_model) as (port, its_desk):
        client = Client(port)
        first, pictures = client.made("look", TINY)
        monkeypatch.setattr(desk, "MOST_DRAWS", 2)
        for seed in "12":
            client.made("look", {**TINY, "seed": seed})
        assert client.ask("GET", f"/pictures/{first['id']}/0.png")[0] == 404
        monkeypatch.setattr(desk, "MOST_BYTES", sum(map(len, pictures)))
        last, _ = client.made("look", {**TINY, "seed": "3"})
        (history,) = [c for n, c in zip(range(1), client.events())][:1]
        assert [draw["id"] for draw in history[1]] == [last["id"]] and len(its_desk.kept) == 1


def test_of_too_many_visitors_the_first_who_waits_for_nothing_is_forgotten(
    small_model, monkeypatch
):
    monkeypatch.setattr(desk, "MOST_VISITORS", 2)
    with serving(small_model) as (port, its_desk):
        first, second, third = (Client(port) for _ in range(3))
        assert first.ask("GET", "/about")[0] == 403 and len(its_desk.visitors) == 2
        assert second.ask("GET", "/about")[0] == third.ask("GET", "/about")[0] == 200


# ------------------------------------------------------------------------------- who is let in


def test_a_strangers_name_for_this_address_gets_nothing(the_page):
    port, _ = the_page
    client = Client(port)
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "", "[::2]"):
        for path in ("/", "/about", "/events"):
            status, told, body = client.ask("GET", path, Host=host)
            assert status == 403 and b"127.0.0.1 and localhost only" in body
            assert "set-cookie" not in told
    for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}", "localhost:1"):
        assert client.ask("GET", "/about", Host=host)[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Content_Type": "text/plain"},
        {"Content_Type": None},
    ],
)
def test_another_site_cannot_draw(client, headers):
    sent = {"Content_Type": "application/json", "Content-Type": None} | headers
    for path in ("/draw", "/stop"):
        assert client.ask("POST", path, {"kind": "look", "form": TINY}, **sent)[0] == 403


def test_who_has_no_cookie_gets_the_page_alone_and_pictures_are_their_visitors(client, the_page):
    look, _ = client.made("look", TINY)
    other = Client(the_page[0])
    for path in (f"/pictures/{look['id']}/0.png", f"/pictures/{look['id']}/7.png"):
        assert other.ask("GET", path)[0] == 404
        assert client.ask("GET", path, Cookie=None)[0] == 403
    assert json.loads(other.ask("GET", f"/maps/{look['id']}")[2]) is None
    for path in ("/../../etc/passwd", "/pictures/../page.py", "/%2e%2e/dnp.json", "/static/x"):
        assert client.ask("GET", path)[0] == 404


def test_a_body_that_is_none_of_ours_is_refused(client):
    for body in (b"", b"x" * 10**6, b"[]", b"{}", b'{"kind": 1}', b"[" * 20000, b"\xff"):
        status, _, told = client.ask("POST", "/draw", body)
        assert status == 400 and b"reload it" in told


def test_the_page_may_run_its_own_script_and_reach_its_own_address_alone(client):
    status, told, text = client.opened
    assert status == 200 and told["cache-control"] == "no-store"
    policy = told["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert "HttpOnly" in told["set-cookie"] and "SameSite" in told["set-cookie"]
    assert not re.search(rb"https?://", text)


def test_on_another_address_nothing_is_served_without_the_token(small_model):
    with serving(small_model, token="secret", host="0.0.0.0") as (port, its_desk):
        for path in ("/", "/?token=", "/?token=secrets", "/?token=%C3%A9", "/about?token=secret",
                     "/page.html", "/nothing"):  # fmt: skip
            client = Client(port, path)
            assert client.opened[0] == 403 and client.cookie is None
        assert not its_desk.visitors
        client = Client(port, "/?token=secret")
        status, told, _ = client.opened
        assert status == 303 and told["location"] == "/"
        assert b"DNP by hand" in client.ask("GET", "/", Host="any.name")[2]
        assert client.made("look", TINY)[1]


# ---------------------------------------------------------------------------------- the command


def test_the_command_says_where_the_page_is_and_ends_with_ctrl_c(tmp_path):
    code = "import signal, dnp.app.command_line as c; "  # a shell may have told it to ignore them
    code += "signal.signal(signal.SIGINT, signal.default_int_handler); c.main()"
    no_captioner = shutil.ignore_patterns("captioner", "clip", "training")  # 2 s of imports
    shutil.copytree(world(), tmp_path / "weights", ignore=no_captioner)
    words = ["--page", "--port", "0", "--host", "127.0.0.1", "--weights", "weights"]
    run = subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        line = next(line for line in run.stdout if line.startswith("page: "))
        port = int(re.search(r"http://127\.0\.0\.1:(\d+)/ \(Ctrl-C", line)[1])
        client = Client(port)
        assert client.draw("look", {**TINY, "steps": "1000"})[0] == 200
        states = (content for name, content in client.events() if name == "state")
        assert next(s for s in states if s["ended"] or s["place"]["done"])["ended"] is None
        run.send_signal(2)
        out, err = run.communicate(timeout=60)
    finally:
        run.kill()
    assert (run.returncode, out, err) == (0, "the page has ended.\n", "")


def test_another_address_prints_a_link_with_a_token(capsys, monkeypatch, small_model):
    monkeypatch.setattr(drawing, "opened", lambda args: small_model)
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: sockets[0].close())
    opened = []
    monkeypatch.setattr(served_page, "open_browser", opened.append)
    command_line.main(["--page", "--host", "0.0.0.0", "--port", "0"])
    link = re.search(r"page: (\S+)", capsys.readouterr().out)[1]
    assert re.fullmatch(r"http://[\w.-]+:\d+/\?token=[\w-]{20,}", link) and opened == [link]
    assert "0.0.0.0" not in link


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["--page", "--out", "x"], "--out does not go with --page"),
        (["--page", "--from", "x.png"], "--from does not go with --page"),
        (["--page", "--negative", "x"], "--negative does not go with --page"),
        (["--page", "--host", "no such host"], "is not an address"),
        (["--page", "--host", "192.0.2.1"], "cannot be served at 192.0.2.1"),
        (["--page", "--port", "65536"], "choose a whole number from 0 to 65535"),
        (["a cat", "--port", "8000"], "--port belongs to --page"),
        (["--page", "--weights", "nothing"], "nothing"),
    ],
)
def test_what_the_page_cannot_be_started_with(cli, words, sentence):
    refused(cli(*words), sentence)


def test_a_port_that_is_taken_is_told(cli, the_page):
    refused(cli("--page", "--port", the_page[0]), f"port {the_page[0]}")


def test_without_the_extra_one_sentence_says_what_to_install(cli, monkeypatch):
    monkeypatch.setattr(served_page, "find_spec", lambda name: None)
    refused(cli("--page"), "pip install -r requirements-page.txt")


def test_help_and_the_rest_need_none_of_the_pages_packages():
    code = "import sys, dnp.app.command_line as c\ntry: c.main(['--help'])\nexcept SystemExit: "
    code += "print([m for m in ('torch', 'starlette', 'uvicorn', 'asyncio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]" and "--page" in done.stdout


def test_a_captioner_that_cannot_be_opened_is_a_note_and_a_person_has_words(small_model, capsys):
    class Captionless(type(small_model)):
        captioner = property(lambda self: self.found(), lambda self, new: self.know(new))

        def found(self):
            if "known" in vars(self):
                return self.known
            raise WeightsError("captioner: not a captioner; give another.")

        def know(self, new):
            self.known = new

    model = copy.copy(small_model)
    model.__class__ = Captionless
    its_desk = desk.Desk(model, {})
    visitor = its_desk.welcome()
    its_desk.ask(visitor, "look", TINY)
    while not visitor.draws and not visitor.ended:
        time.sleep(0.01)
    its_desk.close()
    (draw,) = visitor.draws.values()
    assert draw.words is None and len(draw.pictures) == 2
    assert "give another. The page goes on without a captioner." in capsys.readouterr().err
