"""Draw, by step, the bounds of many tokens of one clip as multiples of the residual, and the hypotheses.

Plain mappings of `Verification.to_dict` in, a matplotlib figure out; nothing is estimated here.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch

from .canvas import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    VERDICTS,
    VERMILLION,
    boxes,
    drawing,
    end_labels,
    floats,
    forth,
    limits,
    set_ticks,
    step_axis,
    step_places,
    step_room,
)
from .console import NAMES
from .sweep_words import step_name

BOUND_STYLES = (
    ("log_row_exact", "row-exact", "v", "-", GREEN),
    ("log_top_k", "top-K", "o", (0, (5, 1)), ORANGE),
    ("log_transfer", "transfer", "D", "--", BLUE),
    ("log_telescoping", "telescoping", "^", "-.", PURPLE),
    ("log_paper", "the paper's", "s", ":", VERMILLION),
)
HYPOTHESES = {
    "stability": ("ρ or S, whichever binds", "≥"),
    "alignment": ("εL", "≤"),
    "coherence": ("γ or d, whichever binds", "≥"),
    "purity": ("ξL/γ", "≤"),
}


def judgement_figure(chains: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the bounds as multiples of the residual, and the hypotheses against their thresholds, by step.

    Parameters
    ----------
    chains : verifications of its tokens as mappings, in order, with `step`, all of one depth.

    Returns
    -------
    Figure
        Logarithmic axes where values are decades apart; the side on which a hypothesis fails is hatched.
    """
    x = step_places([chain["step"] for chain in chains])
    names = [step_name(chain) for chain in chains]
    tall, foot = [2.5, *[0.85] * len(HYPOTHESES)], step_room(names)
    height = sum(tall) + 0.33 * len(tall) + foot
    with drawing(height) as figure:
        top, axes = height, []
        for each in tall:
            top -= 0.33 + each
            axes.append(figure.add_axes((0.085, top / height, 0.74, each / height)))
        _draw_bounds(axes[0], chains, x)
        for ax, name in zip(axes[1:], HYPOTHESES, strict=True):
            _draw_hypothesis(ax, name, [chain["conditions"][name] for chain in chains], x)
        for ax in axes:
            step_axis(ax, x, names, named=ax is axes[-1])
    return figure


def _broken(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put a NaN into every gap between tokens that are not neighbours, so that no line crosses it."""
    gaps = np.flatnonzero(np.diff(x) > 1.01) + 1
    return np.insert(x, gaps, np.nan), np.insert(y, gaps, np.nan)


def _draw_bounds(ax: Axes, chains: Sequence[Mapping[str, Any]], x: np.ndarray) -> None:
    truth, error = (floats([c["path"].get(key) for c in chains]) for key in ("log_residual_norm", "log_residual_error"))
    share = {name: (floats([c["bounds"][name] for c in chains]) - truth) / math.log(10) for name, *_ in BOUND_STYLES}
    extent = np.concatenate([*share.values(), [0.0]])
    low, high = limits(extent, "log")
    relative = np.exp(np.minimum(error - truth, 700.0))
    above = np.log10(1 + relative)
    below = np.log10(np.maximum(1 - relative, 1e-300))
    ax.set_ylim(low, high)
    labels = [(0.0, "the residual", INK, "")]
    down, up = (np.clip(each, low, high) for each in (below, above))
    bar = np.nan_to_num(np.stack([-down, up]))
    if bar.max(initial=0.0) >= 0.006 * (high - low):
        # a band and no bars, which would be read as heights
        ax.fill_between(*_broken(x, down), _broken(x, up)[1], facecolor=MUTED, alpha=0.3, lw=0)
        ax.errorbar(x, 0 * x, yerr=bar, fmt="none", ecolor=MUTED, elinewidth=0.8, capsize=2)
        ax.set_title("grey: the interval in which the residual lies", loc="right", pad=4, color=MUTED)
    else:
        words = f"residual known to ± {np.nanmax(relative, initial=0.0):.1g} of itself or better"
        ax.set_title(words, loc="right", pad=4, color=MUTED)
    ax.axhline(0.0, color=INK, lw=1.6)
    for name, words, marker, line, colour in BOUND_STYLES:
        y = share[name]
        seen = np.flatnonzero(np.isfinite(y))
        if not seen.size:
            continue
        ax.plot(*_broken(x, y), color=colour, ls=line, lw=0.9)
        ax.plot(x, y, color=colour, ls="", marker=marker, ms=4.5)
        labels.append((float(y[seen[-1]]), words, colour, marker))
    set_ticks(ax.yaxis, "log", low, high)
    ax.set_ylabel("bound over residual")
    ax.set_title("upper bounds as multiples of the residual ‖R_Σ‖", loc="left", pad=4)
    ax.grid(axis="y", color=MUTED, alpha=0.25, lw=0.6)
    for index in np.flatnonzero(~np.isfinite(truth)).tolist():
        ax.text(x[index], 0.5, "no residual", transform=ax.get_xaxis_transform(), rotation=90, ha="center", va="center")
    end_labels(ax, labels)


def _draw_hypothesis(ax: Axes, name: str, entries: Sequence[Mapping[str, Any]], x: np.ndarray) -> None:
    words, sense = HYPOTHESES[name]
    value, error = (floats([entry[key] for entry in entries]) for key in ("value", "error"))
    thresholds = floats([entry["threshold"] for entry in entries])
    known = np.concatenate([value, thresholds])
    known = known[np.isfinite(known)]
    scale = "log" if known.size and known.min() > 0 and known.max() >= 10 * known.min() else "linear"
    y, level = forth(value, scale), forth(thresholds, scale)
    low, high = limits(np.concatenate([y, level]), scale)
    ax.set_ylim(low, high)
    set_ticks(ax.yaxis, scale, low, high, count=3)
    ax.set_title(f"{NAMES[name]}: {words}", loc="left", pad=3)
    # tokens may be held against different thresholds, when different parts of a hypothesis bind
    here = np.isfinite(level)
    if here.any():
        at, left, right = level[here], x[here] - 0.5, x[here] + 0.5
        under, over = (np.full_like(at, low), at) if sense == "≥" else (at, np.full_like(at, high))
        fails = boxes(left, right, under, over)
        ax.add_patch(PathPatch(fails, facecolor="none", edgecolor=MUTED, hatch="////", lw=0, alpha=0.6))
        ax.hlines(at, left, right, color=INK, ls="--", lw=1.2)
        side = "below" if sense == "≥" else "above"
        named = [(each, f"fails {side} {thresholds[level == each][0]:.4g}", INK, "") for each in np.unique(at).tolist()]
        end_labels(ax, named)
    down, up = forth(np.maximum(value - error, 0.0), scale), forth(value + error, scale)
    down, up = np.where(np.isnan(down), low, np.clip(down, low, high)), np.clip(up, low, high)
    for verdict, (marker, colour, _) in VERDICTS.items():
        here = np.asarray([entry["verdict"] == verdict for entry in entries]) & np.isfinite(y)
        if here.any():
            bar = np.abs(np.stack([y - down, up - y]))[:, here]
            ax.errorbar(
                x[here], y[here], yerr=np.nan_to_num(bar), fmt=marker, ms=6, color=colour, mec=INK, mew=0.5, capsize=2,
                elinewidth=1.0, clip_on=False,
            )  # fmt: skip
    for index in np.flatnonzero(~np.isfinite(y)).tolist():
        endless = entries[index]["verdict"] in ("HOLDS", "VIOLATED")
        sign = "∞" if endless and value[index] != 0 else "0" if value[index] == 0 else "–"
        ax.text(x[index], 0.5, sign, transform=ax.get_xaxis_transform(), ha="center", va="center", weight="bold")
