"""Draw what a record says: margins of the hypotheses, numbers per layer, bounds by depth.

Plain mappings of `Verification.to_dict` in, matplotlib figures out; nothing is estimated here.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from .canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    PURPLE,
    VERDICTS,
    VERMILLION,
    drawing,
    end_labels,
    forth,
    limits,
    set_ticks,
)
from .console import NAMES, number

# what a hypothesis or a part of it compares with its threshold, and the side on which it is met
QUANTITIES = {
    "gain": ("ρ, smallest effective gain", "≥"),
    "cumulative_gain": ("S, smallest cumulative gain", "≥"),
    "gain_literal": ("ρ, smallest effective gain from j = 1", "≥"),
    "alignment": ("ε_κ·L, largest 1-|κ| times depth", "≤"),
    "alignment_literal": ("ε_κ·L from j = 1", "≤"),
    "projection": ("γ, smallest share of an injection on the path", "≥"),
    "directionality": ("smallest |⟨g, ψ⟩|, signs ignored", "≥"),
    "sign_consistency": ("d, coherence of the signed injections", "≥"),
    "purity": ("ξ·L/γ, largest gap ratio times depth over γ", "≤"),
    "purity_literal": ("ξ·L/γ from j = 1", "≤"),
}
# hypotheses that are two statements joined by "and": they carry the numbers of the one that binds
JOINED = {"stability": ("gain", "cumulative_gain"), "coherence": ("projection", "sign_consistency")}
MARKED = 130  # with more layers markers run into each other, and bars become a band
VISIBLE = 0.006  # shortest half bar, as a share of the axis, that can be told from a line
BOUND_LINES = (
    ("log_paper", "the paper's bound", "s", ":", VERMILLION),
    ("log_telescoping", "telescoping bound", "^", "-.", PURPLE),
    ("log_transfer", "transfer bound", "D", "--", BLUE),
    ("log_row_exact", "row-exact, upper", "v", "-", GREEN),
    ("log_residual", "true residual", "o", "-", INK),
    ("log_row_exact_lower", "row-exact, lower", "^", "-", GREEN),
)


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


def condition_figure(chain: Mapping[str, Any]) -> Figure:
    """Draw value against threshold for each hypothesis, on one axis each.

    Parameters
    ----------
    chain : a verification as a mapping.

    Returns
    -------
    Figure
        The side of the threshold on which the hypothesis fails is hatched.
    """
    conditions = chain["conditions"]
    with drawing(4.4) as figure:
        axes = figure.subplots(len(conditions), 1, squeeze=False)[:, 0]
        figure.subplots_adjust(left=0.16, right=0.985, top=0.95, bottom=0.10, hspace=1.45)
        for ax, (name, condition) in zip(axes, conditions.items(), strict=True):
            _draw_condition(ax, name, condition)
    return figure


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
        for start, stop in _runs(layer["layer"] for layer in layers if not layer["resolved"]):
            for ax in axes:
                ax.axvspan(start - 0.5, stop + 0.5, facecolor="none", edgecolor=MUTED, hatch="////", lw=0, zorder=0)
                ax.text((start + stop) / 2, 0.9, "?", transform=ax.get_xaxis_transform(), ha="center", weight="bold")
        _layer_axis(axes[-1], 1, len(layers), "layer l (a coupling stands between the two layers it joins)")
    return figure


def bound_figure(chain: Mapping[str, Any]) -> Figure:
    """Draw the bounds of the residual and the residual itself against depth, in units of their common scale.

    Parameters
    ----------
    chain : a verification as a mapping, with its `profile`.

    Returns
    -------
    Figure
        log10 of bound over scale for the chain cut off at each depth; the row-exact bound is a band.
    """
    profile = chain["profile"]
    depth, unit = _floats(profile["depth"]), _floats(profile["log_scale"])
    share = {name: (_floats(profile[name]) - unit) / math.log(10) for name, *_ in BOUND_LINES}
    seen = np.concatenate([share[name] for name in ("log_paper", "log_row_exact", "log_residual")])
    # the lower bound may be far below, or 0: it gets two decades beyond the rest, and leaves the axis there
    least = np.maximum(share["log_row_exact_lower"], np.nanmin(seen, initial=0.0) - 2)
    low, high = limits(np.concatenate([seen, least]), "linear")
    labels = []
    with drawing(4.4) as figure:
        ax = figure.subplots()
        figure.subplots_adjust(left=0.085, right=0.80, top=0.97, bottom=0.12)
        # where the lower bound is 0 the band goes on beyond the axis
        under = np.where(np.isfinite(share["log_row_exact_lower"]), share["log_row_exact_lower"], low - 1)
        ax.fill_between(depth, under, share["log_row_exact"], facecolor=GREEN, alpha=0.2, lw=0)
        for name, words, marker, line, colour in BOUND_LINES:
            y = share[name]
            seen = np.flatnonzero(np.isfinite(y) & (y >= low))
            if not seen.size:
                continue
            every, width = max(1, len(depth) // 12), 2.4 if name == "log_residual" else 1.3
            ax.plot(depth, y, color=colour, ls=line, marker=marker, markevery=every, ms=5, lw=width)
            labels.append((y[seen[-1]], words, colour, marker))
        allowance = chain["claims"]["identity"]["tolerance"]
        if allowance and math.log10(allowance) > low:
            ax.axhline(math.log10(allowance), color=MUTED, ls=(0, (1, 3)), lw=1.2)
            labels.append((math.log10(allowance), "rounding allowance", MUTED, ""))
        ax.set_ylim(low, high)
        ax.set_ylabel("log₁₀ of norm over Σ S·‖G‖ (dimensionless)")
        ax.grid(axis="y", color=MUTED, alpha=0.25, lw=0.6)
        _layer_axis(ax, depth[0], depth[-1], "depth: number of layers of the chain that are kept")
        end_labels(ax, labels)
    return figure


def binding_part(name: str, condition: Mapping[str, Any]) -> str:
    """Name the part of a hypothesis whose numbers the hypothesis carries, or the hypothesis itself.

    Parameters
    ----------
    name, condition : one item of `conditions`.

    Examples
    --------
    >>> entry = {"value": 2.0, "threshold": 1.0, "margin": 1.0, "layer": 3}
    >>> binding_part("stability", entry | {"parts": {"gain": entry | {"value": 3.0}, "cumulative_gain": entry}})
    'cumulative_gain'
    """
    same = lambda part: all(part[key] == condition[key] for key in ("value", "threshold", "margin", "layer"))
    return next((part for part in JOINED.get(name, ()) if same(condition["parts"][part])), name)


def _draw_condition(ax: Axes, name: str, condition: Mapping[str, Any]) -> None:
    marker, colour, sign = VERDICTS[condition["verdict"]]
    verdict = f"{sign} {condition['verdict'].replace('_', ' ')}"
    ax.text(-0.02, 0.78, NAMES[name], transform=ax.transAxes, ha="right", va="center", weight="bold")
    ax.text(-0.02, 0.25, verdict, transform=ax.transAxes, ha="right", va="center", color=colour, weight="bold")
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_locator(NullLocator())
    ax.spines["left"].set_visible(False)
    value, threshold, error = (condition[key] for key in ("value", "threshold", "error"))
    reason = condition["reason"].replace("_", " ")
    quantity, sense = QUANTITIES.get(binding_part(name, condition), (NAMES[name], "≥"))
    # a value that is no number here is infinite where a verdict was reached all the same
    if threshold is None or (value is None and condition["verdict"] in ("NOT_APPLICABLE", "UNDECIDED")):
        ax.xaxis.set_major_locator(NullLocator())
        ax.text(0.5, 0.5, f"no value: {reason}", transform=ax.transAxes, ha="center", va="center", color=MUTED)
        return
    infinite = value is None
    value, wide = (math.inf, 0.0) if infinite else (value, math.inf if error is None else error)
    scale, low, high = _span(value, threshold, wide)
    at, limit = forth(value, scale).item(), forth(threshold, scale).item()
    at = high - 0.02 * (high - low) if infinite else at
    ends = np.nan_to_num(forth([value - wide, value + wide], scale), nan=low)
    ends[1] = high if math.isinf(wide) else ends[1]
    ax.set_xlim(low, high)
    set_ticks(ax.xaxis, scale, low, high, count=8)
    ax.set_xlabel(f"{quantity} (dimensionless)", labelpad=1)
    ax.axvspan(*((low, limit) if sense == "≥" else (limit, high)), facecolor="none", edgecolor=MUTED, hatch="////", lw=0)
    ax.axvline(limit, color=INK, ls="--", lw=1.4)
    bar = np.abs(np.clip(ends, low, high) - at)[:, None] if not infinite else None
    ax.errorbar(at, 0.45, xerr=bar, fmt=marker, color=colour, mec=INK, mew=0.8, ms=9, capsize=4, lw=1.6, clip_on=False)
    said = "∞" if infinite else f"{number(value)} ± {'∞' if error is None else f'{error:.2g}'}"
    said = "nothing to check: holds vacuously" if reason == "vacuous" else said
    above = {True: {"ha": "left", "xytext": (3, 2)}, False: {"ha": "right", "xytext": (-3, 2)}}
    ax.annotate(said, (at, 1.0), textcoords="offset points", **above[at >= limit and not infinite])
    fails = "fails below" if sense == "≥" else "fails above"
    ax.annotate(f"{fails} {number(threshold)}", (limit, 1.0), textcoords="offset points", **above[sense == "≤"])


def _span(value: float, threshold: float, error: float) -> tuple[str, float, float]:
    """Choose scale and ends of an axis with room for value, threshold, bar and the words above them."""
    low, high = sorted((value, threshold))
    scale = "log" if low > 0 and high / low >= 10 else "linear"
    a, b = (forth(x, scale).item() for x in (low, high))
    if math.isinf(high):
        b = a + (3 if scale == "log" else max(abs(a), 1.0))
    room = b - a or 0.1 * abs(a) or 1.0
    if scale == "linear" and math.isfinite(error) and error > 0.5 * room:
        a, b = a - error, b + error
    return scale, a - 0.6 * room, b + 0.6 * room


def _panels(chain: Mapping[str, Any]) -> list[Panel]:
    """Collect what the layer figure shows, in axis coordinates."""
    layers, thresholds = chain["layers"], chain["thresholds"]
    depth = len(layers)
    column = lambda name: _floats([layer[name] for layer in layers])
    x, sigma1, sigma2, xi = (column(name) for name in ("layer", "sigma1", "sigma2", "xi"))
    between = x[:-1] + 0.5
    scale = _wide(sigma1, sigma2)
    gamma = chain["conditions"]["coherence"]["parts"]["projection"]["value"]
    purest = thresholds["purity"] * gamma / depth if gamma else None
    xi_scale = "log" if np.any((xi > 0) & (xi < 0.1)) else "linear"
    sigma_error = column("sigma_error")
    panels = [
        Panel(
            "two largest singular values",
            "σ (dimensionless)",
            [
                _curve("σ₁", x, sigma1, sigma_error, scale, "o", BLUE),
                _curve("σ₂", x, sigma2, sigma_error, scale, "^", VERMILLION),
            ],
            scale=scale,
        ),
        Panel(
            "gap ratio ξ = σ₂/σ₁",
            "ξ (dimensionless)",
            [_curve("ξ", x, xi, column("xi_error"), xi_scale, "s", PURPLE)],
            _levels(xi_scale, (purest, f"H4 needs ≤ {number(purest)}")),
            xi_scale,
            (0.0, 1.05) if xi_scale == "linear" else None,
        ),
    ]
    if depth < 2:
        return panels
    kappa, kappa_error, rho, lam = (column(name)[:-1] for name in ("kappa_abs", "kappa_error", "rho", "lam"))
    rho_scale = _wide(rho, np.asarray([thresholds["gain"]]))
    near = bool(np.isfinite(kappa).any()) and bool(np.all(kappa[np.isfinite(kappa)] > 0.9))
    asked, chance = thresholds["alignment"] / depth, chain.get("chance_kappa")
    asked_words, chance_words = f"H2 needs ≥ {number(1 - asked)}", f"chance {number(chance)}"
    if near:
        # 1 - |kappa| from the misalignment: taken from |kappa| it would show rounding
        defect = column("misalignment")[:-1] ** 2 / (1 + kappa)
        curve = _curve("|κ|", between, defect, kappa_error, "nines", "o", BLUE)
        levels = _levels("nines", (asked, asked_words), (None if chance is None else 1 - chance, chance_words))
    else:
        curve = _curve("|κ|", between, kappa, kappa_error, "linear", "o", BLUE)
        levels = _levels("linear", (1 - asked, asked_words), (chance, chance_words))
    rho_error, lam_error = column("rho_error")[:-1], column("lam_error")[:-1]
    return [
        *panels,
        Panel(
            "alignment |κ| of neighbouring layers",
            "|κ| (dimensionless)",
            [curve],
            levels,
            "nines" if near else "linear",
            None if near else (0.0, 1.05),
        ),
        Panel(
            "effective gain ρ = σ₁|κ|",
            "ρ (dimensionless)",
            [_curve("ρ", between, rho, rho_error, rho_scale, "D", GREEN)],
            _levels(rho_scale, (thresholds["gain"], f"H1 needs ≥ {number(thresholds['gain'])}")),
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
    y = forth(value, scale)
    ends = np.stack([forth(np.maximum(value - error, 0.0) if scale != "linear" else value - error, scale),
                     forth(value + error, scale)])
    # a bar down to zero has no lower end on a logarithmic axis
    ends = np.where(np.isfinite(ends), ends, np.where(np.isfinite(y) & np.isfinite(error), -np.inf, y))
    low, high = np.sort(-ends if scale == "nines" else ends, axis=0)
    return Curve(name, x, y, -high if scale == "nines" else low, -low if scale == "nines" else high, error, marker, colour)


def _levels(scale: str, *levels: tuple[float | None, str]) -> list[tuple[float, str]]:
    placed = [(forth(level, scale).item(), words) for level, words in levels if level is not None]
    return [(level, words) for level, words in placed if math.isfinite(level)]


def _draw_panel(ax: Axes, panel: Panel, estimates: np.ndarray) -> None:
    curves = [curve for curve in panel.curves if np.isfinite(curve.y).any()]
    extent = [array for curve in curves for array in (curve.y, curve.low, curve.high)]
    low, high = panel.ends or limits(np.concatenate([*extent, [level for level, _ in panel.levels]]), panel.scale)
    ax.set_ylim(low, high)
    set_ticks(ax.yaxis, panel.scale, low, high)
    ax.set_title(panel.title, loc="left", pad=3)
    ax.set_ylabel(panel.unit)
    ax.grid(axis="y", color=MUTED, alpha=0.25, lw=0.6)
    labels = [(level, words, INK, "") for level, words in panel.levels]
    for level, words in panel.levels:
        ax.axhline(level, color=INK, ls=(0, (1, 2)) if words.startswith("chance") else "--", lw=1.2)
    reach = 0.0
    for curve in curves:
        bar = np.abs(np.stack([curve.y - np.clip(curve.low, low, high), np.clip(curve.high, low, high) - curve.y]))
        reach = max(reach, np.nanmax(bar) / (high - low))
        _draw_curve(ax, curve, bar, estimates, visible=np.nanmax(bar) >= VISIBLE * (high - low))
        labels.append((curve.y[np.flatnonzero(np.isfinite(curve.y))[-1]], curve.name, curve.colour, curve.marker))
    end_labels(ax, labels)
    errors = np.concatenate([curve.error[np.isfinite(curve.y)] for curve in panel.curves])
    errors = errors[np.isfinite(errors)]
    words = f"error up to ± {number(errors.max())}" if errors.size else ""
    ax.set_title(f"{words}: bars too small to draw" if words and reach < VISIBLE else words, loc="right", pad=3, color=MUTED)
    absent = len(panel.curves) - len(curves)
    if absent:
        zero = all(np.any(np.isneginf(curve.low)) for curve in panel.curves if curve not in curves)
        said = "σ₂ is 0 in every layer" if zero else "no value"
        ax.text(0.5, 0.5, said, transform=ax.transAxes, ha="center", va="center", color=MUTED)


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
    style: dict[str, Any] = {"ls": "", "marker": curve.marker, "color": curve.colour, "ms": 5 if len(curve.x) < 70 else 3}
    for chosen, fill in ((~hollow, "full"), (hollow, "none")):
        if chosen.any():
            ax.plot(curve.x[chosen], curve.y[chosen], fillstyle=fill, **style)


def _layer_axis(ax: Axes, first: float, last: float, words: str) -> None:
    ax.set_xlim(first - 0.5, last + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    ax.set_xlabel(words)


def _wide(*values: np.ndarray) -> str:
    """Say "log" where positive values span a decade."""
    known = np.concatenate(values)
    known = known[np.isfinite(known) & (known > 0)]
    return "log" if known.size and known.max() >= 10 * known.min() else "linear"


def _floats(values: Iterable[float | None]) -> np.ndarray:
    return np.asarray([math.nan if value is None else value for value in values], dtype=float)


def _runs(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Join neighbouring numbers to (first, last)."""
    start = stop = None
    for value in numbers:
        if stop is not None and start is not None and value != stop + 1:
            yield start, stop
            start = value
        start, stop = value if start is None else start, value
    if start is not None and stop is not None:
        yield start, stop
