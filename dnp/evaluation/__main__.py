"""Runs the benchmarks and prints the tables.

    python -m dnp.evaluation --benchmark ae --per-category 10 --seeds 2 --steps 20 \\
        --method cfg auto-dnp answer --out runs/ae
    torchrun --nproc-per-node 2 -m dnp.evaluation ...   # the same tables, in half the time

Stop it at any time and type the same command to go on. What stands in the folder is kept: ask for
more methods, scales, prompts or seeds, and only those are made. Changed code makes new pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

from dnp.app.terminal import Parser, run
from dnp.errors import SettingsError, memory_is_full

DTYPES = ("float64", "float32", "float16", "bfloat16")
ROOT = Path(__file__).resolve().parents[2]
INTERRUPTED = "interrupted; type the same command to go on."


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = Parser(prog="python -m dnp.evaluation", description=__doc__)
    add = p.add_argument
    named = (
        "ae, ae-choosing, ae-reporting, trio, trio-choosing, hh, semantic, or a file of prompts; "
    )
    named += "and not: which rule for a negative (--benchmark not --help)"
    add("--preset", metavar="NAME", help="a paper's protocol: dnp-paper or answer-paper")
    add("--benchmark", default="ae", metavar="NAME", help=named)
    negatives_help = "a JSON object {prompt: negative}, the words n of method semantic"
    add("--negatives", type=Path, metavar="FILE", help=negatives_help)
    add("--per-category", type=int, metavar="N", help="N prompts of each category; default all")
    add("--method", nargs="+", default=["cfg"], metavar="M", help="name or name:option=value,...")
    add(
        "--baseline",
        metavar="M",
        help="the method that differences are taken to; default: the first",
    )
    add("--scale", nargs="+", type=float, metavar="S", help="default: the weights' own")
    from_help = "each method's best scale in these runs, chosen on other prompts"
    add("--scales-from", nargs="+", type=Path, metavar="RUN", help=from_help)
    strengths_help = "a strength.json, for cfg-equal:of=M and cfg-scheduled:of=M"
    add("--strengths", type=Path, metavar="FILE", help=strengths_help)
    add("--seeds", type=int, default=4, metavar="N", help="N pictures of each prompt; default 4")
    add("--seed-from", type=int, default=0, metavar="N", help="the first seed; default 0")
    add("--steps", type=int, default=20, metavar="N", help="DDIM steps; default 20")
    size_help = "height and width in pixels; default: as the weights were trained"
    add("--size", nargs=2, type=int, metavar=("H", "W"), help=size_help)
    batch_help = "N pictures in each forward, of several prompts; default: one on a CPU"
    add("--batch", type=int, metavar="N", help=batch_help)
    add("--weights", type=Path, default=ROOT / "weights" / "mini", metavar="PATH")
    own_help = "a model of your own instead (dnp/methods/models.py)"
    add("--model", metavar="FILE.py:NAME", help=own_help)
    metric_help = "a metric of your own, (pictures, prompts) -> numbers; it gets a column"
    add("--metric", nargs="+", default=[], metavar="FILE.py:NAME", help=metric_help)
    label_help = "a method's name in tables, figures and file names"
    add("--label", nargs="+", default=[], metavar="METHOD=TEXT", help=label_help)
    primary_help = (
        "the outcome that is tested (Holm's correction over it alone), as full or colours"
    )
    add("--primary", metavar="COLUMN", help=primary_help)
    add("--captioner", type=Path, metavar="FOLDER", help="default: the weights' own")
    add("--clip", type=Path, metavar="FOLDER", help="a CLIP model; default: the weights' own")
    judge_help = "default: the weights' own, if there; for trio, judge.safetensors beside it"
    add("--recogniser", type=Path, metavar="FILE", help=judge_help)
    add("--out", type=Path, default=Path("outputs/evaluation"), metavar="FOLDER")
    add("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="float32", choices=DTYPES, help="default float32")
    rescore_help = "sample nothing; score the pictures that are there again"
    add("--rescore", action="store_true", help=rescore_help)
    dry_help = "make nothing; print pictures, evaluations, disk and hours from one measured step"
    add("--dry-run", action="store_true", help=dry_help)
    strength_help = "measure how strong each method is, fit CFG to it, write strength.json"
    add("--strength", action="store_true", help=strength_help)
    effective = "also how much of CFG is in each method, and its gain at equal effective scale"
    add("--effective-scale", action="store_true", help=effective)
    args = p.parse_args(argv)
    if args.preset is not None:  # its values are defaults: what is typed stands over them
        from dnp.evaluation.presets import PRESETS

        if args.preset not in PRESETS:
            known = " or ".join(PRESETS)
            raise SettingsError(f"preset {args.preset!r} is unknown; choose {known}.")
        p.set_defaults(**PRESETS[args.preset])
        args = p.parse_args(argv)
    return args


def asks_not(argv: list[str] | None) -> bool:
    """Whether it is the benchmark `not`, which has options of its own."""
    p = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    p.add_argument("--benchmark", nargs="?")
    return p.parse_known_args(argv)[0].benchmark == "not"


def main(argv: list[str] | None = None) -> None:
    if asks_not(argv):
        from dnp.evaluation.negatives import command

        command.main(argv)
        return
    args = parse(argv)
    import torch

    import dnp
    from dnp.app.png import write
    from dnp.evaluation import benchmarks, controls, effective, metrics, presets, report, runner
    from dnp.evaluation import dry as dry_run
    from dnp.evaluation import strength as strong
    from dnp.evaluation.grid import Grid, Run
    from dnp.evaluation.measure import Instruments, columns, own_metrics
    from dnp.evaluation.records import writing
    from dnp.methods.models import load_own
    from dnp.methods.words import SEEDS
    from dnp.sd import recogniser, speed
    from dnp.sd.captioner import load_captioner
    from dnp.sd.device import choose_device, choose_dtype
    from dnp.sd.files.fingerprint import Fingerprint, of_folder

    chosen, said, strengths = _check(args)
    names = report.labels(args.label, args.method)
    if not 0 <= args.seed_from <= SEEDS - args.seeds:
        raise SettingsError(f"seeds from {args.seed_from} are not possible; choose 0 to 2^32 - 1.")
    rank, world = runner.share(dict(os.environ))
    every = benchmarks.load(args.benchmark)
    prompts = benchmarks.choose(every, args.per_category)
    if args.model is not None:
        model = load_own(args.model, named=True)
        device = model.device
        runner.threads(device)
    else:
        device = choose_device(args.device, rank)
        dtype = choose_dtype(args.dtype, device)
        runner.threads(device)
        model = dnp.load(args.weights, device, dtype)
        model.check_finite()
        measures = speed.apply(model)
        if rank == 0:
            print(speed.line(measures, model))
    benchmarks.require_drawable(prompts, model.config.words)
    needs = [c.label for c in chosen if c.captioned]
    captioner = args.captioner or model.config.captioner
    if needs and captioner is None:
        raise SettingsError(f"{needs[0]} needs a captioner; give --captioner FOLDER.")
    own_clip, dry = args.weights / "clip", args.dry_run
    clip = args.clip or (own_clip if own_clip.is_dir() and args.model is None else None)
    # A miniature's own CLIP has read captions of its world, and none of the 80 templates.
    closed = clip == own_clip and model.config.words
    templates = metrics.ONE_TEMPLATE if closed else metrics.TEMPLATES
    three = any(len(benchmarks.subjects(p.text)) > 2 for p in prompts)  # or a file of such
    judge = args.recogniser or (
        recogniser.of_weights(args.weights, 3 if three else 2) if args.model is None else None
    )
    instruments = Instruments(
        load_captioner(captioner, device) if needs and not (args.rescore or dry) else None,
        metrics.CLIPScorer(clip, templates, str(device)) if clip and not dry else None,
        recogniser.load_recogniser(judge) if judge and not dry else None,
        of_folder(Path(captioner)).whole if needs else None,
        Fingerprint([judge]).whole if judge else None,
        own_metrics(args.metric),
    )
    texts = [p.text for p in prompts]
    known = columns(bool(clip), bool(judge), texts)
    report.require_primary(args.primary, known)
    scales = tuple(args.scale) if args.scale else (None,)
    seeds = tuple(range(args.seed_from, args.seed_from + args.seeds))
    size = tuple(args.size) if args.size else None
    others = tuple(p.text for p in every)
    words = (
        benchmarks.SEMANTIC if args.negatives is None else benchmarks.read_negatives(args.negatives)
    )
    grid = Grid(tuple(prompts), chosen, scales, seeds, args.steps, size, others, args.batch, words)
    if signal.getsignal(signal.SIGINT) is at_once:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("strength", "effective_scale"):
        if getattr(args, name) and world > 1:
            option = name.replace("_", "-")
            raise SettingsError(f"--{option} runs in one process; leave torchrun out.")
    if strengths is not None:
        controls.require_same(strengths, chosen, args.steps, size, model)
    try:
        if dry:
            with tempfile.TemporaryDirectory() as none:  # a folder that is not there stays so
                folder = args.out if args.out.is_dir() else Path(none)
                work = Run(grid, model, instruments, folder)
                if args.effective_scale:
                    effective.require(work, known)
                print(dry_run.estimate(work, world))
            return
        work = Run(grid, model, instruments, args.out)
        if args.strength:
            strengths = strong.measure(work)
            with writing(args.out):
                write(args.out / "strength.json", (json.dumps(strengths, indent=1) + "\n").encode())
                write(args.out / "strength.md", strong.table(strengths).encode())
            print(strong.table(strengths))
            return
        if args.effective_scale:
            effective.require(work, known)
        runner.run(work, rank, world, args.rescore)
        rows = work.rows()
        if len(rows) < len(grid.units()):
            rest = "of the units are there; other processes are at work."
            print(f"{len(rows)} of {len(grid.units())} {rest}")
            return
        baseline = args.baseline or chosen[0].label
        with writing(args.out):
            manifest = json.dumps(runner.manifest(work), indent=1) + "\n"
            write(args.out / "run.json", manifest.encode())
            numbers = presets.published(Path(args.benchmark).stem, args.preset)
            if said:
                shared = controls.overlap(args.scales_from, texts)
                said += f"; {shared} of the {len(prompts)} prompts here are among those."
            print(report.make(rows, args.out, baseline, numbers, said, names, args.primary))
            if args.effective_scale:
                print(effective.make(work, rows, args.out, args.primary))
            seconds = report.times(rows, names)
            write(args.out / "times.md", seconds.encode())
        print(seconds)
        print(f"{device}, {torch.get_num_threads()} thread(s) for each of {world} process(es)")
    except (RuntimeError, MemoryError) as e:
        if not memory_is_full(e):
            raise
        raise SettingsError("the device's memory is full; choose --device cpu.") from None


def _check(args: argparse.Namespace) -> tuple:
    """The methods of the grid, where their scales are from, and the strengths of the controls.

    SettingsError for a grid that cannot be.
    """
    from dnp.evaluation import controls, strength

    if args.model is not None and args.weights != ROOT / "weights" / "mini":
        raise SettingsError("--weights and --model are both given; leave one out.")
    if args.strength and args.effective_scale:
        raise SettingsError("--strength and --effective-scale are both given; leave one out.")
    for what, value in (("seeds", args.seeds), ("steps", args.steps)):
        if not 1 <= value <= 1000:
            raise SettingsError(f"{value} {what} are not possible; choose 1 to 1000.")
    if args.per_category is not None and args.per_category < 1:
        raise SettingsError(f"{args.per_category} prompts are not possible; choose 1 or more.")
    strengths = None if args.strengths is None else strength.read(args.strengths)
    chosen = tuple(controls.parse(text, strengths) for text in args.method)
    for what, given in (("method", args.method), ("scale", args.scale or [])):
        if len(set(given)) < len(given):
            raise SettingsError(f"a {what} is named twice; leave one out.")
    fixed = [c.label for c in chosen if not controls.has_scale(c)]
    if args.scale and args.scales_from:
        raise SettingsError("--scale and --scales-from both say the scales; leave one out.")
    if args.scale and fixed:
        raise SettingsError(f"{fixed[0]} has a scale of its own; leave it or --scale out.")
    if args.baseline is not None and args.baseline not in args.method:
        raise SettingsError(f"the baseline {args.baseline!r} is not a --method; add it there.")
    said = ""
    if args.scales_from:
        best, said = controls.best_scales(args.scales_from)
        chosen = controls.at_best(chosen, best)
    return chosen, said, strengths


def at_once(*_) -> None:
    """Ctrl-C while modules are imported and weights loaded: nothing is made yet, and what an
    interrupted import prints or swallows is its libraries' choice."""
    with suppress(OSError):  # standard error may be closed
        os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(130)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, at_once)  # `main` puts Python's own back
    run(main, INTERRUPTED)
