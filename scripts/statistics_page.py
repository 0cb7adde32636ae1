"""Draw the page and the picture of what intervals cover and tests find from the record of `simulate_statistics`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from spectral_theorem.storage import write_atomically

PERMUTATIONS = 1999  # as good as five times as many when all that is asked is whether p is below 0.05
COVERED = (0.92, 0.98)  # what an interval of level 0.95 is held to, from 50 units
CHANCE = (0.0, 0.065)  # what a test of level 0.05 is held to
SHARES = 10  # so many times fewer data sets of shares of a variance, which take a tenth of a second each


def page(record: Mapping[str, Any]) -> str:
    """Write the page from the record."""
    rows, where = record["rows"], record["environment"]
    percent = lambda value: "-" if value is None else f"{100 * value:.1f}"
    held = [row for row in rows if row["met"] is not None]
    missed = [row for row in held if not row["met"]]
    parts = [
        "# What intervals cover and tests find",
        f"`scripts/simulate_statistics.py`, {record['sets']:,} simulated data sets per line"
        f" ({record['sets'] // SHARES:,} for shares of a variance), {record['seconds']:.0f} s with"
        f" {record['workers']} processes on {where['cpu']}, load {where['load_1min']:.1f} when it began; commit"
        f" {where['commit']}. The picture and the tables below are drawn from `statistics.json`.",
        f"**{len(held) - len(missed)} of {len(held)}** lines that are held to something meet it: 92 to 98 % coverage of"
        " intervals of level 95 % from 50 units on, at most 6.5 % false positives of tests of level 5 %."
        + (
            ""
            if not missed
            else " Missed: " + "; ".join(f"{row['what']}, {row['data']}, n = {row['n']}" for row in missed) + "."
        ),
        "![Coverage, false positives and power](statistics.svg)",
        "*n* counts units: clips, or clusters of them. *flagged* is the share of intervals that say that they are not"
        " meant at their level, because n is too small or a window too large for it; they are held to nothing, and"
        " *% of the others* counts the rest. Lines where clusters are ignored show what that would cost. Tests here"
        f" make {PERMUTATIONS:,} permutations.",
    ]
    for kind, words in (
        ("coverage", "## Coverage of 95 % intervals"),
        ("false positives", "## False positives at 5 %"),
        ("power", "## Power"),
    ):
        parts.append(words)
        if kind == "power":
            parts.append(
                "The smallest detectable change is the one that a t test finds four times in five; the tests here are"
                " permutations. For the pooled slope the second line says how often the report calls the planted change"
                " detectable."
            )
        lines = ["| what | data | n | method | % | ± | flagged % | % of the others | held to | |", "|" + " --- |" * 10]
        for row in rows:
            if row["kind"] != kind:
                continue
            limits = "-" if row["limits"] is None else " to ".join(percent(each) for each in row["limits"])
            met = {True: "met", False: "**missed**", None: ""}[row["met"]]
            cells = [row["what"], row["data"], row["n"], row["method"], percent(row["rate"]), percent(row["error"])]
            cells += [percent(row["flagged"]), percent(row["rate_meant"]), limits, met]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def picture(record: Mapping[str, Any]) -> Any:
    """Draw the rate of every line with its error and what it is held to."""
    from spectral_theorem.canvas import BLUE, GREEN, INK, MUTED, VERMILLION, drawing

    kinds = {"coverage": COVERED, "false positives": CHANCE, "power": None}
    rows = {kind: [row for row in record["rows"] if row["kind"] == kind] for kind in kinds}
    with drawing(0.165 * len(record["rows"]) + 2.6) as figure:
        axes = figure.subplots(3, 1, height_ratios=[len(each) + 2 for each in rows.values()])
        figure.subplots_adjust(left=0.46, right=0.985, top=0.985, bottom=0.035, hspace=0.14)
        for ax, (kind, limits) in zip(axes, kinds.items(), strict=True):
            for place, row in enumerate(rows[kind]):
                rate = row["rate"] if row["rate_meant"] is None else row["rate_meant"]
                held = row["met"] is not None
                colour = MUTED if not held else GREEN if row["met"] else VERMILLION
                marker = "s" if not held else "o" if row["met"] else "X"
                ax.errorbar(100 * rate, place, xerr=100 * row["error"], fmt=marker, color=colour, ms=5, capsize=2, lw=1)
            ax.set_yticks(
                range(len(rows[kind])), [f"{r['what']}: {r['data']}, n = {r['n']}" for r in rows[kind]], fontsize=7
            )
            ax.set_ylim(len(rows[kind]) - 0.4, -0.6)
            if limits:
                ax.axvspan(100 * limits[0], 100 * limits[1], color=BLUE, alpha=0.12, lw=0)
                ax.axvline({"coverage": 95, "false positives": 5}[kind], color=INK, ls="--", lw=1)
            else:
                ax.axvline(80, color=INK, ls="--", lw=1)
            ax.set_xlabel(f"{kind} (%)")
            ax.grid(axis="x", color=MUTED, alpha=0.25, lw=0.6)
    return figure


def draw(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the page and the picture beside the record."""
    from spectral_theorem.canvas import to_svg

    style = 'style="font-family: Verdana, DejaVu Sans, sans-serif; color: #010101; background: #ffffff" '
    svg = to_svg(picture(record), salt="statistics", label="coverage, false positives and power; numbers in the tables")
    # an image on its own needs what the page would have given it
    svg = (
        svg.replace("<svg ", f'<svg xmlns="http://www.w3.org/2000/svg" {style}', 1)
        if "xmlns=" not in svg[:400]
        else svg.replace("<svg ", f"<svg {style}", 1)
    )
    write_atomically(folder / "statistics.svg", lambda file: file.write((svg + "\n").encode()))
    write_atomically(folder / "statistics.md", lambda file: file.write(page(record).encode()))
