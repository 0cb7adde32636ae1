"""Draw the answers of a run: λ by layer and step, gains against predictions, and numbers with their intervals.

Plain values of a run's sections in, matplotlib figures out; nothing is estimated here.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator

from .canvas import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, VERMILLION, drawing, floats, forth, limits, set_ticks
from .spectra_figure import NAMES, components_of, drawn_layers, plane_figure, spectra_figure
from .sweep_figure import DIVERGING

COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, INK, MUTED)
MARKERS = "osD^vXP"
LINES = ("-", (0, (5, 2)), "-.", ":", (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)), "--")
Section = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Hold a figure with the name of its file and what it shows."""

    name: str
    figure: Figure
    caption: str


@dataclasses.dataclass(frozen=True)
class Bars:
    """Say which numbers of a table are drawn with their intervals, a panel per `panel` column.

    Parameters
    ----------
    table : its name. value : name of the column of the numbers; the next two are the ends.
    labels : names of the columns that tell rows apart. level : where nothing is. words : for the axis.
    keep : which rows, by a column and how its cell begins. logarithmic : the axis.
    """

    table: str
    value: str
    labels: tuple[str, ...]
    level: float | None
    words: str
    keep: tuple[str, str] | None = None


_LAYERS = ("component", "layer")
_RANK, _SLOPE, _ALIGNMENT, _LAMBDA = (("quantity", begins) for begins in ("ΔN_eff", "Δα", "|κ|", "λ"))
BARS: dict[str, tuple[Bars, ...]] = {
    "observables": (
        Bars("changes_{modes}", "change", _LAYERS, 0.0, "ΔN_eff, stressed minus clean (%)", _RANK),
        Bars("changes_{modes}", "change", _LAYERS, 0.0, "Δα, stressed minus clean (dimensionless)", _SLOPE),
    ),
    "variance": (Bars("variance", "share", ("factor",), 0.0, "share of the variance of λ"),),
    "prediction": (
        Bars("prediction", "AUROC", ("score",), 0.5, "AUROC of single scores"),
        Bars("prediction_combined", "AUROC", ("fit",), 0.5, "AUROC of fits on clips they did not see"),
    ),
    "nulls": (
        Bars("nulls", "value", ("variant",), None, "|κ| (dimensionless)", _ALIGNMENT),
        Bars("nulls", "value", ("variant",), 0.0, "λ (nats per layer)", _LAMBDA),
    ),
    "ablations": (
        Bars("ablation_decisions", "change of λ", ("comparison",), 0.0, "change of the mean λ (nats per layer)"),
        Bars("ablations", "value", ("variant",), 0.0, "λ (nats per layer)", _LAMBDA),
    ),
    "same_tokens": (
        Bars(
            "same_tokens",
            "change",
            ("what changes", "condition", "layer"),
            0.0,
            "change of λ (nats per layer)",
            _LAMBDA,
        ),
    ),
    "hallucinated": (Bars("groups", "change", _LAYERS, 0.0, "ΔN_eff, hallucinated minus survived (%)", _RANK),),
}


def figures_of(sections: Sequence[Section]) -> dict[str, list[Drawn]]:
    """Draw all figures of a run.

    Parameters
    ----------
    sections : as in summary.json.

    Returns
    -------
    dict
        Section id to its figures; a section whose data are not there has none.

    Examples
    --------
    >>> figures_of([{"id": "paper", "tables": [], "data": {}}])
    {'paper': []}
    """
    by_id = {section["id"]: section for section in sections}
    return {name: list(_drawn(section, by_id)) for name, section in by_id.items()}


def _drawn(section: Section, by_id: Mapping[str, Section]) -> Iterator[Drawn]:
    draw: Callable[..., Iterator[Drawn]] | None = {
        "observables": _of_observables,
        "lambda_map": _of_map,
        "constant_lambda": _of_constancy,
        "attractor": _of_attractor,
    }.get(section["id"])
    if draw is not None:
        yield from draw(section, by_id)
    for index, bars in enumerate(BARS.get(section["id"], ()), 1):
        rows = _bar_rows(section, bars)
        if rows:
            words = "Values with their 95 % intervals, from the table below."
            words += "" if bars.level is None else f" Dashed: {bars.level:g}."
            yield Drawn(f"{section['id']}-{index}", bars_figure(rows, bars), words)


def _of_observables(section: Section, by_id: Mapping[str, Section]) -> Iterator[Drawn]:
    healthy = {
        (row["component"], row["layer"]): row["healthy"]
        for row in by_id.get("baseline", {}).get("data", {}).get("spectra", [])
    }
    rows = [
        {**row, "healthy": healthy.get((row["component"], row["layer"]))} for row in section["data"].get("spectra", [])
    ]
    for component in components_of(rows):
        mine = [row for row in rows if row["component"] == component]
        layers, count = drawn_layers(mine), len({row["layer"] for row in mine})
        some = "" if len(layers) == count else f" {len(layers)} of {count} layers."
        caption = (
            f"Eigenvalues of the covariance of {NAMES.get(component, component)} outputs, pooled over clips.{some}"
            " Left: both axes logarithmic, the windows K marked, the first ten on linear axes in the inset. Right: the"
            " tail. Intervals of what is read off them are in the tables."
        )
        yield Drawn(f"spectra-{component.replace('_', '-')}", spectra_figure(rows, component), caption)
    plane = section["data"].get("plane", [])
    for modes in sorted({row["modes"] for row in plane}):
        if any(row["modes"] == modes and row["effective_rank"][1] is not None for row in plane):
            caption = (
                f"Effective rank and slope of the first {modes} modes; numbers are layers, thin lines join clean with"
                " stressed, bars are 95 % intervals by leaving clips out, centred on the value less its bias."
            )
            yield Drawn(f"plane-{modes}", plane_figure(plane, modes), caption)


def _of_map(section: Section, _: Mapping[str, Section]) -> Iterator[Drawn]:
    maps = [each for each in section["data"].get("maps", []) if each["layers"] and each["steps"]]
    if maps:
        caption = (
            "Mean over clips of λ for each coupling of neighbouring layers and each generated token, and half the width"
            " of its 95 % interval. Crossed: the interval meets 0 or there is none. White: no value."
        )
        yield Drawn("lambda-map", map_figure(maps), caption)


def map_figure(maps: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw λ by layer and step, a row per condition: the mean, and half the width of its interval.

    Parameters
    ----------
    maps : `condition`, `layers`, `steps`, and `mean`, `low`, `high` as (layers, steps).
    """
    grids = [
        {name: np.stack([floats(line) for line in each[name]]) for name in ("mean", "low", "high")} for each in maps
    ]
    known = np.concatenate([np.abs(grid["mean"][np.isfinite(grid["mean"])]) for grid in grids])
    far = float(known.max()) if known.size and known.max() > 0 else 1.0
    halves = [(grid["high"] - grid["low"]) / 2 for grid in grids]
    finite = np.concatenate([half[np.isfinite(half)] for half in halves])
    widest = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    colours = LinearSegmentedColormap.from_list("λ", DIVERGING)
    tall = max(0.22 * max(len(each["layers"]) for each in maps), 0.7)
    height = (tall + 0.75) * len(maps) + 0.2
    with drawing(height) as figure:
        axes = figure.subplots(len(maps), 2, squeeze=False)
        figure.subplots_adjust(
            left=0.06, right=0.99, top=1 - 0.36 / height, bottom=0.45 / height, hspace=0.75 / tall, wspace=0.16
        )
        for row, each, grid, half in zip(axes, maps, grids, halves, strict=True):
            shape = {"origin": "lower", "aspect": "auto", "interpolation": "nearest"}
            left = row[0].imshow(grid["mean"], cmap=colours, vmin=-far, vmax=far, **shape)
            right = row[1].imshow(half, cmap="viridis", vmin=0.0, vmax=widest, **shape)
            sure = (grid["low"] > 0) | (grid["high"] < 0)
            y, x = np.nonzero(~sure & np.isfinite(grid["mean"]))
            row[0].plot(x, y, ls="", marker="x", ms=4, mew=0.8, color=INK)
            for ax, image, words in (
                (row[0], left, f"{each['condition']}: λ (nats per layer)"),
                (row[1], right, "half-width of its interval (nats per layer)"),
            ):
                figure.colorbar(image, ax=ax, fraction=0.03, pad=0.015)
                every = max(1, -(-len(each["steps"]) // 16))
                places = range(0, len(each["steps"]), every)
                ax.set_xticks(list(places), [str(each["steps"][place]) for place in places])
                gap = max(1, len(each["layers"]) // 8)
                ax.set_yticks(range(0, len(each["layers"]), gap), [f"{k}→{k + 1}" for k in each["layers"][::gap]])
                ax.set_title(words, loc="left")
        for ax in axes[-1]:
            ax.set_xlabel("generated token (step)")
        for ax in axes[:, 0]:
            ax.set_ylabel("layers joined")
    return figure


def _of_constancy(section: Section, _: Mapping[str, Section]) -> Iterator[Drawn]:
    scatter = section["data"].get("scatter")
    if scatter:
        caption = (
            "Log norm of the product of the last d layers, as it is and as each law predicts it, for clips nothing was"
            " fitted on. Dashed: as predicted. Darker: deeper."
        )
        yield Drawn("constant-lambda-scatter", scatter_figure(scatter), caption)
    table = _table(section, "constant_lambda_depth")
    if table and table["rows"]:
        caption = "Predicted minus actual log gain by the number d of layers; bars are 95 % intervals over clips."
        yield Drawn("constant-lambda-depth", depth_figure(table["rows"]), caption)


def scatter_figure(scatter: Mapping[str, Sequence[float | None]]) -> Figure:
    """Draw actual against predicted log gains, a panel per law.

    Parameters
    ----------
    scatter : `depth`, `actual`, and a list per law.
    """
    laws = [name for name in scatter if name not in ("depth", "actual")]
    actual, depth = floats(scatter["actual"]), floats(scatter["depth"])
    columns = min(3, max(1, len(laws)))
    lines = -(-len(laws) // columns)
    height = 2.9 * lines + 0.3
    with drawing(height) as figure:
        axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
        figure.subplots_adjust(
            left=0.07, right=0.93, top=1 - 0.25 / height, bottom=0.5 / height, hspace=0.4, wspace=0.1
        )
        image = None
        for ax, law in zip(axes.ravel(), laws, strict=False):
            guess = floats(scatter[law])
            ax.axline((0, 0), slope=1, color=INK, ls="--", lw=1)
            image = ax.scatter(guess, actual, c=depth, cmap="viridis_r", s=9, lw=0)
            ax.set_ylim(*limits(actual, "linear"))
            ax.set_title(law, loc="left")
            ax.set_xlabel("predicted (nats)")
        for ax in axes.ravel()[len(laws) :]:
            ax.set_visible(False)
        for ax in axes[:, 0]:
            ax.set_ylabel("log‖W_L…W_l‖ (nats)")
        if image is not None:
            bar = figure.colorbar(image, cax=figure.add_axes((0.945, 0.25, 0.012, 0.5)))
            bar.locator = MaxNLocator(integer=True)
            bar.set_label("layers d")
    return figure


def depth_figure(rows: Sequence[Sequence[Any]]) -> Figure:
    """Draw errors of laws by depth.

    Parameters
    ----------
    rows : law, d, error, low, high.
    """
    laws = list(dict.fromkeys(row[0] for row in rows))
    with drawing(3.4) as figure:
        ax = figure.subplots()
        figure.subplots_adjust(left=0.075, right=0.80, top=0.96, bottom=0.15)
        for index, law in enumerate(laws):
            d, error, low, high = (
                floats(column) for column in list(zip(*[r for r in rows if r[0] == law], strict=True))[1:5]
            )
            shift = (index - (len(laws) - 1) / 2) * 0.05
            colour, line = COLOURS[index % len(COLOURS)], LINES[index % len(LINES)]
            ax.plot(
                d + shift, error, color=colour, ls=line, lw=1.2, marker=MARKERS[index % len(MARKERS)], ms=5, label=law
            )
            ax.vlines(d + shift, low, high, color=colour, lw=1)
        ax.axhline(0, color=INK, ls="--", lw=1)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("number d of layers in the product")
        ax.set_ylabel("predicted minus actual (nats)")
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _of_attractor(section: Section, _: Mapping[str, Section]) -> Iterator[Drawn]:
    table = _table(section, "attractor")
    if table and table["rows"]:
        caption = (
            "How far answers to perturbations lie along the leading left singular vector u_L, by their size relative to"
            " what is perturbed; bars are 95 % intervals over clips."
        )
        yield Drawn("attractor", attractor_figure(table["rows"], section["data"]), caption)


def attractor_figure(rows: Sequence[Sequence[Any]], levels: Mapping[str, float]) -> Figure:
    """Draw the alignment of answers with u_L by the size of the perturbation.

    Parameters
    ----------
    rows : condition, what is perturbed, size, |cos| with its ends, ... levels : "chance" and "aligned".
    """
    kinds = list(dict.fromkeys((row[0], row[1]) for row in rows))
    with drawing(3.4) as figure:
        ax = figure.subplots()
        figure.subplots_adjust(left=0.075, right=0.75, top=0.96, bottom=0.15)
        ends = limits(forth([row[2] for row in rows], "log"), "linear")
        for index, kind in enumerate(kinds):
            size, value, low, high = _columns([row[2:6] for row in rows if (row[0], row[1]) == kind])
            place = forth(size, "log") + 0.013 * (index - (len(kinds) - 1) / 2)
            ax.plot(place, value, label=f"{kind[1]}, {kind[0]}", **_style(index))
            ax.vlines(place, low, high, color=_style(index)["color"], lw=1)
        for name, words in (("aligned", "half of its square"), ("chance", "random directions")):
            if name in levels:
                ax.axhline(levels[name], color=INK if name == "aligned" else MUTED, ls="--", lw=1)
                ax.annotate(words, (1.0, levels[name]), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                            textcoords="offset points", ha="right", fontsize=8)  # fmt: skip
        ax.set_xlim(*ends)
        set_ticks(ax.xaxis, "log", *ends)
        ax.set_ylim(0, 1)
        ax.set_xlabel("size of the perturbation relative to what is perturbed")
        ax.set_ylabel("|cos| with u_L (dimensionless)")
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def bars_figure(rows: Sequence[tuple[str, float, float, float]], bars: Bars) -> Figure:
    """Draw numbers with their intervals, one below the other.

    Parameters
    ----------
    rows : label, value, low, high. bars : level and words.
    """
    height = 0.21 * len(rows) + 0.75
    with drawing(height) as figure:
        ax = figure.subplots()
        longest = max((len(label) for label, *_ in rows), default=0)  # recipes can be long names
        left = min(0.6, max(0.30, 0.0078 * longest))
        figure.subplots_adjust(left=left, right=0.98, top=1 - 0.12 / height, bottom=0.5 / height)
        names = list(dict.fromkeys(label.partition(",")[0] for label, *_ in rows))
        for place, (label, value, low, high) in enumerate(rows):
            index = names.index(label.partition(",")[0]) if len(names) < len(rows) else 0
            style: dict[str, Any] = _style(index) | {"ls": ""}
            if np.isfinite([low, high]).all():
                ax.hlines(place, low, high, color=style["color"], lw=1.6)
            ax.plot(value, place, **style)
        if bars.level is not None:
            ax.axvline(bars.level, color=INK, ls="--", lw=1)
        ax.yaxis.set_major_locator(FixedLocator(range(len(rows))))
        ax.set_yticklabels([label for label, *_ in rows])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_xlabel(bars.words)
        ax.grid(axis="x", color=MUTED, alpha=0.25, lw=0.6)
    return figure


def _style(index: int) -> dict[str, Any]:
    colour, line, marker = (each[index % len(each)] for each in (COLOURS, LINES, MARKERS))
    return {"color": colour, "ls": line, "lw": 1.2, "marker": marker, "ms": 5}


def _columns(rows: Sequence[Sequence[Any]]) -> list[np.ndarray]:
    return [floats(column) for column in zip(*rows, strict=True)]


def _table(section: Section, name: str) -> Mapping[str, Any] | None:
    return next((table for table in section["tables"] if table["name"] == name), None)


def _bar_rows(section: Section, bars: Bars) -> list[tuple[str, float, float, float]]:
    """Take the rows of a table that are drawn; none where the table or its columns are not there."""
    stem = bars.table.partition("{")[0]
    same = (lambda name: name.startswith(stem)) if "{" in bars.table else (lambda name: name == bars.table)
    table = next((table for table in section["tables"] if same(table["name"])), None)
    heads = [column["name"] for column in table["columns"]] if table else []
    wanted = [*bars.labels, bars.value, *([bars.keep[0]] if bars.keep else [])]
    if table is None or not set(wanted) <= set(heads):
        return []
    at, labels = heads.index(bars.value), [heads.index(label) for label in bars.labels]
    found = []
    for row in table["rows"]:
        if bars.keep and not str(row[heads.index(bars.keep[0])]).startswith(bars.keep[1]):
            continue
        value, low, high = floats(row[at : at + 3]).tolist()
        if np.isfinite(value):
            words = [_in_words(heads[place], row[place]) for place in labels]
            found.append((", ".join(words), value, low, high))
    return found


def _in_words(head: str, cell: Any) -> str:
    """Write a label of a row; a layer's number says nothing by itself."""
    if head != "layer":
        return str(cell)
    return "all layers" if cell == "all" else f"layer {cell}"
