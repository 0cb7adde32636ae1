"""Draw what stress does to spectra: eigenvalues with their head and tail, and the plane of effective rank and slope.

Plain values of a run's sections in, matplotlib figures out; nothing is estimated here.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .canvas import BLUE, GREEN, INK, MUTED, VERMILLION, drawing, floats, forth, limits, set_ticks

# condition → (colour, marker, line, words)
SIDES = {
    "healthy": (GREEN, "^", (0, (1, 1.5)), "clean, transcribed well"),
    "clean": (BLUE, "o", "-", "clean"),
    "stressed": (VERMILLION, "s", (0, (5, 2)), "stressed"),
}
NAMES = {"self_attention": "self-attention", "cross_attention": "cross-attention", "mlp": "MLP"}
WINDOWS = (10, 50)
MOST_LAYERS = 4
HEAD = 10


def components_of(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """List the components of rows, in order.

    Examples
    --------
    >>> components_of([{"component": "mlp"}, {"component": "mlp"}])
    ['mlp']
    """
    return list(dict.fromkeys(row["component"] for row in rows))


def drawn_layers(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Choose at most four layers, evenly spaced, the first and the last among them.

    Examples
    --------
    >>> drawn_layers([{"layer": layer} for layer in range(1, 13)])
    [1, 5, 8, 12]
    """
    layers = sorted({row["layer"] for row in rows})
    places = np.linspace(0, len(layers) - 1, min(MOST_LAYERS, len(layers)))
    return [layers[round(place)] for place in places.tolist()]


def spectra_figure(rows: Sequence[Mapping[str, Any]], component: str) -> Figure:
    """Draw eigenvalues of one component, a row of axes per layer.

    Parameters
    ----------
    rows : `component`, `layer` and eigenvalues as "clean", "stressed", and "healthy" where there is a baseline.
    component : which of them.

    Returns
    -------
    Figure
        Left: both axes logarithmic, with the windows marked; the inset has the first ten on linear axes. Right: the
        second half of the modes, stretched, only the vertical axis logarithmic.
    """
    mine = [row for row in rows if row["component"] == component]
    layers = drawn_layers(mine)
    height = 2.7 * len(layers) + 0.75
    with drawing(height) as figure:
        axes = figure.subplots(len(layers), 2, squeeze=False, width_ratios=[1.55, 1])
        figure.subplots_adjust(
            left=0.075, right=0.985, top=1 - 0.5 / height, bottom=0.48 / height, hspace=0.32, wspace=0.16
        )
        for (main, tail), layer in zip(axes, layers, strict=True):
            row = next(row for row in mine if row["layer"] == layer)
            sides = {side: floats(row[side]) for side in SIDES if row.get(side)}
            _draw_whole(main, sides, f"{NAMES.get(component, component)}, layer {layer}")
            _draw_tail(tail, sides)
        for ax in axes[-1]:
            ax.set_xlabel("mode i")
        handles = [line for line in axes[0, 0].get_lines() if str(line.get_label())[0] != "_"]
        figure.legend(handles=handles, loc="upper right", ncols=len(handles), frameon=False, bbox_to_anchor=(0.99, 1.0))
    return figure


def _draw_whole(ax: Axes, sides: Mapping[str, np.ndarray], title: str) -> None:
    inset = ax.inset_axes((0.055, 0.09, 0.36, 0.42))
    most = max((mu.size for mu in sides.values()), default=1)
    for side, mu in sides.items():
        colour, marker, line, words = SIDES[side]
        modes = np.arange(1, mu.size + 1)
        ax.plot(np.log10(modes), forth(mu, "log"), color=colour, ls=line, lw=1.5, label=words)
        inset.plot(modes[:HEAD], mu[:HEAD], color=colour, ls=line, lw=1, marker=marker, ms=3)
    low, high = limits(np.concatenate([forth(mu, "log") for mu in sides.values()]), "log")
    low -= 0.15 * (high - low)  # room for the inset below the first modes
    right = np.log10(most) + 0.03
    ax.set_xlim(-0.03, right)
    ax.set_ylim(low, high)
    set_ticks(ax.xaxis, "log", -0.03, right)
    set_ticks(ax.yaxis, "log", low, high)
    for window in WINDOWS:
        if window <= most:
            ax.axvline(np.log10(window), color=MUTED, ls=":", lw=1)
            ax.annotate(f"K = {window}", (np.log10(window), 1.0), xycoords=("data", "axes fraction"), xytext=(3, -9),
                        textcoords="offset points", color=MUTED, fontsize=8)  # fmt: skip
    ax.set_ylabel("eigenvalue μᵢ of the covariance")
    ax.set_title(title, loc="left")
    inset.set_facecolor("#ffffff00")
    inset.set_ylim(bottom=0)
    inset.tick_params(labelsize=7, length=2)
    inset.set_title(f"first {HEAD}, linear", fontsize=7.5, loc="right", color=MUTED, pad=2)


def _draw_tail(ax: Axes, sides: Mapping[str, np.ndarray]) -> None:
    most = max((mu.size for mu in sides.values()), default=1)
    first = max(1, most // 2)
    for side, mu in sides.items():
        colour, _, line, _ = SIDES[side]
        ax.plot(np.arange(1, mu.size + 1)[first - 1 :], forth(mu, "log")[first - 1 :], color=colour, ls=line, lw=1.5)
    low, high = limits(np.concatenate([forth(mu, "log")[first - 1 :] for mu in sides.values()]), "log")
    ax.set_ylim(low, high)
    set_ticks(ax.yaxis, "log", low, high)
    ax.set_xlim(first, most + 0.5)
    ax.set_title(f"tail: modes {first} to {most}", loc="left")


def plane_figure(rows: Sequence[Mapping[str, Any]], modes: int) -> Figure:
    """Draw effective rank against slope, clean to stressed, for every component and layer.

    Parameters
    ----------
    rows : `component`, `layer`, `modes`, `condition`, `alpha_status`, and `effective_rank`, `alpha`: value, low, high.
    modes : the window.

    Returns
    -------
    Figure
        Bars are 95 % intervals. Hollow: no power law fits. The number is the layer; lines join the two conditions.
    """
    mine = [row for row in rows if row["modes"] == modes]
    components = components_of(mine)
    with drawing(3.9) as figure:
        axes = figure.subplots(1, len(components), squeeze=False)[0]
        figure.subplots_adjust(left=0.06, right=0.985, top=0.87, bottom=0.13, wspace=0.2)
        for ax, component in zip(axes, components, strict=True):
            here = [row for row in mine if row["component"] == component]
            for layer in sorted({row["layer"] for row in here}):
                _draw_move(ax, [row for row in here if row["layer"] == layer])
            ax.set_title(NAMES.get(component, component), loc="left")
            ax.set_xlabel(f"effective rank N_eff (modes, of {modes})")
        axes[0].set_ylabel("slope α (dimensionless; steeper is up)")
        handles = [
            axes[0].plot([], [], color=SIDES[side][0], marker=SIDES[side][1], ls="", label=side)[0]
            for side in ("clean", "stressed")
        ]
        hollow: dict[str, Any] = {"color": INK, "marker": "o", "mfc": "none", "ls": ""}
        handles += axes[0].plot([], [], label="no power law fits", **hollow)
        figure.legend(handles=handles, loc="upper right", ncols=3, frameon=False, bbox_to_anchor=(0.99, 1.0))
    return figure


def _draw_move(ax: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    ends = []
    for row in rows:
        colour, marker, _, _ = SIDES[row["condition"]]
        x, y = floats(row["effective_rank"]), floats(row["alpha"])
        if not np.isfinite([x[0], y[0]]).all():
            continue
        ends.append((x[0], y[0]))
        # an interval is centred on the value less its bias, so a bar may begin beside its point
        for bar, at, sideways in ((x, y[0], True), (y, x[0], False)):
            if np.isfinite(bar[1:]).all():
                draw = ax.hlines if sideways else ax.vlines
                draw(at, bar[1], bar[2], color=colour, lw=0.9, alpha=0.7)
        fill = colour if row["alpha_status"] == "OK" else "none"
        ax.plot(x[0], y[0], marker=marker, color=colour, mfc=fill, mec=colour, ms=6, zorder=3)
        if row["condition"] == "stressed":
            ax.annotate(str(row["layer"]), (x[0], y[0]), xytext=(5, 4), textcoords="offset points", fontsize=8)
    if len(ends) == 2:
        ax.plot(*zip(*ends, strict=True), color=INK, lw=0.7, alpha=0.6)
