"""Which rule for a negative: "p and not n" on pictures whose law is known.

    python -m dnp.evaluation --benchmark not --dry-run      # the plan: pictures, evaluations, hours
    python -m dnp.evaluation --benchmark not                # the whole study
    python -m dnp.evaluation --benchmark not --family settings --choosing 24 --reporting 128

Three families of pairs (p, n), six settings of each rule to choose among, and one outcome, all in
`dnp/evaluation/negatives/rules.py`. Stop it at any time and type the same command to go on;
processes with RANK and WORLD_SIZE share the work in one folder. Reported cells grow seed by seed,
all rules together, so a study that is stopped has the same seeds of every rule.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from dnp.app.png import write
from dnp.app.terminal import Parser
from dnp.errors import SettingsError
from dnp.evaluation import runner
from dnp.evaluation.negatives import making
from dnp.evaluation.negatives.rules import CFG_SCALES, INSIDE, PAIRS, PRIMARY, Setting, rules_of
from dnp.evaluation.negatives.study import FAMILIES, GROUPS, Study, run
from dnp.evaluation.records import writing
from dnp.evaluation.tables import markdown

DTYPES = ("float64", "float32", "float16", "bfloat16")
MINIATURE = Path(__file__).resolve().parents[3] / "weights" / "mini"


def plan(study: Study, model) -> str:
    """The text of --dry-run: pictures and evaluations of every part, and hours by one forward that
    is measured now. Nothing is made or written."""
    silent, body, total = _silent(model), [], [0, 0.0]
    pairs = [["a cat", "a dog"]]
    cost = cache(lambda method, text, steps: making.sampled(
        silent, Setting("", method, json.loads(text)), pairs, ["a dog"], [0], steps
    ).evaluations)  # fmt: skip

    def of(part: str, settings: Sequence[Setting]) -> float:
        """The evaluations of a picture by each of these settings, summed."""
        steps = study.steps[part]
        return sum(cost(x.method, json.dumps(x.settings), steps) for x in settings)

    for family in study.families:
        rules = rules_of(family)
        every = [x for settings in rules.values() for x in settings]
        parts = [("choosing", f"choosing, {family}", len(every), of("choosing", every))]
        one = sum(of("reporting", x) / len(x) for x in rules.values())
        k = study.steps["reporting"]
        more = [] if family == "empty" else [2 * k] + [4 * k, 2 * k] * (family in INSIDE)
        for name, at, source in GROUPS:
            if at == family and source in study.families:
                parts.append(("reporting", name, len(rules) + len(more), one + sum(more)))
        if family == PRIMARY:
            n = 2 * len(CFG_SCALES)
            parts.append(("reporting", "CFG at every scale, settings", n, 2 * k * n))
        for part, name, cells, evaluations in parts:
            pictures = study.units(family, part) * len(PAIRS[family][part])
            if pictures:
                made = f"{cells * pictures:,}", f"{evaluations * pictures:,.0f}"
                body.append([name, f"{cells}", f"{study.steps[part]}", f"{pictures}", *made])
                total = [total[0] + cells * pictures, total[1] + evaluations * pictures]
    seconds = _measured(model)
    body.append(["all", "", "", "", f"{total[0]:,}", f"{total[1]:,.0f}"])
    heads = ["part", "cells", "steps", "pictures each", "pictures", "evaluations"]
    return "\n".join([
        *markdown(heads, body),
        f"Time: {total[1] * seconds / 3600:.2f} hours of one process on {model.device}, at "
        f"{1000 * seconds:.3g} ms for an evaluation of one picture, measured now. What is there "
        "already is counted too.",
    ])  # fmt: skip


def _silent(model):
    """The model with a network that says zero."""
    silent = copy.copy(model)
    silent.eps = lambda z_t, t, c: torch.zeros_like(z_t)
    silent.decode = lambda z_0: [Image.new("RGB", (8, 8))] * len(z_0)
    return silent


@torch.no_grad()
def _measured(model, rows: int = 32) -> float:
    """Seconds of one evaluation of one picture: the median of five forwards."""
    z, c = (
        torch.zeros(rows, *model.latent_shape(None), dtype=model.dtype),
        model.encode([""] * rows),
    )
    z, t, found = z.to(model.device), torch.tensor(500, device=model.device), []
    for _ in range(6):
        start = time.perf_counter()
        model.eps(z, t, c).sum().item()
        found.append((time.perf_counter() - start) / rows)
    return sorted(found[1:])[2]


def parse(argv: Sequence[str] | None):
    p = Parser(prog="python -m dnp.evaluation", description=__doc__)
    add = p.add_argument
    add("--benchmark", choices=["not"], default="not", help="this one")
    add("--family", nargs="+", default=list(FAMILIES), choices=FAMILIES, metavar="NAME",
        help=f"some of {', '.join(FAMILIES)}; default all")  # fmt: skip
    chosen = "pictures of each setting that is chosen among; default 100"
    add("--choosing", type=int, default=100, metavar="N", help=chosen)
    add(
        "--reporting", type=int, default=400, metavar="N", help="of each reported cell; default 400"
    )
    add("--steps", type=int, default=20, metavar="N", help="DDIM steps; default 20")
    fewer = "of the choosing part; default: the same"
    add("--choosing-steps", type=int, metavar="N", help=fewer)
    add("--weights", type=Path, default=MINIATURE, metavar="PATH",
        help="of a miniature, whose eyes see what is drawn")  # fmt: skip
    add("--out", type=Path, default=Path("outputs/not"), metavar="FOLDER")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="float32", choices=DTYPES, help="default float32")
    add("--dry-run", action="store_true", help="print the plan, and make nothing")
    rescore = "sample nothing; tables of the folder's last run as it is, also by older code"
    add("--rescore", action="store_true", help=rescore)
    args = p.parse_args(argv)
    if args.choosing_steps is None:
        args.choosing_steps = args.steps
    for name in ("choosing", "reporting", "steps", "choosing_steps"):
        if not 1 <= (value := getattr(args, name)) <= 1000:
            option = name.replace("_", "-")
            raise SettingsError(f"--{option} {value} is not possible; choose 1 to 1000.")
    need = "outside" in args.family and not set(INSIDE) & set(args.family)
    if need:
        raise SettingsError(
            "outside is asked at what was chosen on settings or colours; add one to --family."
        )
    args.family = [f for f in FAMILIES if f in args.family]
    return args


def as_told(run_json: Path) -> list:
    """What the last run of a folder was asked for. SettingsError where there was none."""
    names = ("circumstances", "steps", "pictures", "families")
    try:
        told = json.loads(run_json.read_bytes())
        circumstances, steps, pictures, families = found = [told[name] for name in names]
        numbers = [x[part] for x in (steps, pictures) for part in ("choosing", "reporting")]
        if not (isinstance(circumstances, dict) and set(families) <= set(FAMILIES)):
            raise ValueError
        if not all(type(n) is int and 1 <= n <= 1000 for n in numbers):
            raise ValueError
        return found
    except (OSError, ValueError, TypeError, KeyError):
        raise SettingsError(
            f"{run_json} is not there or is damaged; leave --rescore out to make it."
        ) from None


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(argv)
    import dnp
    from dnp.evaluation.negatives import report
    from dnp.sd import speed
    from dnp.sd.device import choose_device, choose_dtype

    rank, world = runner.share(dict(os.environ))
    steps = {"choosing": args.choosing_steps, "reporting": args.steps}
    made = (steps, {"choosing": args.choosing, "reporting": args.reporting}, args.family)
    run_json = args.out / "run.json"
    if args.rescore:
        study = Study(args.out, *as_told(run_json))
    else:
        device = choose_device(args.device, rank)
        runner.threads(device)
        model = dnp.load(args.weights, device, choose_dtype(args.dtype, device))
        model.check_finite()
        speed.apply(model)
        if args.dry_run:
            print(plan(Study(None, {}, *made), model))
            return
        eyes = making.Eyes(model, args.weights)
        study = Study(args.out, making.circumstances(model), *made)
        with writing(args.out):
            told = {"circumstances": study.circumstances, "steps": steps}
            told |= {"pictures": study.pictures, "families": args.family}
            write(run_json, (json.dumps(told, indent=1) + "\n").encode())
            run(study, model, eyes, rank, world)
    truth = args.weights / "training" / "negatives.json"
    with writing(args.out):
        print(report.make(study, truth if truth.is_file() else None))
