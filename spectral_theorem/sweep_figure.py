"""Draw the numbers of all layers at many tokens of one clip: maps of layer by step.

Plain mappings of `Verification.to_dict` in, matplotlib figures out; nothing is estimated here. Cells are drawn as one
path per colour, so that thousands of them stay a small file and stay sharp.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from .canvas import (
    INK,
    LINE,
    MUTED,
    WIDTH,
    boxes,
    drawing,
    floats,
    forth,
    limits,
    set_ticks,
    step_axis,
    step_places,
    step_room,
)
from .sweep_words import step_name

SHADES = 64  # of a colour map: more cannot be told apart
WRITTEN = (12, 12)  # cells of so many columns and rows at most have room for their numbers
CELL = 0.44  # half a cell: a little ground between cells keeps their edges apart
WIDEST = 0.9  # inches of a cell at most: a few tokens do not fill the page
# blue and brown of one lightness, equal steps of it (CIELAB) to the light middle: told apart without red and green
DIVERGING = (
    *("#00519d", "#466cad", "#748abc", "#9da9cc", "#c4c9db", "#ebebeb"),
    *("#dec5ba", "#ce9f8a", "#bb7b5d", "#a55732", "#8c3304"),
)


class Field(NamedTuple):
    """Hold one map: rows of values (layers or couplings, steps), their places, colours and levels to mark."""

    title: str
    key: str
    colours: str
    scale: str
    ends: tuple[float, float]
    levels: Sequence[tuple[float, str]]
    between: bool


def map_figure(chains: Sequence[Mapping[str, Any]]) -> Figure:
    r"""Draw lambda, :math:`|\kappa|`, xi and sigma1 of every layer and token of one clip as colours.

    Parameters
    ----------
    chains : verifications of its tokens as mappings, in order, with `step`, all of one depth.

    Returns
    -------
    Figure
        Layer 1 at the bottom; couplings stand between the two layers they join. Hatched: not resolved. "~":
        converged estimate. A cross: no value.
    """
    depth = len(chains[0]["layers"])
    fields = [field for field in _fields(chains) if depth > 1 or not field.between]
    names = [step_name(chain) for chain in chains]
    row, foot = min(0.3, max(0.1, 2.4 / depth)), step_room(names)
    heights = [row * max(depth, 3) + 0.12 for _ in fields]
    height = sum(heights) + 0.42 * len(fields) + foot
    x = step_places([chain["step"] for chain in chains])
    with drawing(height) as figure:
        top = height
        for field, tall in zip(fields, heights, strict=True):
            top -= 0.42 + tall
            place = lambda left, wide, top=top, tall=tall: (left, top / height, wide, tall / height)
            wide = min(0.70, WIDEST * (x[-1] - x[0] + 1.2) / WIDTH)
            ax = figure.add_axes(place(0.125, wide))
            _draw_map(ax, field, chains, x)
            _draw_bar(figure.add_axes(place(0.145 + wide, 0.016)), field)
            step_axis(ax, x, names, named=field is fields[-1])
    return figure


def grid(chains: Sequence[Mapping[str, Any]], key: str, *, between: bool) -> np.ndarray:
    """Collect one number of all layers and tokens, (L or L-1, T), NaN where there is none."""
    found = np.stack([floats([layer[key] for layer in chain["layers"]]) for chain in chains], axis=1)
    return found[:-1] if between else found


def _fields(chains: Sequence[Mapping[str, Any]]) -> list[Field]:
    lam, kappa, xi, sigma = (grid(chains, key, between=False) for key in ("lam", "kappa_abs", "xi", "sigma1"))
    known = np.abs(lam[np.isfinite(lam)])
    # one coupling that is nearly 0 does not take the colours away from all others
    far = float(min(known.max(), 3 * np.quantile(known, 0.9))) if known.size else 0.0
    far = far or 1.0
    chance = chains[0].get("chance_kappa")
    log_sigma = forth(sigma, "log")
    low, high = limits(log_sigma, "linear")
    marks = [(0.0, "σ₁ = 1")] if low < 0 < high else []
    return [
        Field(
            "gain-alignment exponent λ = log(σ₁|κ|), nats per layer"
            + (f"; colours end at ±{far:.2g}" if known.size and far < known.max() else ""),
            "lam",
            "diverging",
            "linear",
            (-far, far),
            [(0.0, "λ = 0")],
            True,
        ),
        Field(
            "alignment |κ| of neighbouring layers",
            "kappa_abs",
            "viridis",
            "linear",
            _unit_ends(kappa, chance),
            [] if chance is None else [(chance, f"chance\n{chance:.2g}")],
            True,
        ),
        Field("gap ratio ξ = σ₂/σ₁", "xi", "viridis", "linear", _unit_ends(xi), [], False),
        Field(
            "gain σ₁ (dimensionless; equal factors at equal distances)",
            "sigma1",
            "viridis",
            "log",
            (low, high),
            marks,
            False,
        ),
    ]


def _unit_ends(values: np.ndarray, level: float | None = None) -> tuple[float, float]:
    """Return ends among 0, 0.1, ..., 1 that hold all values and the level."""
    known = np.append(values[np.isfinite(values)], [] if level is None else [level])
    if not known.size:
        return 0.0, 1.0
    low, high = math.floor(10 * known.min() + 1e-9) / 10, math.ceil(10 * known.max() - 1e-9) / 10
    return max(0.0, min(low, 0.9)), min(1.0, max(high, low + 0.1))


@functools.cache
def _shades(name: str) -> np.ndarray:
    chosen = LinearSegmentedColormap.from_list(name, DIVERGING) if name == "diverging" else matplotlib.colormaps[name]
    return chosen(np.linspace(0, 1, SHADES))


def _shade(values: np.ndarray, field: Field) -> np.ndarray:
    """Return the index of each value's colour; -1 where there is none."""
    low, high = field.ends
    share = np.clip((forth(values, field.scale) - low) / (high - low), 0.0, 1.0)
    return np.where(np.isfinite(share), np.minimum(np.nan_to_num(share) * SHADES, SHADES - 1), -1).astype(int)


def _cells(x: np.ndarray, y: np.ndarray) -> Path:
    return boxes(x - CELL, x + CELL, y - CELL, y + CELL)


def _draw_map(ax: Axes, field: Field, chains: Sequence[Mapping[str, Any]], x: np.ndarray) -> None:
    values = grid(chains, field.key, between=field.between)
    resolved, certified = (grid(chains, key, between=False) > 0 for key in ("resolved", "certified"))
    if field.between:
        resolved, certified = resolved[:-1] & resolved[1:], certified[:-1] & certified[1:]
    depth = len(chains[0]["layers"])
    y = np.arange(values.shape[0]) + (1.5 if field.between else 1.0)
    places = np.broadcast_to(x, values.shape), np.broadcast_to(y[:, None], values.shape)
    shades, colours = _shade(values, field), _shades(field.colours)
    for index in np.unique(shades[shades >= 0]):
        here = shades == index
        cells = _cells(places[0][here], places[1][here])
        ax.add_patch(PathPatch(cells, facecolor=colours[index], lw=0))
    empty = shades < 0
    light = empty | (colours[shades, :3] @ (0.299, 0.587, 0.114) > 0.55)
    marked = (
        (~resolved & empty, "////", MUTED),
        (~resolved & ~empty & light, "////", "#000000"),
        (~resolved & ~light, "////", "#ffffff"),
        (resolved & empty, "xx", MUTED),
    )
    for here, hatch, ink in marked:
        if here.any():
            cells = _cells(places[0][here], places[1][here])
            ax.add_patch(PathPatch(cells, facecolor="none", edgecolor=ink, hatch=hatch, lw=0.4))
    columns, rows = WRITTEN
    written = len(x) <= columns and depth <= rows
    for (i, j), shade in np.ndenumerate(shades):
        mark = "?" * (not resolved[i, j]) + "~" * (not certified[i, j])
        said = f"{values[i, j]:.3g}".replace("-", "−") if written and shade >= 0 else ""
        if mark or said:
            ink = INK if shade < 0 else "#000000" if light[i, j] else "#ffffff"
            ax.text(
                float(x[j]), float(y[i]), f"{said}{mark}", ha="center", va="center_baseline", fontsize=7.5, color=ink
            )
    ax.set_ylim(0.5, depth + 0.5)
    every = math.ceil(depth / 16)
    names = chains[0].get("names") or []
    if field.between:
        ticks = y[::every].tolist()
        labels = [f"{math.floor(each)} to {math.ceil(each)}" for each in ticks]
    else:
        ticks = y[::every].tolist()
        labels = [_layer_label(int(each), names) for each in ticks]
    ax.yaxis.set_major_locator(FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FixedFormatter(labels))
    ax.tick_params(axis="y", length=2, labelsize=8)
    ax.set_title(field.title, loc="left", pad=4)
    ax.set_ylabel("coupling of layers" if field.between else "layer")
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)


def _layer_label(layer: int, names: Sequence[str]) -> str:
    """Name a layer by its number, and by the part of a block that it is."""
    part = names[layer - 1].split(" ", 2)[2:] if layer <= len(names) else []
    return f"{layer}" if not part else f"{layer} {part[0].removesuffix('-attention')} {names[layer - 1].split()[1]}"


def _draw_bar(ax: Axes, field: Field) -> None:
    """Draw the colours of a map with their values at the left side's ticks, and the levels that matter beside them."""
    low, high = field.ends
    edges = np.linspace(low, high, SHADES + 1)
    for index, colour in enumerate(_shades(field.colours)):
        ax.axhspan(edges[index], edges[index + 1], facecolor=colour, edgecolor=colour, lw=0.3)
    ax.set_xlim(0, 1)
    ax.set_ylim(low, high)
    ax.xaxis.set_major_locator(NullLocator())
    set_ticks(ax.yaxis, field.scale, low, high, count=4)
    if field.scale == "log" and high - low < 1:
        # a narrow range may hold no round number: then the quarters are named
        places = np.linspace(low, high, 5)[1:-1].tolist()
        ax.yaxis.set_major_locator(FixedLocator(places))
        ax.yaxis.set_major_formatter(FixedFormatter([f"{10**place:.3g}" for place in places]))
    ax.yaxis.tick_right()
    ax.tick_params(axis="y", length=2, labelsize=8)
    figure: Any = ax.get_figure()
    apart = LINE / (72 * figure.get_figheight() * ax.get_position().height) * (high - low)
    for level, words in field.levels:
        ax.axhline(level, color=INK, lw=1.6, xmin=-0.5, xmax=1.5, clip_on=False)
        at = min(max(level, low), high)
        ax.annotate(
            words, (1.5, at), (4.6, at), annotation_clip=False, va="center", fontsize=8, weight="bold",
            arrowprops={"arrowstyle": "-", "color": INK, "lw": 0.8, "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
        # a tick's number that the level's words would touch gives way to them
        places, names = ax.yaxis.get_majorticklocs(), ax.yaxis.get_major_formatter()
        free = [i for i, each in enumerate(places) if low <= each <= high and abs(each - level) > 0.8 * apart]
        ax.yaxis.set_major_locator(FixedLocator([places[i] for i in free]))
        if isinstance(names, FixedFormatter):
            ax.yaxis.set_major_formatter(FixedFormatter([names.seq[i] for i in free]))
