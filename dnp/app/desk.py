"""What stands behind the live page: one model that draws one thing at a time, and who waits for it.

A visitor is a browser; its tabs share one history. A draw is one run of the command line or more:
what its fields mean (`dnp/app/asks.py`) becomes the words of a command, which `parse` and `resolve`
read, and which stand below the picture. So the page can do nothing that the command cannot. An
audit is a draw too; what plans and makes it is handed in, since it stands on a higher floor.
"""

from __future__ import annotations

import secrets
import sys
import threading
import time
import traceback
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

from dnp.app import drawing, png
from dnp.app.asks import KINDS, checked, field_of, rules
from dnp.app.attention import WordMaps
from dnp.app.options import line, parse, resolve, words_of
from dnp.app.other_interfaces import tell_what_is_not_read
from dnp.errors import DnpError, SettingsError, memory_is_full
from dnp.generation import prepared
from dnp.methods import sorted_out
from dnp.methods.method import SCALE
from dnp.methods.words import describe

MOST_BYTES = 256 * 2**20  # of all pictures that are kept; the oldest go first
MOST_VISITORS, MOST_DRAWS = 1000, 200  # and of one visitor's history
MOST_STEPS = 5000  # of one draw, since others wait for it


class Stopped(Exception):
    """A visitor pressed stop, or the desk is closed."""


class Refused(Exception):
    """A draw that cannot be: a sentence, and the field that it stands beside."""

    def __init__(self, sentence: str, field: str):
        super().__init__(sentence)
        self.field = field


@dataclass
class Picture:
    """A PNG as the command line writes it, and the line that writes it."""

    role: str  # cfg, dns, picture, sheet or audit
    name: str
    line: str
    size: tuple[int, int]
    data: bytes


@dataclass(eq=False)
class Draw:
    """What a visitor asked for, and what it became."""

    kind: str
    form: dict[str, str]  # as the page's fields held it
    typed: list[dict]  # of each run, as `parse` gave it
    lines: list[str]  # to type
    runs: list[SimpleNamespace]
    total: int  # steps
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    done: float = 0  # a step of an audit may be half of one of CFG
    began: float | None = None
    stopped: bool = False
    pictures: list[Picture] = field(default_factory=list)
    words: str | None = None  # the captioner's, for the DNS image
    maps: dict | None = None  # attention to each word
    audit: dict | None = None  # what an audit found
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(len(picture.data) for picture in self.pictures)

    def shown(self) -> dict:
        """What the page is told of it; the pictures themselves are fetched."""
        pictures = [{k: v for k, v in vars(p).items() if k != "data"} for p in self.pictures]
        told = {k: getattr(self, k) for k in ("id", "kind", "form", "words", "notes")}
        steps = self.runs[0].settings.get("steps", 50)
        return told | {"pictures": pictures, "maps": self.maps is not None, "steps": steps}

    def ended(self, sentence: str | None) -> dict:
        """How it ended: with a sentence, and beside which field, or well."""
        at = "" if sentence is None else field_of(sentence, self.kind)
        return {"id": self.id, "kind": self.kind, "sentence": sentence, "field": at}


@dataclass(eq=False)
class Visitor:
    id: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    draws: dict[str, Draw] = field(default_factory=dict)  # those that are finished, in order
    version: int = 0  # of `draws`
    ended: dict | None = None  # how the last one ended


class Desk:
    """The model, its worker, its queue and its visitors. `base` is what was typed beside --page,
    and `audits(model, base)` plans and makes audits (`dnp/evaluation/page_audits.py`)."""

    def __init__(self, model, base: dict, audits: Callable | None = None):
        self.model, self.base = model, base
        self.audits = audits(model, base) if audits else None
        self.visitors: OrderedDict[str, Visitor] = OrderedDict()
        self.queue: deque[tuple[Visitor, Draw]] = deque()  # the first is being drawn
        self.kept: deque[tuple[Visitor, Draw]] = deque()
        self.turn, self.closed, self.pace = threading.Condition(), False, None
        self.worker = threading.Thread(target=self.work, name="dnp draws", daemon=True)
        self.worker.start()

    def about(self) -> dict:
        """What the page's fields start with, and may hold."""
        config = self.model.config
        weights = self.base.get("model") or self.base.get("weights", "weights/mini")
        scales = {m: config.scales.get(m, SCALE) for m in ("cfg", "dns", "dnp")}
        start = {k: str(self.base[k]) for k in ("prompt", "seed", "steps", "eta") if k in self.base}
        told = {"weights": weights, "scales": scales, "start": start, "rules": rules()}
        return told | {"audits": self.audits is not None}

    # ------------------------------------------------------------------------------ visitors

    def welcome(self) -> Visitor:
        """A new visitor; of too many the first who waits for nothing is forgotten."""
        with self.turn:
            waiting = {visitor.id for visitor, _ in self.queue}
            oldest = next((i for i in self.visitors if i not in waiting), None)
            if len(self.visitors) >= MOST_VISITORS and oldest is not None:
                del self.visitors[oldest]
            visitor = Visitor()
            self.visitors[visitor.id] = visitor
        return visitor

    def ask(self, visitor: Visitor, kind: object, form: object) -> Draw:
        """Puts a draw into the queue; Refused if it cannot be drawn."""
        draw = self.planned(visitor, kind, form)
        with self.turn:
            if any(who is visitor for who, _ in self.queue):
                raise Refused("A draw of yours is not finished; wait for it, or stop it.", "")
            self.queue.append((visitor, draw))
            self.turn.notify()
        return draw

    def planned(self, visitor: Visitor, kind: object, form: object) -> Draw:
        """A draw, checked as far as it can be before its first step."""
        typed, lines, runs, total, settings = [], [], [], 0, {}
        try:
            form = checked(kind if self.audits or kind != "audit" else None, form)
            asked = KINDS[kind](form, self.model, visitor.draws.get(form.get("of", "")))
            if kind == "audit":
                typed, runs = asked, [self.audits.plan(*asked)]
                lines, total = [runs[0].line], runs[0].total
            for settings in asked if kind != "audit" else ():
                of_page = {k: self.base[k] for k in ("batch",) if k in self.base}
                typed.append(parse(words_of(self.base | settings | of_page)))
                lines.append(line(typed[-1]))
                runs.append(args := resolve(typed[-1]))
                methods = drawing.methods_of(args)
                for method, of_method in methods.items():
                    negative = drawing.negative_for(args, method)
                    sorted_out(method, negative, of_method)
                    if not args.compare:
                        prepared(self.model, args.prompt, method, negative, None, None, of_method)
                kinds = drawing.kinds_of(self.model, args, methods)
                total += drawing.steps_of_all(args, methods, kinds)
            if total > MOST_STEPS:
                raise SettingsError(
                    f"this takes {total:,} steps, and {MOST_STEPS:,} are the most here; choose "
                    "fewer, since others wait for them."
                )
        except DnpError as e:
            at = field_of(e.typed, kind)
            at = "s_dns" if at == "s" and settings.get("method") == "dns" else at
            raise Refused(e.typed, at) from None
        return Draw(kind, dict(form), typed, lines, runs, total)

    def stop(self, visitor: Visitor) -> None:
        """Ends a visitor's draw: one that waits at once, one that is drawn at its next step."""
        with self.turn:
            for place in [x for x in self.queue if x[0] is visitor]:
                place[1].stopped = True
                if place[1].began is None:
                    self.queue.remove(place)
                    visitor.ended = place[1].ended("Stopped.")

    def place(self, visitor: Visitor) -> dict | None:
        """Where a visitor's draw stands: how many are before it, its steps, the seconds to go."""
        with self.turn:
            steps = 0
            for before, (who, draw) in enumerate(self.queue):
                steps += draw.total - draw.done
                if who is visitor:
                    seconds = None if self.pace is None else round(steps * self.pace)
                    told = {"id": draw.id, "kind": draw.kind, "before": before}
                    return told | {"done": int(draw.done), "total": draw.total, "seconds": seconds}
        return None

    # ---------------------------------------------------------------------------- the worker

    def work(self) -> None:
        """Draws what is asked for, one after the other, until the desk is closed."""
        try:
            getattr(
                self.model, "captioner", None
            )  # opened while the first visitor writes their prompt
        except DnpError as e:
            print(f"note: {e.typed} The page goes on without a captioner.", file=sys.stderr)
            self.model.captioner = None
        while True:
            with self.turn:
                self.turn.wait_for(lambda: self.queue or self.closed)
                if self.closed:
                    return
                visitor, draw = self.queue[0]
                draw.began = time.monotonic()
            told = self.drawn(draw)
            with self.turn:
                self.queue.popleft()
                visitor.ended = draw.ended(told)
                if told is None:
                    self.keep(visitor, draw)

    def drawn(self, draw: Draw) -> str | None:
        """Draws it; the sentence if it cannot be drawn to its end."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("always")
                mine = lambda: threading.current_thread() is self.worker  # noqa: E731
                warnings.showwarning = lambda note, *_: mine() and draw.notes.append(str(note))
                for text in dict.fromkeys((draw.runs[0].prompt, draw.runs[-1].negative or "")):
                    tell_what_is_not_read(text, self.model.config.words)
                for args, command in zip(draw.runs, draw.lines):
                    self.run(draw, args, command)
        except Stopped:
            return "Stopped."
        except DnpError as e:
            return e.typed
        except Exception as e:
            if memory_is_full(e):
                return "The device's memory is full; start the page with a smaller --size."
            traceback.print_exc()
            return "This could not be drawn; the terminal of the page says why."
        draw.notes = list(dict.fromkeys(draw.notes))
        return None

    def run(self, draw: Draw, args: SimpleNamespace, command: str) -> None:
        """One command, by the function that the command line calls."""
        if draw.kind == "audit":
            sheet, draw.audit = self.audits.make(args, lambda count: self.step(draw, count))
            data = png.png(sheet)
            draw.pictures.append(Picture("audit", args.name, command, sheet.size, data))
            return
        role = "sheet" if args.compare else {None: "cfg", "dnp": "picture"}.get(args.method, "dns")
        maps = WordMaps(self.model, args.prompt if role == "cfg" else None)

        def step(count: int) -> None:
            maps.step()
            self.step(draw, count)

        def keep(picture, name: str, settings: dict) -> str:
            data = png.png(picture, settings)
            draw.pictures.append(Picture(role, f"{name}.png", command, picture.size, data))
            captioner = getattr(self.model, "captioner", None)
            if role == "dns" and captioner is not None:
                (draw.words,) = describe(captioner, [picture])
            return name

        methods = drawing.methods_of(args)
        kinds = drawing.kinds_of(self.model, args, methods)
        bar = SimpleNamespace(update=step, write=lambda *_, **__: None, clear=lambda: None)
        with maps:
            drawing.draw(self.model, [args], methods, kinds, bar, keep)
        draw.maps = draw.maps or maps.of_words(args.settings.get("size"))

    def step(self, draw: Draw, count: float) -> None:
        """Counts steps of the draw that is made; Stopped if it is to end."""
        draw.done += count
        self.pace = (time.monotonic() - draw.began) / draw.done
        if draw.stopped or self.closed:
            raise Stopped

    def keep(self, visitor: Visitor, draw: Draw) -> None:
        """Adds a draw to its visitor's history; the oldest of all make room for it."""
        visitor.draws[draw.id] = draw
        visitor.version += 1
        self.kept.append((visitor, draw))
        if len(visitor.draws) > MOST_DRAWS:
            self.kept.remove((visitor, visitor.draws.pop(next(iter(visitor.draws)))))
        size = sum(one.size for _, one in self.kept)
        while size > MOST_BYTES and len(self.kept) > 1:
            whose, oldest = self.kept.popleft()
            size -= oldest.size
            del whose.draws[oldest.id]
            whose.version += 1

    def close(self) -> None:
        """Ends the worker, at its next step."""
        with self.turn:
            self.closed = True
            self.turn.notify_all()
        self.worker.join(10)
