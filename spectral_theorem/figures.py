"""Draw margins of the hypotheses, and bounds by depth.

Plain mappings of `Verification.to_dict` in, matplotlib figures out; nothing is estimated here.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

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
    floats,
    forth,
    layer_axis,
    limits,
    set_ticks,
)
from .console import NAMES

# what a hypothesis or a part of it compares with its threshold, and the side on which it is met
QUANTITIES = {
    "gain": ("ρ, smallest effective gain", "≥"),
    "cumulative_gain": ("S, smallest cumulative gain", "≥"),
    "gain_literal": ("ρ, smallest effective gain from j = 1", "≥"),
    "alignment": ("εL, with ε the largest 1-|κ|", "≤"),
    "alignment_literal": ("εL from j = 1", "≤"),
    "projection": ("γ, smallest share of an injection on the path", "≥"),
    "directionality": ("smallest |⟨g, ψ⟩|, signs ignored", "≥"),
    "sign_consistency": ("d, coherence of the signed injections", "≥"),
    "purity": ("ξL/γ, largest gap ratio times depth over γ", "≤"),
    "purity_literal": ("ξL/γ from j = 1", "≤"),
}
# hypotheses that are two statements joined by "and": they carry the numbers of the one that binds
JOINED = {"stability": ("gain", "cumulative_gain"), "coherence": ("projection", "sign_consistency")}
BOUND_LINES = (
    ("log_paper", "the paper's bound", "s", ":", VERMILLION),
    ("log_telescoping", "telescoping bound", "^", "-.", PURPLE),
    ("log_transfer", "transfer bound", "D", "--", BLUE),
    ("log_row_exact", "row-exact, upper", "v", "-", GREEN),
    ("log_residual", "true residual", "o", "-", INK),
    ("log_row_exact_lower", "row-exact, lower", "^", "-", GREEN),
)


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
    depth, unit = floats(profile["depth"]), floats(profile["log_scale"])
    share = {name: (floats(profile[name]) - unit) / math.log(10) for name, *_ in BOUND_LINES}
    extent = np.concatenate([share[name] for name in ("log_paper", "log_row_exact", "log_residual")])
    least = np.nanmin(extent, initial=0.0)
    allowance = chain["claims"]["identity"]["tolerance"]
    floor = [math.log10(allowance)] if allowance and math.log10(allowance) > least else []
    # the lower bound may be far below, or 0: it gets two decades beyond the rest, and leaves the axis there
    low, high = limits(np.concatenate([extent, np.maximum(share["log_row_exact_lower"], least - 2), floor]), "linear")
    low, high = min(low, high - 1.0), max(high, low + 1.0)
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
        for level in floor:
            ax.axhline(level, color=MUTED, ls=(0, (1, 3)), lw=1.2)
            labels.append((level, "rounding allowance", MUTED, ""))
        ax.set_ylim(low, high)
        ax.set_ylabel("log₁₀ of norm over Σ S·‖G‖ (dimensionless)")
        ax.grid(axis="y", color=MUTED, alpha=0.25, lw=0.6)
        layer_axis(ax, profile["depth"][0], profile["depth"][-1], "depth: number of layers of the chain that are kept")
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
    value, threshold, error = (condition[key] for key in ("value", "threshold", "error"))
    reason = condition["reason"].replace("_", " ")
    # a value that is no number here is infinite where a verdict was reached all the same
    infinite = value is None and condition["verdict"] in ("HOLDS", "VIOLATED")
    part = binding_part(name, condition)
    quantity, sense = QUANTITIES.get(part, (NAMES[name], "≥"))
    said = "∞" if infinite else "" if value is None else f"{value:.4g} ± {'∞' if error is None else f'{error:.2g}'}"
    said = "nothing to check" if reason == "vacuous" and part in ("gain", "alignment") else said
    verdict = f"{sign} {condition['verdict'].replace('_', ' ')}"
    bold = {"weight": "bold"}
    for height, words, style in ((1.0, NAMES[name], bold), (0.5, verdict, bold), (0.0, said, {})):
        ax.text(-0.02, height, words, transform=ax.transAxes, ha="right", va="center", **style)
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_locator(NullLocator())
    ax.spines["left"].set_visible(False)
    if threshold is None or (value is None and not infinite):
        ax.xaxis.set_major_locator(NullLocator())
        ax.text(0.5, 0.5, f"no value: {reason}", transform=ax.transAxes, ha="center", va="center")
        return
    value = math.inf if value is None else value
    wide = 0.0 if infinite else math.inf if error is None else error
    scale, low, high = _span(value, threshold, wide)
    limit = forth(threshold, scale).item()
    at = high if infinite else forth(value, scale).item()
    # no quantity here is negative, so a bar ends at 0, which a logarithmic axis does not have
    below, above = forth([max(value - wide, 0.0), value + wide], scale).tolist()
    below = at if infinite else -math.inf if math.isnan(below) else below
    ends = np.asarray([below, math.inf if math.isnan(above) else above])
    ax.set_xlim(low, high)
    set_ticks(ax.xaxis, scale, low, high, count=8)
    ax.set_xlabel(f"{quantity} (dimensionless)", labelpad=1)
    fails, words = ((low, limit), "fails below") if sense == "≥" else ((limit, high), "fails above")
    ax.axvspan(*fails, facecolor="none", edgecolor=MUTED, hatch="////", lw=0)
    ax.axvline(limit, color=INK, ls="--", lw=1.4)
    side: dict[str, Any] = {"ha": "right", "xytext": (-3, 2)} if sense == "≥" else {"ha": "left", "xytext": (3, 2)}
    ax.annotate(f"{words} {threshold:.4g}", (limit, 1.0), textcoords="offset points", **side)
    bar = np.abs(np.clip(ends, low, high) - at)[:, None]
    style: dict[str, Any] = {"color": colour, "mec": INK, "mew": 0.8, "clip_on": False}
    ax.errorbar(at, 0.45, xerr=bar, fmt=marker, ms=9, capsize=4, lw=1.6, **style)
    for end, arrow, beyond in ((low, "<", ends[0] < low), (high, ">", ends[1] > high)):
        if beyond:
            ax.plot([end], [0.45], marker=arrow, ms=7, **style)


def _span(value: float, threshold: float | int, error: float | int) -> tuple[str, float, float]:
    """Choose scale and ends of an axis with room for value, threshold, bar and the words above them."""
    low, high = sorted((max(value, 0.0), threshold))
    scale = "log" if low > 0 and high / low >= 10 else "linear"
    a, b = (forth(x, scale).item() for x in (low, high))
    if math.isinf(high):
        b = a + (3 if scale == "log" else max(abs(a), 1.0))
    room = b - a or 0.1 * abs(a) or 1.0
    if scale == "linear" and math.isfinite(error) and error > 0.5 * room:
        a, b = a - error, b + error
    low, high = a - 0.6 * room, b + 0.6 * room
    return scale, max(low, 0.0) if scale == "linear" else low, high
