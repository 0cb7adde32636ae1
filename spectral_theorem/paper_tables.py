"""Set the paper's published changes beside ours, cell by cell; a model that was not run stays n/a."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .resampling import Interval
from .sections import Answer, Section, as_cell, not_computed
from .tables import Column, Table

ID, TITLE = "paper", "The paper's tables beside ours"
COLUMNS = ("effective_rank_percent", "log10_kirchhoff", "alpha")
HEADS = {"effective_rank_percent": "ΔN_eff (%)", "log10_kirchhoff": "Δlog₁₀Kf", "alpha": "Δα"}
COMPONENT = {"cross_attention": "cross-attention", "self_attention": "self-attention", "mlp": "FFN"}
MODELS = ("tiny", "small", "large-v3-turbo")
# modes → component → model → change of each of COLUMNS, as the paper's tables 1 (modes 10) and 2 (modes 50) have them;
# None where no public source has the cell
PAPER: Mapping[int, Mapping[str, Mapping[str, tuple[float | None, ...]]]] = {
    10: {
        "cross_attention": {
            "tiny": (-7.56, 2.12, 0.25),
            "small": (-9.54, 2.46, 0.24),
            "large-v3-turbo": (-6.69, 2.27, 0.17),
        },
        "self_attention": {
            "tiny": (-0.76, 0.49, 0.005),
            "small": (0.45, 3.84, -0.007),
            "large-v3-turbo": (0.04, 3.67, -0.007),
        },
        "mlp": {"tiny": (-0.51, 2.32, 0.05), "small": (-1.49, 3.16, None)},
    },
    50: {
        "cross_attention": {
            "tiny": (-11.98, 2.93, 0.17),
            "small": (-13.40, 3.87, 0.21),
            "large-v3-turbo": (-4.70, 3.83, 0.14),
        },
        "self_attention": {"large-v3-turbo": (-2.34, 4.05, 0.008)},
        "mlp": {"small": (-13.59, 4.65, 0.22)},
    },
}
NOTE = (
    "The paper averages 5,559 LibriSpeech clips; how it pools positions and layers is not known. Ours: pooled over "
    "clips, mean over layers, interval in brackets; n/a was not run."
)
Ours = Mapping[str, Mapping[str, tuple[float, Interval]]]


def published_name(label: str) -> str | None:
    """Name the model of the paper that a checkpoint is, by its own name; None for any other.

    Examples
    --------
    >>> published_name("openai/whisper-tiny@0123abcd"), published_name("whisper-tiny.en-digits")
    ('tiny', None)
    """
    name = label.rsplit("/", 1)[-1].partition("@")[0].removeprefix("whisper-")
    return name if name in MODELS else None


def paper_section(ours: Mapping[int, Ours], label: str) -> Section:
    """Lay out both tables, and judge "in cross-attention our changes have the paper's signs".

    Parameters
    ----------
    ours : window to component to quantity to its change, as `component_rows` gives it.
    label : name of the model that was measured.
    """
    if not any(modes in PAPER for modes in ours):
        return not_computed(ID, TITLE, "neither of the paper's windows, 10 and 50 modes, was asked for")
    same = published_name(label)
    tables = [_table(modes, ours[modes], label, same, number) for number, modes in enumerate(PAPER, 1) if modes in ours]
    modes = next(modes for modes in PAPER if modes in ours)
    compared = _signs(modes, ours[modes], "cross_attention")
    if not compared:
        return not_computed(ID, TITLE, f"fewer than {modes} modes")
    agree, contrary = compared.count("same"), compared.count("opposite")
    verdict: Answer = "VIOLATED" if contrary else "HOLDS" if agree == len(compared) else "UNDECIDED"
    numbers = ", ".join(
        f"{HEADS[q]} {value:.3g} {bars} (paper, tiny: {PAPER[modes]['cross_attention']['tiny'][COLUMNS.index(q)]})"
        for q, (value, bars) in ours[modes]["cross_attention"].items()
        if q in COLUMNS
    )
    who = "the paper's model" if same else "not one of the paper's models"
    sentence = (
        f"In cross-attention our changes have the paper's signs: first {modes} modes, {agree} of {len(compared)} "
        f"have it, {contrary} the opposite one and {compared.count('open')} an interval that meets zero: {numbers}. "
        f"{label} is {who}, and the recordings are others."
    )
    return Section(ID, TITLE, verdict, sentence, tuple(tables))


def _signs(modes: int, ours: Ours, component: str) -> list[str]:
    """Compare signs with the paper's smallest model, as "same", "opposite" or "open"."""
    found = []
    for quantity, published in zip(COLUMNS, PAPER[modes][component]["tiny"], strict=True):
        value, bars = ours[component][quantity]
        if published is None or not math.isfinite(value):
            continue
        clear = bars.low > 0 or bars.high < 0
        found.append("open" if not clear else "same" if (value > 0) == (published > 0) else "opposite")
    return found


def _table(modes: int, ours: Ours, label: str, same: str | None, number: int) -> Table:
    rows: list[tuple[Any, ...]] = []
    for component, published in PAPER[modes].items():
        mine = [_ours(ours[component][quantity]) for quantity in COLUMNS]
        for model in MODELS:
            theirs: Sequence[float | None] = published.get(model, (None,) * len(COLUMNS))
            rows.append((COMPONENT[component], model, *_interleaved(theirs, mine if model == same else None)))
        if same is None:
            rows.append((COMPONENT[component], label, *_interleaved([None] * len(COLUMNS), mine)))
    heads = [f"{HEADS[quantity]}{side}" for quantity in COLUMNS for side in (", paper", ", ours", ", our 95 %")]
    caption = f"The paper's table {number}: first {modes} modes, stress minus clean. {NOTE}"
    return Table(f"paper_{modes}", 0, caption, tuple(map(Column, ("component", "model", *heads))), tuple(rows))


def _ours(found: tuple[float, Interval]) -> tuple[float | None, str | None]:
    value, bars = found
    return as_cell(value), str(bars) if math.isfinite(bars.low) else None


def _interleaved(
    theirs: Sequence[float | None], mine: Sequence[tuple[float | None, str | None]] | None
) -> list[float | str | None]:
    cells: list[float | str | None] = []
    for place, value in enumerate(theirs):
        cells += [value, *(mine[place] if mine is not None else (None, None))]
    return cells
