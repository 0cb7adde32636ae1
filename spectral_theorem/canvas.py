"""Set what all figures share: ink and colours, axes of three scales, words at line ends, inline SVG.

Colours are those of Okabe and Ito, and whatever a colour says, a marker, a line style or a word says
too. Curves are drawn in axis coordinates, so that a logarithm is taken once and seen by every check.
"""

import contextlib
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, ScalarFormatter

from .wording import SUPERSCRIPT

BLUE, GREEN, VERMILLION, PURPLE, ORANGE = "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#e69f00"
INK, MUTED = "#010101", "#767676"
WIDTH = 10.0  # inches; 960 px where the page gives it room
LINE = 12.0  # points from one line of words to the next
STEP_GAP = 0.6  # between steps that are not neighbours
NAMED = 64  # steps at most that have room for a name each
# marker, colour and sign in text of each verdict
VERDICTS = {
    "HOLDS": ("o", GREEN, "●"),
    "VIOLATED": ("X", VERMILLION, "✖"),
    "UNDECIDED": ("D", ORANGE, "◆"),
    "NOT_APPLICABLE": ("_", MUTED, "–"),
}
STYLE: dict[Any, Any] = {
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "text.parse_math": False,
    "text.color": INK,
    "axes.facecolor": "none",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.0,
    "axes.titley": 1.0,  # left to itself, matplotlib lays out every tick once more to place a title
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.use_mathtext": False,
    "axes.formatter.limits": (-4, 5),
    "axes.formatter.useoffset": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "hatch.color": MUTED,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "none",
}


@contextlib.contextmanager
def drawing(height: float) -> Iterator[Figure]:
    """Give an empty figure of the common width, and the common style while it is filled.

    Parameters
    ----------
    height : inches.

    Examples
    --------
    >>> with drawing(2.0) as figure:
    ...     axes = figure.subplots()
    >>> float(figure.get_figheight())
    2.0
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height))
        figure.patch.set_alpha(0.0)
        yield figure


def to_svg(figure: Figure, *, salt: str, label: str) -> str:
    """Write a figure as one inline `<svg>` element, the same text for the same figure.

    Parameters
    ----------
    figure : what to write.
    salt : makes identifiers differ between figures of one page.
    label : what the figure shows, for readers who do not see it.

    Returns
    -------
    str
        Without prolog, date or font; the ink is `currentColor`, the ground transparent.

    Examples
    --------
    >>> with drawing(1.0) as figure:
    ...     _ = figure.text(0, 0, "a < b")
    >>> to_svg(figure, salt="a", label="nothing & more")[:47]
    '<svg role="img" aria-label="nothing &amp; more"'
    """
    buffer = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": salt}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = buffer.getvalue()
    text = text[text.index("<svg ") :].replace(INK, "currentColor")
    for pattern, replacement in (
        (r"(?s)<metadata>.*?</metadata>|<!--.*?-->", ""),
        (r'<g id="[^"]*"', "<g"),
        (r"font: (bold )?([0-9.]+)px [^;\"]*", lambda m: f"font-size: {m[2]}px" + "; font-weight: bold" * bool(m[1])),
        (r"\n\s*", "\n"),
    ):
        text = re.sub(pattern, replacement, text)
    words = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{words}" ', 1)


def to_png(figure: Figure) -> bytes:
    """Write a figure as a PNG on white.

    Examples
    --------
    >>> with drawing(1.0) as figure:
    ...     _ = figure.text(0, 0, "a")
    >>> to_png(figure)[1:4]
    b'PNG'
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def to_pdf(figure: Figure) -> bytes:
    """Write a figure as a PDF file, the same bytes for the same figure.

    Examples
    --------
    >>> with drawing(1.0) as figure:
    ...     _ = figure.text(0, 0, "a")
    >>> to_pdf(figure)[:5], to_pdf(figure) == to_pdf(figure)
    (b'%PDF-', True)
    """
    buffer = io.BytesIO()
    with matplotlib.rc_context({**STYLE, "pdf.fonttype": 42}):
        nothing = dict.fromkeys(("Creator", "Producer", "CreationDate"))
        FigureCanvasPdf(figure).print_pdf(buffer, metadata=nothing)
    return buffer.getvalue()


def floats(values: Iterable[float | int | None]) -> np.ndarray:
    """Take numbers of a record to an array, nulls to NaN.

    Examples
    --------
    >>> floats([1, None]).tolist()
    [1.0, nan]
    """
    return np.asarray([math.nan if value is None else value for value in values], dtype=float)


def forth(values: Any, scale: str) -> np.ndarray:
    """Take values to axis coordinates; what has no place on the axis becomes NaN.

    Parameters
    ----------
    values : array.
    scale : "linear"; "log", decades at equal distances; "nines", of 1 - x: 0.9, 0.99, 0.999 at equal distances.

    Examples
    --------
    >>> forth([100.0, 0.0], "log").tolist(), forth([0.01], "nines").tolist()
    ([2.0, nan], [2.0])
    """
    x = np.asarray(values, dtype=float)
    x = np.where(np.isfinite(x) & ((scale == "linear") | (x > 0)), x, np.nan)
    return x if scale == "linear" else np.asarray(np.log10(x) * (-1 if scale == "nines" else 1))


def limits(extent: Any, scale: str) -> tuple[float, float]:
    """Choose the ends of an axis that holds `extent`, given in axis coordinates.

    Examples
    --------
    >>> limits(np.asarray([-1.5, 0.2]), "log"), limits(np.asarray([]), "linear")
    ((-2.0, 1.0), (0.0, 1.0))
    """
    extent = np.asarray(extent)[np.isfinite(extent)]
    low, high = (float(extent.min()), float(extent.max())) if extent.size else (0.1, 0.9)
    if scale == "log":
        return float(math.floor(low - 0.05)), float(math.ceil(high + 0.05))
    if scale == "nines":
        return 0.0, high + 0.5
    # what differs by rounding alone is not spread over the whole axis
    room = 0.125 * (high - low) if high - low > 1e-6 * max(abs(low), abs(high)) else 0.05 * abs(high) or 0.05
    return low - room, high + room


def set_ticks(axis: Axis, scale: str, low: float, high: float, *, count: int = 5) -> None:
    """Put about `count` ticks on an axis and name them by the values they stand for."""
    if scale == "linear":
        axis.set_major_locator(MaxNLocator(nbins=count, min_n_ticks=2))
        axis.set_major_formatter(ScalarFormatter())
        return
    step = max(1, math.ceil((high - low) / (count + 1)))
    places = np.arange(math.ceil(low / step) * step, high + 1e-9, step).astype(int).tolist()
    name = _nines if scale == "nines" else _decade
    labels = {float(place): name(place) for place in places}
    if scale == "log" and high - low < 2:
        halves = [(place, m) for place in range(math.floor(low), math.ceil(high)) for m in (2, 5)]
        labels |= {p + math.log10(m): f"{m * 10.0**p:.4g}" for p, m in halves if low <= p + math.log10(m) <= high}
    axis.set_major_locator(FixedLocator(list(labels)))
    axis.set_major_formatter(FixedFormatter(list(labels.values())))


def end_labels(ax: Axes, labels: Sequence[tuple[float, str, str, str]]) -> None:
    """Name curves and levels at the right end of the axis, moved apart where they would touch.

    Parameters
    ----------
    ax : axes whose limits are set.
    labels : (height in axis coordinates, words, colour, marker or "").
    """
    low, high = ax.get_ylim()
    figure: Any = ax.get_figure()
    apart = LINE / (72 * figure.get_figheight() * ax.get_position().height)
    ordered = sorted(((y - low) / (high - low), *rest) for y, *rest in labels)
    places: list[float] = []
    for y, *_ in ordered:
        places.append(max(y, places[-1] + apart) if places else max(y, 0.0))
    ceiling = max(1.0, len(places) * apart)
    for index in range(len(places) - 1, -1, -1):
        places[index] = min(places[index], ceiling)
        ceiling = places[index] - apart
    style: dict[str, Any] = {"transform": ax.transAxes, "clip_on": False, "markevery": [1], "ms": 5, "lw": 0.8}
    for (y, words, colour, marker), place in zip(ordered, places, strict=True):
        ax.plot([1.0, 1.015], [y, place], color=colour, marker=marker or "None", **style)
        ax.text(1.024, place, words, transform=ax.transAxes, va="center")


def layer_axis(ax: Axes, first: int, last: int, words: str) -> None:
    """Let the horizontal axis count layers, from `first` to `last`, and name it."""
    ax.set_xlim(first - 0.5, last + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1))
    ax.set_xlabel(words)


def step_places(steps: Sequence[int]) -> np.ndarray:
    """Place tokens side by side, with a gap where steps were left out.

    Examples
    --------
    >>> step_places([0, 1, 5]).tolist()
    [0.0, 1.0, 2.6]
    """
    jumps = np.diff(np.asarray(steps, dtype=float), prepend=float(steps[0]) - 1) > 1
    return np.arange(len(steps)) + STEP_GAP * np.cumsum(jumps)


def step_axis(ax: Axes, x: np.ndarray, names: Sequence[str], *, named: bool) -> None:
    """Let the horizontal axis count steps, from `step_places`, with a name below each where `named`."""
    ax.set_xlim(x[0] - 0.6, x[-1] + 0.6)
    every = math.ceil(len(x) / NAMED)
    ax.xaxis.set_major_locator(FixedLocator(x[::every].tolist()))
    ax.tick_params(axis="x", length=2)
    if not named:
        ax.tick_params(axis="x", labelbottom=False)
        return
    ax.xaxis.set_major_formatter(FixedFormatter(list(names[::every])))
    ax.tick_params(axis="x", labelrotation=90, labelsize=8)
    ax.set_xlabel("generated token: text and step" + (f" (every {every}th is named)" if every > 1 else ""))


def step_room(names: Sequence[str]) -> float:
    """Return the room in inches that the names of an axis of steps take."""
    return 0.42 + 0.068 * max(map(len, names))


def boxes(left: np.ndarray, right: np.ndarray, low: np.ndarray, high: np.ndarray) -> Path:
    """Return one path of all boxes with these ends."""
    corners = [(left, low), (right, low), (right, high), (left, high), (left, low)]
    points = np.stack([np.stack(corner, axis=-1) for corner in corners], axis=1)
    codes = [Path.MOVETO, Path.LINETO, Path.LINETO, Path.LINETO, Path.CLOSEPOLY]
    return Path(points.reshape(-1, 2), codes * len(left))


def _decade(exponent: int) -> str:
    return f"{10.0**exponent:.4g}" if -4 < exponent < 4 else f"10{str(exponent).translate(SUPERSCRIPT)}"


def _nines(count: int) -> str:
    if count == 0:
        return "0"
    return f"{1 - 10.0**-count:.{count}f}" if count <= 5 else f"1-10{str(-count).translate(SUPERSCRIPT)}"
