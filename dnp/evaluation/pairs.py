"""A blind pairwise study of two methods of a run, that people answer in a browser.

    python -m dnp.evaluation.pairs make runs/trio --a answer --b cfg --out study
    python -m dnp.evaluation.pairs read study answers-*.csv

`make` writes a folder: a page that opens from the disk or from any static server, its pictures, the
plan, and the key that unblinds. `read` writes analysis.md and analysis.csv.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dnp.app.terminal import Parser, printable, run


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="python -m dnp.evaluation.pairs", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True, metavar="make | read")
    make = commands.add_parser("make", help="writes a study of a run's pictures")
    add = make.add_argument
    add("run", type=Path, metavar="RUN", help="a folder that python -m dnp.evaluation has made")
    named = "a method of the run; METHOD@S where it was made at several scales"
    add("--a", required=True, metavar="METHOD", help=named)
    add("--b", required=True, metavar="METHOD", help=named)
    add("--out", type=Path, required=True, metavar="FOLDER", help="a new folder")
    add("--pairs", type=int, default=40, metavar="N", help="an even number; default 40")
    add("--repeats", type=int, default=4, metavar="N", help="pairs that come twice; default 4")
    add("--checks", type=int, default=4, metavar="N", help="pairs with a known answer; default 4")
    add("--seed", type=int, default=0, metavar="N", help="of names, order and checks; default 0")
    add("--title", default="Which picture?", metavar="TEXT", help="the page's title")
    contact = "whom answers are sent to, as the page says it"
    add("--contact", default="the person who gave you this page", metavar="TEXT", help=contact)
    read = commands.add_parser("read", help="writes the analysis of a study's answers")
    add = read.add_argument
    add("study", type=Path, metavar="FOLDER", help="a folder that make has written")
    add("answers", type=Path, nargs="+", metavar="ANSWERS.csv", help="one file for each rater")
    add("--out", type=Path, metavar="FOLDER", help="default: the study's folder")
    return p.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    if args.command == "read":
        from dnp.evaluation.people import answers

        report, refused = answers.read(args.study, args.answers, args.out or args.study)
        for sentence in refused:
            print(f"refused: {printable(sentence)}", file=sys.stderr)
        print(report)
        return
    from dnp.evaluation.people import design, page

    study = design.design(
        args.run, args.a, args.b, args.pairs, args.repeats, args.checks, args.seed, args.title,
        args.contact,
    )  # fmt: skip
    page.make(study, args.out)
    for what, count in study.key["left_out"].items():
        print(f"note: {count} pairs are left out ({what}).", file=sys.stderr)
    n = page.showings(study.key)
    length = f"{n} pairs to look at, about {page.minutes(study.key)} minutes."
    print(f"{args.out / 'index.html'}: {study.key['a']['label']} against "
          f"{study.key['b']['label']}, {length}\nPLAN.md says how to host it and what is excluded; "
          "key.json says which is which.")  # fmt: skip


if __name__ == "__main__":
    run(main, "interrupted; nothing is written.")
