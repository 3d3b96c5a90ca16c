"""The figures of the course: one look, colour-blind safe, legible on a wall.

    axes = figures.row("s = 0", "s = 1", "s = 3")     a row of panels with these titles
    figures.density(ax, toy.energy(-1, 0))            the exact density, filled contours
    figures.energy(ax, toy.energy(t))                 an energy, lines of equal height
    figures.field(ax, lambda z: toy.score(z, t))      arrows; all of one panel have one scale
    figures.trajectories(ax, dnp.trajectory(...))     chains, from open circles to dots
    figures.units(dnp.trajectory(...), toy.schedule)  one chain of a line in three units
    figures.samples(ax, z_0)                          where chains end
    figures.strip(pictures, labels)                   pictures side by side
    figures.lecture(toy, prompt, scales)              energy, field and trajectories by scale

To put a figure on a slide: `figures.plt.savefig("slide.png")` as the last line of its cell writes it
at 200 dots an inch; `"slide.pdf"` is sharp at any size.

An energy is a callable (B, 2) -> (B,), a field (B, 2) -> (B, 2). Here is only drawing; the
mathematics is in `dnp`. Colours are those of Okabe and Ito.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone need not be installed

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from torch import Tensor

import dnp
from dnp import energy as energies
from dnp import guidance
from dnp import units as units_of

BLUE, ORANGE, GREEN, PINK, SKY, YELLOW, BLACK = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#f0e442", "#222222"
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, PINK, BLACK)
STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # a second sign beside the colour
SIDE = 3.4  # inches of a panel
WINDOW = 4.5  # a panel of the plane shows -WINDOW ... WINDOW
MINI = Path(__file__).resolve().parents[1] / "weights" / "mini"  # the weights of this repository

plt.rcParams.update({
    "figure.dpi": 72, "savefig.dpi": 200, "font.size": 13, "axes.titlesize": 14,
    "axes.labelsize": 13, "lines.linewidth": 2.5, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 12,
    "figure.constrained_layout.use": True, "image.cmap": "Blues", "savefig.facecolor": "white",
})  # fmt: skip


def row(*titles: str, window: float | None = WINDOW, side: float = SIDE) -> list[Axes]:
    """A row of panels; with `window`, square ones of the plane, else free axes for curves."""
    return grid(1, titles, window=window, side=side)[0]


def grid(
    rows: int, titles: Sequence[str], window: float | None = WINDOW, side: float = SIDE
) -> list[list[Axes]]:
    """Rows of panels with titles above the first."""
    wide = side if window else 1.3 * side
    size = (wide * len(titles), side * rows + 0.3)
    _, axes = plt.subplots(rows, len(titles), figsize=size, squeeze=False)
    for ax, title in zip(axes[0], titles):
        ax.set_title(title)
    for ax in axes.flat if window else ():
        ax.set(xlim=(-window, window), ylim=(-window, window), aspect="equal", xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(visible=True, color="#999999")
    return [list(line) for line in axes]


def plane(ax: Axes, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (n,), y (n,) and all points (n * n, 2) of a panel's window."""
    x, y = (
        torch.linspace(*limits, n, dtype=torch.float64) for limits in (ax.get_xlim(), ax.get_ylim())
    )
    return x, y, torch.cartesian_prod(y, x).flip(1)


def density(ax: Axes, E: Callable[[Tensor], Tensor], n: int = 90) -> None:
    """exp(-E) in blue, darkest where it is greatest."""
    x, y, points = plane(ax, n)
    height = E(points).reshape(n, n)
    share = (height.min() - height).exp()
    ax.contourf(x, y, share, levels=[0.01, 0.1, 0.3, 0.6, 1.01], colors=BLUES, zorder=0)


BLUES = ("#e3eef8", "#c2daee", "#9cc3e2", "#74a9d3")


def energy(ax: Axes, E: Callable[[Tensor], Tensor], n: int = 90, top: float = 12.0) -> None:
    """Lines of equal energy up to `top` above the lowest point of the window; dark is low."""
    x, y, points = plane(ax, n)
    height = E(points).reshape(n, n)
    height = height - height.min()
    ax.contourf(x, y, height.clamp(max=top), levels=13, cmap="Blues_r", zorder=0)
    ax.contour(x, y, height, levels=torch.arange(1, top, 2), colors=BLACK, linewidths=0.7)


def field(
    ax: Axes, f: Callable[[Tensor], Tensor], colour: str = BLACK, n: int = 13,
    longest: float | None = None,
) -> None:  # fmt: skip
    """Arrows of f; the longest is as long as the arrows' distance, or `longest` is that length."""
    _, _, points = plane(ax, n + 2)
    low, high = ax.get_xlim()
    inside = ((points - low).abs() > 1e-9).all(1) & ((high - points).abs() > 1e-9).all(1)
    points = points[inside]
    v = f(points)
    gap = (high - low) / (n + 1)
    scale = (longest or v.norm(dim=1).max().item()) / gap
    ax.quiver(
        *points.T, *v.T, angles="xy", scale_units="xy", scale=scale, color=colour, width=0.008,
        zorder=3,
    )  # fmt: skip


def arrow(ax: Axes, start: Tensor, end: Tensor, colour: str, label: str = "") -> None:
    """One arrow from `start` (2,) to `end` (2,) with its name in the legend."""
    ax.quiver(
        *start, *(end - start), angles="xy", scale_units="xy", scale=1, color=colour, width=0.016,
        label=label, zorder=4,
    )  # fmt: skip


def point(ax: Axes, z: Tensor, text: str, colour: str = BLACK, away: tuple = (8, 6)) -> None:
    """A dot at z (2,) with its name; `away` is the name's offset in points."""
    ax.plot(*z, "o", color=colour, ms=8, zorder=5)
    ax.annotate(
        text, tuple(z), away, textcoords="offset points", color=colour, fontsize=14, zorder=6,
        path_effects=[withStroke(linewidth=4, foreground="white")],
    )  # fmt: skip


def trajectories(ax: Axes, rows: Iterable, most: int = 24, colour: str = ORANGE) -> Tensor:
    """The chains of `dnp.trajectory`, the first `most` as lines; returns all z_0, (B, 2)."""
    path = torch.stack([z_t for _, z_t, _, _ in rows])  #             (steps + 1, B, 2)
    for one in path[:, :most].unbind(1):
        ax.plot(*one.T, color=colour, lw=1.1, alpha=0.8, zorder=2)
    ends = path[-1, :most]
    ax.plot(*path[0, :most].T, "o", ms=4, mfc="white", mec=colour, mew=1, zorder=3)
    ax.plot(*ends[inside(ax, ends)].T, "o", ms=5, color=BLACK, zorder=4)
    outside(ax, path[-1])
    return path[-1]


def units(rows: Iterable, schedule) -> None:
    """The chains of `dnp.trajectory` of a toy on a line, in the three units of `dnp.units`: z over
    the unit's own noise level, noise on the left."""
    rows = list(rows)
    path = torch.stack([z_t for _, z_t, _, _ in rows])[:, :, 0]  #     (steps + 1, B)
    abar = torch.stack([schedule.level(t) for t, _, _, _ in rows])
    names = {"variance preserving": "vp", "variance exploding": "ve", "flow": "flow"}
    labels = (r"$\sigma_t$", r"$\sigma$", r"$\tau$")
    for ax, unit, label in zip(row(*names, window=None), names.values(), labels):
        alpha_t, sigma_t = getattr(units_of, unit)(abar)
        z = (alpha_t**2 + sigma_t**2).sqrt()[:, None] * path
        for k, one in enumerate(z.unbind(1)):
            ax.plot(sigma_t, one, ".-", color=COLOURS[k % 5], lw=1.2, ms=4)
        ax.set(xlabel=label, ylabel="z" if ax is ax.figure.axes[0] else "")
        ax.invert_xaxis()


def samples(ax: Axes, z_0: Tensor, colour: str = ORANGE, label: str = "") -> None:
    """Dots; a line of text says what share lies outside the window."""
    dots = z_0[inside(ax, z_0)]
    ax.plot(*dots.T, "o", ms=3, mew=0, alpha=0.55, color=colour, zorder=2, label=label)
    outside(ax, z_0)


def inside(ax: Axes, z: Tensor) -> Tensor:
    """Whether the dots of z (B, 2) are in the window and do not touch its frame."""
    low, high = (torch.tensor(x) for x in zip(ax.get_xlim(), ax.get_ylim()))
    edge = 0.015 * (high - low)  # a dot's radius
    return ((z > low + edge) & (z < high - edge)).all(1)


def outside(ax: Axes, z: Tensor) -> None:
    share = 1 - inside(ax, z).double().mean().item()
    if share > 0.005:
        box = dict(facecolor="white", edgecolor="none", alpha=0.85, pad=2)
        ax.text(0.03, 0.03, f"{share:.0%} outside", transform=ax.transAxes, bbox=box, zorder=6)


def curves(ax: Axes, x: Sequence | Tensor, **ys: Sequence | Tensor) -> None:
    """Curves of one x, each with its name, a colour and a dash; the legend stands above them."""
    ax.autoscale(axis="y")  # a second call starts from the curves, not from the first call's room
    first = len([line for line in ax.lines if not line.get_label().startswith("_")])
    for i, (name, y) in enumerate(ys.items(), first):
        style = dict(color=COLOURS[i % 5], linestyle=STYLES[i % 5])
        ax.plot(x, y, label=name, **style)
    low, high = ax.get_ylim()
    tall = ax.figure.get_figheight() - 0.9  # inches of the panel, about
    legend = 0.27 * len(ax.get_legend_handles_labels()[1]) / tall
    ax.set_ylim(low, low + (high - low) / (1 - legend))
    ax.legend(loc="upper right")


def histogram(ax: Axes, z: Tensor, span: tuple[float, float], label: str = "samples") -> None:
    """The share of samples z (B, 1) per unit length, over `span`."""
    bins = torch.linspace(*span, 41).tolist()
    counts, _ = torch.histogram(z.flatten(), torch.tensor(bins, dtype=z.dtype))
    width = bins[1] - bins[0]
    ax.bar(bins[:-1], counts / len(z) / width, width, align="edge", color="#bbbbbb", label=label)
    ax.set_xlim(span)


def strip(pictures: Sequence, labels: Sequence[str], title: str = "", per_row: int = 8) -> None:
    """Pictures side by side under their labels, in as many rows as they need."""
    rows, wide = -(-len(pictures) // per_row), min(per_row, len(pictures))
    _, axes = plt.subplots(rows, wide, figsize=(1.75 * wide, 2.15 * rows + 0.4), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture, label in zip(axes.flat, pictures, labels):
        ax.imshow(picture, interpolation="bicubic")
        ax.set_title(label, fontsize=12)
    if title:
        axes[0][0].figure.suptitle(title, fontsize=14)


def lecture(
    toy, prompt: int, scales: Sequence[float] = (0, 1, 3, -1), t: int = 300, window: float = WINDOW,
    chains: int = 60,
) -> None:  # fmt: skip
    """Energy, field and trajectories of CFG (Eq. 3) by scale, 3 rows of panels; -s is DNS at s.

    The field is the guided score at level t, over the exact density of the prompt at t; the
    trajectories lie over the exact density of the prompt at the clean end.
    """
    axes = grid(3, [f"s = {s:g}" for s in scales], window)
    E_phi, E_p = toy.energy(t), toy.energy(t, prompt)
    sigma_t = (1 - toy.schedule.level(t)).sqrt()
    for s, top, middle, below in zip(scales, *axes):
        energy(top, energies.cfg_energy(E_phi, E_p, s))
        density(middle, E_p)

        def score(z: Tensor, s: float = s) -> Tensor:
            eps = guidance.cfg(toy.eps(z, t), toy.eps(z, t, prompt), s)
            return energies.score_from_eps(eps, sigma_t)

        field(middle, score)
        density(below, toy.energy(-1, prompt))
        method, scale = ("cfg", s) if s >= 0 else ("dns", -s)
        trajectories(
            below, dnp.trajectory(toy, prompt, method=method, s=scale, steps=50, images=chains)
        )
    for ax, name in zip((a[0] for a in axes), ("energy", "score", "trajectories")):
        ax.set_ylabel(name)
