"""Draw how much of each bound is attained at given scalars: one panel per bound and depth, a cell per (kappa, xi).

Plain records in, a matplotlib figure out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator

from .canvas import INK, drawing

TITLES = {
    "total_norm": "norm of the product",
    "paper": "paper",
    "telescoping": "telescoping",
    "transfer": "transfer",
    "damped": "damped",
    "row_exact": "row-exact, upper",
    "row_exact_lower": "row-exact, lower",
    "top_k": "top 2, upper",
    "top_k_lower": "top 2, lower",
}
SIDE = 1.55  # inches of a panel


def tightness_figure(cells: Sequence[Mapping[str, Any]], *, bounds: Sequence[str], layers: Sequence[int]) -> Figure:
    """Draw attained fractions as numbers on a scale of grey-blue, rows by depth, columns by bound.

    Parameters
    ----------
    cells : rows with layers, kappa, xi and bounds, as `tightness` records them; one sigma and gamma.
    bounds, layers : columns and rows that are shown.

    Returns
    -------
    Figure
        A cell without a number was not worked out.

    Examples
    --------
    >>> cell = {"layers": 4, "kappa": 0.5, "xi": 0.1, "bounds": {"transfer": {"attained": 0.75}}}
    >>> figure = tightness_figure([cell], bounds=["transfer"], layers=[4])
    >>> [text.get_text() for text in figure.axes[0].texts]
    ['.75']
    """
    height = SIDE * len(layers) + 1.05
    with drawing(height) as figure:
        grid = figure.add_gridspec(len(layers), len(bounds))
        figure.subplots_adjust(
            left=0.085, right=0.925, top=1 - 0.4 / height, bottom=0.6 / height, hspace=0.12, wspace=0.08
        )
        mesh = None
        for row, depth in enumerate(layers):
            for column, bound in enumerate(bounds):
                ax = figure.add_subplot(grid[row, column])
                mesh = _panel(ax, [cell for cell in cells if cell["layers"] == depth], bound)
                ax.tick_params(labelleft=column == 0, labelbottom=row == len(layers) - 1, length=2, labelsize=7)
                if row == 0:
                    ax.set_title(TITLES[bound], pad=4)
                if column == 0:
                    ax.set_ylabel(f"L = {depth}\nalignment κ")
                if row == len(layers) - 1:
                    ax.set_xlabel("gap ratio ξ")
        assert mesh is not None
        bar = figure.colorbar(mesh, cax=figure.add_axes((0.94, 0.6 / height, 0.012, 1 - 1.0 / height)))
        bar.set_label("attained fraction of the bound (1)")
    return figure


def _panel(ax: Axes, cells: Sequence[Mapping[str, Any]], bound: str) -> Any:
    kappas, xis = (sorted({cell[name] for cell in cells}) for name in ("kappa", "xi"))
    shown = np.full((len(kappas), len(xis)), np.nan)
    for cell in cells:
        value = cell["bounds"].get(bound, {}).get("attained")
        shown[kappas.index(cell["kappa"]), xis.index(cell["xi"])] = math.nan if value is None else value
    mesh = ax.pcolormesh(np.arange(len(xis) + 1), np.arange(len(kappas) + 1), shown, cmap="cividis", vmin=0, vmax=1)
    for row, column in np.argwhere(np.isfinite(shown)).tolist():
        value = float(shown[row, column])
        ax.text(
            column + 0.5,
            row + 0.5,
            _short(value),
            ha="center",
            va="center_baseline",
            fontsize=6.5,
            color=INK if value > 0.45 else "white",
        )
    ax.xaxis.set_major_locator(FixedLocator([i + 0.5 for i in range(len(xis))]))
    ax.xaxis.set_major_formatter(FixedFormatter([f"{x:g}" for x in xis]))
    ax.yaxis.set_major_locator(FixedLocator([i + 0.5 for i in range(len(kappas))]))
    ax.yaxis.set_major_formatter(FixedFormatter([f"{x:g}" for x in kappas]))
    return mesh


def _short(value: float) -> str:
    """Write a fraction in two digits, rounded down: 1 is kept for what is 1 to six digits."""
    if value > 1 - 1e-6:
        return "1"
    return f".{math.floor(100 * value + 1e-9):02d}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")
