"""Draw the pictures of docs/benchmarks/engine.md from the record of a benchmark of the engine.

Times are on logarithmic axes; a point is a median, the bar behind it runs from the least to the largest time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spectral_theorem.canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    VERMILLION,
    drawing,
    end_labels,
    forth,
    limits,
    set_ticks,
)

Row = Mapping[str, Any]
NOTE: dict[str, Any] = {
    "xycoords": ("data", "axes fraction"),
    "xytext": (0, 2),
    "textcoords": "offset points",
    "va": "bottom",
    "ha": "center",
    "color": INK,
    "fontsize": 8,
    "bbox": {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.5},
}
SENSES = {"<=": "≤", "<": "<", ">=": "≥"}
LINES = (("o", BLUE, "-"), ("s", ORANGE, "--"), ("^", VERMILLION, ":"), ("D", GREEN, "-."))
# marker and colour of each kind of side; a hollow marker is given the dense matrix, a part of the work
KINDS = {
    "this package": ("o", BLUE),
    "yardstick": ("D", INK),
    "other ways in JAX and SciPy": ("s", ORANGE),
    "PyTorch, transformers": ("^", VERMILLION),
}
OURS = ("explicit", "product", "ours", "proven", "factors", "W", "G", "measure", "transcribe", "sweep")
YARDSTICKS = ("gemm", "torch gemm")
TORCH = ("row loop", "torch")
LETTERS = {"width": "D", "layers": "L", "tokens": "T", "frames": "F"}
AXES = {
    "width": "D, state size",
    "layers": "L, decoder blocks",
    "tokens": "T, tokens",
    "frames": "F, encoder frames",
}


def kind_of(side: str) -> str:
    """Say what kind of side a name is."""
    if side in OURS:
        return "this package"
    if side in YARDSTICKS:
        return "yardstick"
    return "PyTorch, transformers" if side.startswith(TORCH) else "other ways in JAX and SciPy"


def rows_of(record: Row, question: str) -> list[Row]:
    """Return the timed rows of a question, by width."""
    rows = [row for row in record["rows"] if row["question"] == question and row["sides"]]
    return sorted(rows, key=lambda row: row["width"])


def times_figure(rows: Sequence[Row], thresholds: Callable[[Row], Sequence[tuple[float, str]]]) -> Figure:
    """Draw the time of every side, a panel per width; a bar runs from the least to the largest time.

    Parameters
    ----------
    rows : of one question.
    thresholds : of a row, times in seconds at which a line is drawn, and what they are.
    """
    names = list(dict.fromkeys(name for row in rows for name in row["sides"]))
    names.sort(key=lambda name: min(row["sides"][name]["seconds"]["median"] for row in rows if name in row["sides"]))
    with drawing(1.25 + 0.27 * len(names)) as figure:
        panels = figure.subplots(1, len(rows), squeeze=False, sharey=True)[0]
        figure.subplots_adjust(left=0.12, right=0.985, wspace=0.12, bottom=0.72 / figure.get_figheight(),
                               top=1 - 0.42 / figure.get_figheight())  # fmt: skip
        for panel, row in zip(panels, rows, strict=True):
            _times(panel, row, names, thresholds(row))
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.5, -0.5)
        given = any("given" in side["what"] for row in rows for side in row["sides"].values())
        _kinds(figure, names, given=given)
    return figure


def _times(ax: Axes, row: Row, names: Sequence[str], thresholds: Sequence[tuple[float, str]]) -> None:
    seen = []
    for place, name in enumerate(names):
        if name not in row["sides"]:
            continue
        side = row["sides"][name]
        low, middle, high = (float(forth(1e3 * side["seconds"][k], "log")) for k in ("min", "median", "max"))
        marker, colour = KINDS[kind_of(name)]
        ax.plot([low, high], [place, place], color=colour, lw=2.2, alpha=0.45, solid_capstyle="butt")
        ax.plot(middle, place, marker, color=colour, ms=6, mfc="white" if "given" in side["what"] else colour)
        seen += [low, high]
    for seconds, words in thresholds:
        x = float(forth(1e3 * seconds, "log"))
        seen.append(x)
        ax.axvline(x, color=GREEN, lw=1.1, ls="--")
        ax.annotate(words, (x, 1), **NOTE)
    low, high = min(seen) - 0.15, max(seen) + 0.15
    ax.set_xlim(low, high)
    set_ticks(ax.xaxis, "log", low, high, count=4)
    ax.set_xlabel("ms per (layer, token)")
    ax.set_title(f"D = {row['width']}, T = {row['tokens']}", loc="right")
    ax.grid(axis="x", color=MUTED, alpha=0.25, lw=0.5)
    ax.tick_params(axis="y", length=0)


def _kinds(figure: Figure, names: Sequence[str], *, given: bool) -> None:
    """Name the kinds that appear, in one line at the bottom."""
    used = [kind for kind in KINDS if any(kind_of(name) == kind for name in names)]
    empty = figure.axes[0].plot
    handles = [empty([], [], KINDS[kind][0], color=KINDS[kind][1], ms=6, label=kind)[0] for kind in used]
    if given:
        words = "hollow: given W or its factors"
        handles += empty([], [], "s", color=MUTED, mfc="white", ms=6, label=words)
    place = {"loc": "lower left", "bbox_to_anchor": (0.01, -0.01), "ncols": len(handles), "frameon": False}
    figure.legend(handles=handles, fontsize=8, handletextpad=0.2, columnspacing=1.4, **place)


def bars_figure(record: Row) -> Figure:
    """Draw what the engine is held to: every value over its limit, with spread; the failing side is hatched."""
    entries = list(bars_of(record))
    with drawing(0.95 + 0.3 * max(1, len(entries))) as figure:
        ax = figure.subplots()
        figure.subplots_adjust(left=0.32, right=0.86, bottom=0.6 / figure.get_figheight(), top=0.97)
        seen = [0.0]
        for place, (_, bar, spread) in enumerate(entries):
            # below 1 is met, whichever way the bar reads
            turn = lambda value, bar=bar: bar["limit"] / value if bar["sense"] == ">=" else value / bar["limit"]
            ends = sorted(float(forth(turn(value), "log")) for value in spread)
            middle = float(forth(turn(bar["value"]), "log"))
            colour, marker = (BLUE, "o") if bar["met"] else (VERMILLION, "X")
            ax.plot(ends, [place] * len(ends), color=colour, lw=2.2, alpha=0.45, solid_capstyle="butt")
            ax.plot(middle, place, marker, color=colour, ms=6.5)
            said = f"{bar['value']:.3g} {SENSES[bar['sense']]} {bar['limit']:g}"
            ax.text(1.015, place, said, transform=ax.get_yaxis_transform(), va="center", fontsize=8)
            seen += [*ends, middle]
        low, high = limits(np.asarray(seen), "log")
        high = max(high, 1.0)
        ax.set_xlim(low, high)
        ax.axvline(0, color=GREEN, lw=1.1, ls="--")
        ax.axvspan(0, high, hatch="///", fc="none", ec=MUTED, lw=0, alpha=0.35)
        set_ticks(ax.xaxis, "log", low, high)
        ax.set_xlabel("value over limit (limit over value for ≥); left of the line is met, hatched is missed")
        ax.set_yticks(range(len(entries)), [words for words, *_ in entries])
        ax.set_ylim(max(1, len(entries)) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
    return figure


NAMES = {
    "explicit / gemm": "dense W: time over that of the GEMM",
    "row loop + svd / ours": "triplets: times faster than torch",
    "residual_over_sigma1": "triplets: largest residual over σ₁",
    "G / W": "triplets of G: time over that of W's",
    "first_call_mb": "triplets of G: memory, MB",
    "peak_mb": "sequence operator: peak memory, MB",
    "measure / transcribe": "whole clip: time over transcribing it",
    "torch / transcribe": "our decoder: times as fast as torch",
}


def bars_of(record: Row) -> list[tuple[str, Row, list[float]]]:
    """Return (words, bar, ends of its spread) in the order of the questions."""
    found = []
    for row in record["rows"]:
        for bar in row["bars"]:
            ratio = row["ratios"].get(bar["name"])
            ends = [ratio["min"], ratio["max"]] if ratio else [bar["value"]] * 2
            where = f", D = {row['width']}" if row["question"] != "clip" else ""
            found.append((NAMES[bar["name"]] + where, bar, ends))
    return sorted(found, key=lambda one: list(NAMES).index(one[1]["name"]))


def scaling_figure(record: Row) -> Figure:
    """Draw costs against sizes on logarithmic axes, with the fitted powers named at the line ends."""
    letters = [letter for letter in AXES if any(row["against"] == letter for row in record["scaling"])]
    whats = list(dict.fromkeys(row["what"] for row in record["scaling"]))
    styles = dict(
        zip(whats, [("o", BLUE, "-"), ("s", ORANGE, "--"), ("^", VERMILLION, ":"), ("D", GREEN, "-.")], strict=False)
    )
    with drawing(2.5 * -(-len(letters) // 2) + 0.4) as figure:
        panels = figure.subplots(-(-len(letters) // 2), min(2, len(letters)), squeeze=False).ravel()
        figure.subplots_adjust(left=0.075, right=0.87, wspace=0.62, hspace=0.42, top=0.96,
                               bottom=0.75 / figure.get_figheight())  # fmt: skip
        for panel in panels[len(letters) :]:
            panel.set_visible(False)
        for panel, letter in zip(panels, letters, strict=False):
            _scaling(panel, letter, [row for row in record["scaling"] if row["against"] == letter], styles)
        handles = [
            figure.axes[0].plot([], [], m, ls=ls, color=c, ms=5, label=what)[0] for what, (m, c, ls) in styles.items()
        ]
        figure.legend(handles=handles, loc="lower left", ncols=len(handles), frameon=False, fontsize=8,
                      bbox_to_anchor=(0.01, -0.01))  # fmt: skip
    return figure


def _scaling(ax: Axes, letter: str, rows: Sequence[Row], styles: Mapping[str, tuple[str, str, str]]) -> None:
    labels, all_x, all_y = [], [], []
    for row in rows:
        marker, colour, line = styles[row["what"]]
        sizes = sorted(int(size) for size in row["sides"])
        x = forth(sizes, "log")
        low, middle, high = (
            forth([1e3 * row["sides"][str(size)]["seconds"][k] for size in sizes], "log")
            for k in ("min", "median", "max")
        )
        fit = row["fit"]
        ax.plot(x, np.log10(1e3 * fit["coefficient"]) + fit["exponent"] * x, ls=line, color=colour, lw=1.1)
        ax.vlines(x, low, high, color=colour, lw=2.2, alpha=0.45)
        ax.plot(x, middle, marker, color=colour, ms=5)
        between = "" if fit["low"] is None else f" [{fit['low']:.2f}, {fit['high']:.2f}]"
        end = float(np.log10(1e3 * fit["coefficient"]) + fit["exponent"] * x[-1])
        labels.append((end, f"{LETTERS[letter]}^{fit['exponent']:.2f}{between}", colour, ""))
        all_x += [*x]
        all_y += [*low, *high, end]
    room = 0.06 * (max(all_x) - min(all_x))
    ax.set_xlim(min(all_x) - room, max(all_x) + room)
    sizes = sorted({int(size) for row in rows for size in row["sides"]})
    ax.set_xticks(forth(sizes, "log"), [str(size) for size in sizes])
    low, high = limits(np.asarray(all_y), "log")
    ax.set_ylim(low, high)
    set_ticks(ax.yaxis, "log", low, high, count=4)
    ax.set_xlabel(AXES[letter])
    ax.set_ylabel("ms, all layers and tokens")
    ax.grid(color=MUTED, alpha=0.25, lw=0.5)
    end_labels(ax, labels)


def pictures(record: Row) -> dict[str, tuple[Figure, str]]:
    """Return every picture that the record has rows for, with what it shows."""
    found: dict[str, tuple[Figure, str]] = {}
    if bars_of(record):
        found["bars"] = bars_figure(record), "What the engine is held to: every value over its limit"
    if dense := rows_of(record, "dense"):
        line = lambda row: [(row["sides"]["gemm"]["seconds"]["median"], "GEMM")]
        found["dense"] = times_figure(dense, line), "Time of one dense token Jacobian by every way, per width"
    if triplets := rows_of(record, "triplets"):
        found["triplets"] = times_figure(triplets, _asked), "Time of two leading triplets by every way, per width"
    if injection := rows_of(record, "injection"):
        twice = lambda row: [(2 * row["sides"]["W"]["seconds"]["median"], "2 × W")]
        found["injection"] = times_figure(injection, twice), "Time of two leading triplets of W and of G, per width"
    if record["scaling"]:
        found["scaling"] = scaling_figure(record), "Cost against D, L, T and F with fitted powers"
    return found


def _asked(row: Row) -> list[tuple[float, str]]:
    bars = [bar for bar in row["bars"] if bar["name"] == "row loop + svd / ours"]
    side = row["sides"].get("row loop + svd")
    return [(side["seconds"]["median"] / bar["limit"], f"torch / {bar['limit']:g}") for bar in bars if side]
