"""Standard streams that are closed, full, short of characters or without a reader."""

import importlib
import io
import os
import subprocess
import sys

import pytest

from conftest import ROOT
from dnp.app import png, terminal
from dnp.errors import SettingsError

SHELL = pytest.mark.skipif(os.name == "nt", reason="redirections of a shell")
SLOW = pytest.mark.slow  # each starts a process that imports torch


def shell(line, folder, **environment):
    """`line` in a shell, where $PYTHON finds the package: (exit code, stdout, stderr)."""
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **environment}
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"],
        cwd=folder, env=environment, capture_output=True, timeout=240,
    )  # fmt: skip
    out, err = (b.decode("utf-8", "replace") for b in (done.stdout, done.stderr))
    assert "Traceback" not in err and "Exception ignored" not in err, err
    return done.returncode, out, err


def made(folder):
    paths = sorted((folder / "outputs").glob("*"))
    assert all(png.read_settings(p) for p in paths)
    return [p.name for p in paths]


RUN = '"$PYTHON" -m dnp "a cat" --steps 1'


@SHELL
def test_a_reader_that_goes_loses_no_picture(tmp_path):
    code, out, _ = shell(f"{RUN} --images 3 | head -1", tmp_path)
    assert code == 0 and out.startswith("device: ") and len(out.splitlines()) == 1
    assert made(tmp_path) == [f"a-cat-cfg-{i}.png" for i in range(3)]


@SLOW
@SHELL
def test_a_reader_of_both_streams_that_goes_loses_no_picture(tmp_path):
    code, _, _ = shell(f"{RUN} --images 3 2>&1 | true", tmp_path)
    assert code == 0 and len(made(tmp_path)) == 3


@SLOW
@SHELL
def test_a_prompt_that_standard_output_cannot_encode_is_written_in_escapes(tmp_path):
    line = '"$PYTHON" -m dnp "$P" --steps 1 --images 3 --method auto-dnp --negative "$P"'
    told = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    code, out, _ = shell(line, tmp_path, P="zürich 猫", **told)
    assert code == 0 and out.isascii() and "z\\xfcrich" in out
    assert made(tmp_path) == [f"zürich-猫-auto-dnp-{i}.png" for i in range(3)]


@SHELL
@pytest.mark.parametrize(
    "closed",
    ["<&-", *(pytest.param(c, marks=SLOW) for c in ("< /dev/null", "<&- >&- 2>&-"))],
)
def test_dnp_with_nobody_at_standard_input_keeps_the_dns_image_and_says_so(tmp_path, closed):
    code, _, err = shell(f"{RUN} --method dnp {closed}", tmp_path)
    assert code == 2 and made(tmp_path) == ["a-cat-dnp-dns-0.png"]
    if "2>" not in closed:
        assert err.splitlines()[-1].startswith("error: no words came (")
        assert err.splitlines()[-1].endswith("give them with --negative TEXT.")


@SLOW
@SHELL
def test_words_that_are_no_text_are_refused_in_a_sentence(tmp_path):
    line = f"printf '\\xff\\xfe\\n' | {RUN} --method dnp"
    code, _, err = shell(line, tmp_path, PYTHONUTF8="0", PYTHONIOENCODING="utf-8:strict")
    assert code == 2 and "no words came" in err.splitlines()[-1]


@SLOW
@SHELL
def test_closed_streams_do_not_stop_a_picture(tmp_path):
    code, out, err = shell(f"{RUN} <&- >&- 2>&-", tmp_path)
    assert (code, out, err) == (0, "", "") and made(tmp_path) == ["a-cat-cfg-0.png"]


@SLOW
@SHELL
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_lines_that_a_full_disk_loses_are_noted_once_and_pictures_go_on(tmp_path):
    code, _, err = shell(f"{RUN} --images 2 > /dev/full", tmp_path)
    assert code == 0 and err.count("note: lines are lost (No space left on device)") == 1
    assert len(made(tmp_path)) == 2


@SLOW
@SHELL
def test_the_commands_of_modules_share_it(tmp_path):
    code = (
        "from dnp.app.terminal import run; run(lambda: [print('é' * 99) for _ in range(999)], '')"
    )
    line = f'"$PYTHON" -c "{code}" | head -1'
    assert shell(line, tmp_path, PYTHONIOENCODING="ascii") == (0, "\\xe9" * 99 + "\n", "")


def test_what_is_told_is_one_line_that_moves_no_cursor(capsys):
    def main():
        raise SettingsError("a\x1b[2J\nb\udcff zürich.")

    with pytest.raises(SystemExit):
        terminal.run(main, "")
    assert capsys.readouterr().err == "error: a\\x1b[2J\\nb\\udcff zürich.\n"


def test_streams_keep_what_they_were_and_are_wrapped_once(monkeypatch):
    plain = io.StringIO()
    monkeypatch.setattr(sys, "stdout", plain)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    terminal.streams()
    once = sys.stdout
    terminal.streams()
    print("a line")
    assert sys.stdout is once and plain.getvalue() == "a line\n" and once.getvalue() == "a line\n"


@pytest.mark.parametrize(
    "error", [EOFError(), RuntimeError("lost"), ValueError("closed"), OSError(9, "bad")], ids=repr
)
def test_ask_tells_the_mend_whatever_is_wrong_with_standard_input(monkeypatch, error):
    def broken(question):
        raise error

    monkeypatch.setattr("builtins.input", broken)
    with pytest.raises(SettingsError, match=r"^no words came \(.+\); do this\.$"):
        terminal.ask("n* = ", "do this")


@pytest.mark.parametrize("name", ["benchmark", "__main__", "exact"])
def test_half_an_option_starts_no_long_command(name):
    main = importlib.import_module(f"dnp.evaluation.{name}").main
    with pytest.raises(SettingsError, match=r"--ou x|--dtyp x"):
        main(["--dtyp", "x"] if name == "benchmark" else ["--ou", "x"])
