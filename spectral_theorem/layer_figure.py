"""Draw the numbers of every layer and coupling, with error bars and the levels they are held against.

Plain mappings of `Verification.to_dict` in, a matplotlib figure out; nothing is estimated here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PURPLE,
    VERMILLION,
    drawing,
    end_labels,
    floats,
    forth,
    layer_axis,
    limits,
    set_ticks,
)
from .wording import ranges

FLAGS = ("resolved", "certified")
MARKED = 130  # with more layers markers run into each other, and bars become a band
VISIBLE = 0.006  # shortest half bar, as a share of the axis, that can be told from a line


class Curve(NamedTuple):
    """Hold one curve in axis coordinates, `low` and `high` the ends of its error bars, `error` in its own unit."""

    name: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    error: np.ndarray
    marker: str
    colour: str


class Panel(NamedTuple):
    """Hold one panel by layer: title, unit, curves, levels to compare with (height, words), scale of the axis."""

    title: str
    unit: str
    curves: Sequence[Curve]
    levels: Sequence[tuple[float, str]] = ()
    scale: str = "linear"
    ends: tuple[float, float] | None = None


def layer_figure(chain: Mapping[str, Any]) -> Figure:
    """Draw sigma, xi, |kappa|, rho and lambda by layer, with error bars and the levels they are held against.

    Parameters
    ----------
    chain : a verification as a mapping; its `chance_kappa`, if there, is drawn.

    Returns
    -------
    Figure
        Couplings stand between the two layers they join; unresolved layers are hatched and marked "?".
    """
    layers = chain["layers"]
    panels = _panels(chain)
    estimates = np.asarray([layer["layer"] for layer in layers if not layer["certified"]])
    height = 0.8 + 1.6 * len(panels)
    with drawing(height) as figure:
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        figure.subplots_adjust(left=0.085, right=0.835, top=1 - 0.3 / height, bottom=0.5 / height, hspace=0.32)
        for ax, panel in zip(axes, panels, strict=True):
            _draw_panel(ax, panel, estimates)
        for ax in axes[:-1]:
            ax.xaxis.set_visible(False)
        above = axes[0].get_xaxis_transform()
        for start, stop in ranges(layer["layer"] for layer in layers if not layer["resolved"]):
            for ax in axes:
                ax.axvspan(start - 0.5, stop + 0.5, facecolor="none", edgecolor=MUTED, hatch="////", lw=0.6, zorder=0)
            axes[0].annotate("?", ((start + stop) / 2, 0.8), xycoords=above, ha="center", weight="bold")
        layer_axis(axes[-1], 1, len(layers), "layer l (a coupling stands between the two layers it joins)")
    return figure


def _panels(chain: Mapping[str, Any]) -> list[Panel]:
    """Collect what the layer figure shows, in axis coordinates."""
    layers, thresholds = chain["layers"], chain["thresholds"]
    depth = len(layers)
    columns = {name: floats([layer[name] for layer in layers]) for name in layers[0] if name not in FLAGS}
    x, xi = columns["layer"], columns["xi"]
    gamma = chain["conditions"]["coherence"]["parts"]["projection"]["value"]
    scale = _wide(columns["sigma1"], columns["sigma2"])
    xi_scale = "log" if np.any((xi > 0) & (xi < 0.1)) else "linear"
    panels = [
        Panel(
            "two largest singular values",
            "σ (dimensionless)",
            [
                _curve("σ₁", x, columns["sigma1"], columns["sigma_error"], scale, "o", BLUE),
                _curve(
                    "σ₂",
                    x,
                    columns["sigma2"],
                    columns.get("sigma2_error", columns["sigma_error"]),
                    scale,
                    "^",
                    VERMILLION,
                ),
            ],
            scale=scale,
        ),
        Panel(
            "gap ratio ξ = σ₂/σ₁",
            "ξ (dimensionless)",
            [_curve("ξ", x, xi, columns["xi_error"], xi_scale, "s", PURPLE)],
            _levels(xi_scale, (thresholds["purity"] * gamma / depth if gamma else None, "H4 needs ≤ {:.4g}")),
            xi_scale,
            (0.0, 1.05) if xi_scale == "linear" else None,
        ),
    ]
    return panels + (_coupling_panels(chain, columns) if depth > 1 else [])


def _coupling_panels(chain: Mapping[str, Any], columns: Mapping[str, np.ndarray]) -> list[Panel]:
    """Collect the panels of what two neighbouring layers share."""
    thresholds, chance = chain["thresholds"], chain.get("chance_kappa")
    between, kappa, kappa_error, s, rho, rho_error, lam, lam_error = (
        columns[name][:-1]
        for name in ("layer", "kappa_abs", "kappa_error", "misalignment", "rho", "rho_error", "lam", "lam_error")
    )
    between = between + 0.5
    asked = ((1 - thresholds["alignment"] / len(chain["layers"])), "H2 needs ≥ {:.4g}")
    ends, scale, title = (0.0, 1.05), "linear", "alignment |κ| of neighbouring layers"
    aligned, known = kappa, kappa[np.isfinite(kappa)]
    if known.size and known.min() > 0.9:
        ends, scale, title = None, "nines", f"{title} (0.9, 0.99, 0.999 at equal distances)"
        # 1 - |kappa| from s: taken from |kappa| it would show rounding, and 0 has no place on the axis
        aligned = np.maximum(s**2 / (1 + kappa), 1e-17)
    elif known.size and 0 < known.min() < 0.1:
        least = min(known.min(), chance or 1.0)
        ends, scale = (float(np.floor(np.log10(least))), 0.1), "log"
    rho_scale = _wide(rho, np.asarray([thresholds["gain"]]))
    return [
        Panel(
            title,
            "|κ| (dimensionless)",
            [_curve("|κ|", between, aligned, kappa_error, scale, "o", BLUE)],
            _levels(scale, asked, (chance, "chance {:.4g}")),
            scale,
            ends,
        ),
        Panel(
            "effective gain ρ = σ₁|κ|",
            "ρ (dimensionless)",
            [_curve("ρ", between, rho, rho_error, rho_scale, "D", GREEN)],
            _levels(rho_scale, (thresholds["gain"], "H1 needs ≥ {:.4g}")),
            rho_scale,
        ),
        Panel(
            "gain-alignment exponent λ = log ρ",
            "λ (nats per layer)",
            [_curve("λ", between, lam, lam_error, "linear", "v", VERMILLION)],
            _levels("linear", (0.0, "λ = 0")),
        ),
    ]


def _curve(
    name: str, x: np.ndarray, value: np.ndarray, error: np.ndarray, scale: str, marker: str, colour: str
) -> Curve:
    y, below, above = (forth(each, scale) for each in (value, value - error, value + error))
    if scale == "nines":
        below, above = above, below
    known = np.isfinite(y) & np.isfinite(error)
    # a bar that reaches 0 has no end on a logarithmic axis, and goes on beyond it
    low = np.where(known & np.isnan(below), -np.inf, below)
    high = np.where(known & np.isnan(above), np.inf, above)
    return Curve(name, x, y, low, high, error, marker, colour)


def _levels(scale: str, *levels: tuple[float | int | None, str]) -> list[tuple[float, str]]:
    """Place levels on the axis and name them by their values; those without a place are left out."""
    named = [(level, words.format(level)) for level, words in levels if level is not None]
    placed = [(forth(1 - level if scale == "nines" else level, scale).item(), words) for level, words in named]
    return [(level, words) for level, words in placed if math.isfinite(level)]


def _draw_panel(ax: Axes, panel: Panel, estimates: np.ndarray) -> None:
    curves = [curve for curve in panel.curves if np.isfinite(curve.y).any()]
    levels = panel.levels if curves else []
    bars = [end for curve in curves for end in (curve.low, curve.high)] if panel.scale == "linear" else []
    extent = np.concatenate([*(curve.y for curve in curves), *bars, [level for level, _ in levels]])
    low, high = panel.ends or limits(extent, panel.scale)
    ax.set_ylim(low, high)
    set_ticks(ax.yaxis, panel.scale, low, high)
    ax.set_title(panel.title, loc="left", pad=3)
    ax.set_ylabel(panel.unit)
    ax.grid(axis="y", color=MUTED, alpha=0.25, lw=0.6)
    labels = [(level, words, INK, "") for level, words in levels]
    for level, words in levels:
        ax.axhline(level, color=INK, ls=(0, (1, 2)) if words.startswith("chance") else "--", lw=1.2)
    seen = False
    for curve in curves:
        bar = np.abs(np.stack([curve.y - np.clip(curve.low, low, high), np.clip(curve.high, low, high) - curve.y]))
        visible = bool(np.nanmax(bar, initial=0.0) >= VISIBLE * (high - low))
        _draw_curve(ax, curve, bar, estimates, visible=visible)
        labels.append((curve.y[np.flatnonzero(np.isfinite(curve.y))[-1]], curve.name, curve.colour, curve.marker))
        seen |= visible
    end_labels(ax, labels)
    errors = np.concatenate([curve.error[np.isfinite(curve.y) & np.isfinite(curve.error)] for curve in panel.curves])
    if errors.size:
        words = f"error up to ± {errors.max():.2g}" + ("" if seen else ": bars too small to draw")
        ax.set_title(words, loc="right", pad=3, color=MUTED)
    if not curves:
        ax.text(0.5, 0.5, "no value: layers not resolved", transform=ax.transAxes, ha="center", weight="bold")


def _draw_curve(ax: Axes, curve: Curve, bar: np.ndarray, estimates: np.ndarray, *, visible: bool) -> None:
    many = len(curve.x) > MARKED
    ax.plot(curve.x, curve.y, color=curve.colour, lw=1.2 if many else 0.7)
    if visible and many:
        ax.fill_between(curve.x, curve.y - bar[0], curve.y + bar[1], facecolor=curve.colour, alpha=0.3, lw=0)
    if many:
        return
    if visible:
        known = np.isfinite(bar).all(axis=0)
        ax.errorbar(curve.x[known], curve.y[known], yerr=bar[:, known], fmt="none", ecolor=curve.colour, capsize=2.5)
    hollow = np.isin(np.floor(curve.x), estimates) | np.isin(np.ceil(curve.x), estimates)
    style: dict[str, Any] = {
        "ls": "",
        "marker": curve.marker,
        "color": curve.colour,
        "ms": 5 if len(curve.x) < 70 else 3,
    }
    for chosen, fill in ((~hollow, "full"), (hollow, "none")):
        if chosen.any():
            ax.plot(curve.x[chosen], curve.y[chosen], fillstyle=fill, **style)


def _wide(*values: np.ndarray) -> str:
    """Say "log" where the values are positive and span a decade."""
    known = np.concatenate(values)
    known = known[np.isfinite(known)]
    return "log" if known.size and known.min() > 0 and known.max() >= 10 * known.min() else "linear"
