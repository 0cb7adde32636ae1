"""Draw a phase diagram: measured growth over misalignment and gain, with the boundaries that scalars decide.

Plain records in, a matplotlib figure out; nothing is measured here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .canvas import BLUE, GREEN, INK, MUTED, ORANGE, VERMILLION, drawing
from .regimes import phase

READINGS = ("right", "wrong", "silent", "undecided")
FILL = {"right": GREEN, "wrong": VERMILLION, "silent": "#d0d0d0", "undecided": ORANGE}
HATCH = {"right": "", "wrong": "xxxx", "silent": "", "undecided": "...."}
SPREAD = 1.5  # nats per layer at the ends of the colour scale
Record = Mapping[str, Any]


def phase_figure(records: Sequence[Record], *, tails: Sequence[str], xis: Sequence[float], layers: int) -> Figure:
    """Draw growth over (angle, gain), one panel per tail and gap ratio, above a count of who was right.

    Parameters
    ----------
    records : rows with sigma, kappa, xi, tail, layers, growth, and the readings naive_reading and exact_reading.
    tails, xis, layers : what the panels show; the counts are of all records.

    Returns
    -------
    Figure
        A cross marks a chain about which the reading by ρ is wrong.
    """
    groups = list(dict.fromkeys((r["tail"], r["layers"]) for r in records))
    height = 2.3 * len(tails) + 1.1 + 0.46 * len(groups)
    with drawing(height) as figure:
        ratios = [2.3] * len(tails) + [0.46 * len(groups)]
        grid = figure.add_gridspec(len(tails) + 1, len(xis), height_ratios=ratios)
        figure.subplots_adjust(
            left=0.135, right=0.885, top=1 - 0.55 / height, bottom=0.5 / height, hspace=0.3, wspace=0.1
        )
        mesh = None
        for row, tail in enumerate(tails):
            for column, xi in enumerate(xis):
                ax = figure.add_subplot(grid[row, column])
                shown = [r for r in records if (r["tail"], r["xi"], r["layers"]) == (tail, xi, layers)]
                mesh = _panel(ax, shown, xi) or mesh
                if row == 0:
                    ax.set_title(f"ξ = {xi:g}", pad=4)
                if column == 0:
                    ax.set_ylabel(f"tail: {tail}\ngain σ₁")
                else:
                    ax.tick_params(labelleft=False)
                if row == len(tails) - 1 and column == len(xis) // 2:
                    ax.set_xlabel("angle between u of a layer and v of the next, arccos κ (degrees)")
        if mesh is not None:
            place = (0.9, 1 - 0.55 / height - 2.3 * len(tails) / height * 0.9, 0.014, 2.3 * len(tails) / height * 0.85)
            bar = figure.colorbar(mesh, cax=figure.add_axes(place), extend="both")
            bar.set_label(f"measured growth (nats per layer), L = {layers}")
        _key(figure)
        count_readings(figure.add_subplot(grid[len(tails), :]), records)
    return figure


def _panel(ax: Axes, records: Sequence[Record], xi: float) -> Any:
    """Draw one panel: measured growth as colour, boundaries as lines."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(FixedLocator([0.5, 1, 2, 4]))
    ax.yaxis.set_major_formatter(FixedFormatter(["0.5", "1", "2", "4"]))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_locator(FixedLocator([0, 30, 60, 90]))
    if not records:
        return None
    angle = lambda r: math.degrees(math.acos(min(r["kappa"], 1.0)))
    kappas, sigmas = (sorted({r[name] for r in records}) for name in ("kappa", "sigma"))
    angles = sorted({angle(r) for r in records})
    growth = np.full((len(sigmas), len(kappas)), np.nan)
    for r in records:
        growth[sigmas.index(r["sigma"]), len(kappas) - 1 - kappas.index(r["kappa"])] = r["growth"]
    x, y = _edges(np.asarray(angles)), np.exp(_edges(np.log(sigmas)))
    mesh = ax.pcolormesh(x, y, growth, cmap="PuOr_r", vmin=-SPREAD, vmax=SPREAD, rasterized=True)
    wrong = [(angle(r), r["sigma"]) for r in records if r["naive_reading"] == "wrong"]
    if wrong:
        ax.plot(*zip(*wrong, strict=True), "x", color=INK, ms=2.6, mew=0.6)
    fine = np.linspace(x[0], x[-1], 400)
    rates = phase(1.0, np.cos(np.radians(np.clip(fine, 0, 90))), xi)
    grows, cone = np.asarray(rates.growth_rate), np.asarray(rates.cone_rate)
    with np.errstate(divide="ignore"):
        ax.plot(fine, 1 / np.cos(np.radians(fine)), color=INK, ls=(0, (4, 2)), lw=1.4)
    ax.plot(fine, 1 / grows, color=BLUE, lw=2)
    ax.plot(fine, 1 / cone, color=GREEN, lw=2)
    last = math.degrees(math.asin((1 - xi) / (1 + xi)))
    if last < x[-1]:
        ax.plot([last, last], [1 / math.sqrt(xi) if xi > 0 else y[-1], y[-1]], color=GREEN, lw=2)
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(y[0], y[-1])
    return mesh


def _key(figure: Figure) -> None:
    marks = [
        Line2D([], [], color=INK, ls=(0, (4, 2)), lw=1.4, label="ρ = σ₁κ = 1, the reading by ρ"),
        Line2D([], [], color=BLUE, lw=2, label="σ₁r* = 1: below, decay is certain"),
        Line2D([], [], color=GREEN, lw=2, label="left of and above: attraction and growth are certain"),
        Line2D([], [], color=INK, marker="x", ls="", ms=4, mew=0.8, label="the reading by ρ is wrong"),
    ]
    figure.legend(handles=marks, loc="upper center", ncol=4, frameon=False, fontsize=8, borderaxespad=0.1)


def count_readings(ax: Axes, records: Sequence[Record]) -> None:
    """Draw how often each reading was right, by tail and depth.

    Parameters
    ----------
    ax : to draw on.
    records : rows with tail, layers, naive_reading and exact_reading.
    """
    groups = list(dict.fromkeys((r["tail"], r["layers"]) for r in records))
    names = []
    for place, group in enumerate(groups):
        of = [r for r in records if (r["tail"], r["layers"]) == group]
        names.append(f"{group[0]}, L = {group[1]}")
        for offset, name, short in ((0.2, "naive_reading", "ρ"), (-0.2, "exact_reading", "exact")):
            start = 0.0
            for reading in READINGS:
                count = sum(r[name] == reading for r in of)
                share = 100 * count / len(of)
                style: dict[str, Any] = {"color": FILL[reading], "hatch": HATCH[reading], "edgecolor": MUTED}
                ax.barh(-place + offset, share, 0.36, left=start, lw=0.4, **style)
                if share > 6:
                    ax.text(
                        start + share / 2, -place + offset, f"{count}", ha="center", va="center_baseline", fontsize=7
                    )
                start += share
            ax.text(100.6, -place + offset, short, va="center", fontsize=7)
    ax.yaxis.set_major_locator(FixedLocator([-float(place) for place in range(len(groups))]))
    ax.yaxis.set_major_formatter(FixedFormatter(names))
    ax.set_xlim(0, 100)
    ax.set_xlabel("share of chains of the grid (%), with their number")
    shown = {r[name] for r in records for name in ("naive_reading", "exact_reading")}
    marks = [Patch(facecolor=FILL[r], hatch=HATCH[r], edgecolor=MUTED, label=r) for r in READINGS if r in shown]
    ax.legend(handles=marks, loc="lower right", ncol=4, frameon=False, fontsize=8, bbox_to_anchor=(1.0, 0.98))


def _edges(centres: np.ndarray) -> np.ndarray:
    """Return the edges of cells with these centres."""
    if len(centres) == 1:
        return np.asarray([centres[0] - 0.5, centres[0] + 0.5])
    inner = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - inner[0]], inner, [2 * centres[-1] - inner[-1]]])
