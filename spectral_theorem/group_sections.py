"""Compare clips in what their layers do: clean with stressed, and among stressed clips hallucinated with survived."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .association import Estimate
from .sections import Answer, Section, as_cell, as_cells, not_computed, shown
from .spectra import LEAST_POOLED, spectra_difference
from .spectral_sections import HEADLINE, LEVEL, change_table, corrected_changes, over_layers
from .statistics import Change, corrected, group_difference, paired_change
from .studyfile import NO_SPEECH, Cell
from .tables import Column, Table

ID, TITLE = "hallucinated", "Hallucinated clips beside survived ones, both under stress"
LAYERWISE = {
    "sigma1": ("log σ₁", "1"),
    "xi": ("ξ", "1"),
    "kappa_abs": ("|κ|", "1"),
    "lam": ("λ", "nats/layer"),
}
WHOLE = {"log_gain": ("log‖W_L…W_1‖", "nats"), "log_context_gain": ("log‖J_L‖", "nats"), "tokens": ("tokens", "1")}


def clip_values(cell: Cell) -> dict[tuple[str, int | None], float]:
    """Return the mean over steps of every quantity of every layer, (quantity, layer from 1) or (quantity, None).

    Notes
    -----
    A κ or λ whose singular vectors are not resolved does not count; where none is, the value is NaN.
    """
    found = cell.layers
    resolved = found["resolved"].astype(bool)
    both = np.append(resolved[:, :-1] & resolved[:, 1:], np.zeros((len(resolved), 1), bool), axis=1)
    values: dict[tuple[str, int | None], float] = {}
    for name in LAYERWISE:
        rows = np.log(found[name]) if name == "sigma1" else found[name]
        rows = np.where(both, rows, np.nan) if name in ("kappa_abs", "lam") else rows
        last = rows.shape[1] - (name in ("kappa_abs", "lam"))
        values |= {(name, layer + 1): _mean(rows[:, layer]) for layer in range(last)}
    if "log_gain_actual" in found:
        values["log_gain", None] = _mean(found["log_gain_actual"][:, 0])
        values["log_context_gain", None] = _mean(found["log_context_gain"])
    values["tokens", None] = float(len(cell.transcript.tokens))
    return values


def layer_changes(pairs: Sequence[tuple[Cell, Cell]], *, seed: int = 0) -> Table:
    """Judge the change of every quantity of every layer, the same clips under both conditions."""
    sides = [[clip_values(cell) for cell in side] for side in zip(*pairs, strict=True)]
    clusters = np.asarray([clean.cluster for clean, _ in pairs])

    def judge(one: np.ndarray, other: np.ndarray) -> Change | float | None:
        keep = np.isfinite(one) & np.isfinite(other)
        if keep.sum() < 2:
            return None if not keep.any() else float((other - one)[keep][0])
        return paired_change(one[keep], other[keep], clusters=clusters[keep], seed=seed)

    caption = "Means over steps, stressed minus clean, the same clips."
    return _judged(sides[0], sides[1], judge, name="layers", caption=caption)


def hallucinated_section(cells: Sequence[Cell], condition: str, modes: Sequence[int], *, seed: int = 0) -> Section:
    """Compare hallucinated with survived clips among those under stress, by labels that saw audio and texts alone.

    Parameters
    ----------
    cells : of a study. condition : the one that is judged. modes : windows, the first of which is judged.
    seed : of the tests.

    Returns
    -------
    Section
        The statement is that the groups differ in the effective rank of cross-attention: a corrected p at one of its
        layers of at most 0.05, and an interval of the mean over layers without zero.
    """
    counts, quiet = label_table(cells), _inserted(cells)
    stressed = [cell for cell in cells if cell.condition == condition]
    other = "survived" if any(cell.reference is not None for cell in stressed) else "unflagged"
    ill = [cell for cell in stressed if cell.behaviour.label == "hallucinated"]
    well = [cell for cell in stressed if cell.behaviour.label == other]
    if min(len(ill), len(well)) < LEAST_POOLED:
        why = (
            f"{len(ill)} hallucinated and {len(well)} {other} clips under stress, where it takes {LEAST_POOLED} of each"
        )
        hint = "; a milder or a harder recipe moves the line, such as --stress noise=5 or hell" if stressed else ""
        section = not_computed(ID, TITLE, why + hint)
        return dataclasses.replace(section, sentence=section.sentence + quiet, tables=(counts,))
    found = spectra_difference(well, ill, modes, seed=seed)
    component, quantity = HEADLINE
    p = corrected_changes(found, modes[0])
    mine = {place: x for (place, q), x in p.items() if place.component == component and q == quantity}
    value, bars = over_layers(found, component, modes[0], quantity)
    table = change_table(
        found,
        modes[0],
        name="groups",
        caption=f"Hallucinated minus {other}, pooled over the clips of each group, a clip no longer than is usual.",
    )
    layers, best = _layer_differences(well, ill, other, seed=seed)
    finite = [x for x in mine.values() if np.isfinite(x)]
    apart = bars.low > 0 or bars.high < 0
    verdict: Answer = "HOLDS" if finite and min(finite) <= LEVEL and apart else "UNDECIDED"
    least = f"the least corrected p over its layers is {min(finite):.2g}" if finite else "no test could be made"
    sentence = (
        f"Hallucinated and {other} clips differ in the effective rank of cross-attention: by "
        f"{shown(Estimate(value, bars))} %, mean over layers, first {modes[0]} modes, {len(ill)} against {len(well)} "
        f"clips under stress; when labels are exchanged by chance, {least}. {best}{quiet}"
    )
    return Section(ID, TITLE, verdict, sentence, (counts, table, layers))


def _inserted(cells: Sequence[Cell]) -> str:
    """Say how often words were written where nobody speaks."""
    silent = [cell for cell in cells if cell.condition == NO_SPEECH]
    if not silent:
        return ""
    count = sum(cell.behaviour.label == "hallucinated" for cell in silent)
    return f" On {count} of {len(silent)} recordings without speech words were written."


def label_table(cells: Sequence[Cell]) -> Table:
    """Count labels, and the rules that fired, under every condition."""
    conditions = list(dict.fromkeys(cell.condition for cell in cells))
    counted: dict[tuple[int, str, str], int] = {}
    for cell in cells:
        key = (conditions.index(cell.condition), cell.behaviour.label, cell.behaviour.rule or "-")
        counted[key] = counted.get(key, 0) + 1
    rows = tuple((conditions[at], label, rule, count) for (at, label, rule), count in sorted(counted.items()))
    columns = tuple(map(Column, ("condition", "label", "rule", "clips")))
    return Table(
        "labels", 0, "What became of the clips, by audio and texts alone, and the rule that fired.", columns, rows
    )


def _layer_differences(well: Sequence[Cell], ill: Sequence[Cell], other: str, *, seed: int) -> tuple[Table, str]:
    """Judge the difference of every quantity of every layer between the groups, and name the clearest."""
    sides = [[clip_values(cell) for cell in group] for group in (well, ill)]
    clusters = [np.asarray([cell.cluster for cell in group]) for group in (well, ill)]

    def judge(one: np.ndarray, two: np.ndarray) -> Change | None:
        keep = np.isfinite(one), np.isfinite(two)
        if min(k.sum() for k in keep) < 2:
            return None
        labels = (clusters[0][keep[0]], clusters[1][keep[1]])
        return group_difference(one[keep[0]], two[keep[1]], clusters=labels, seed=seed)

    table = _judged(
        sides[0], sides[1], judge, name="group_layers", caption=f"Means over steps, hallucinated minus {other}."
    )
    at = [column.name for column in table.columns].index("p corrected")
    rows: list[tuple[Any, ...]] = [row for row in table.rows if row[at] is not None and row[0] != WHOLE["tokens"][0]]
    if not rows:
        return table, ""
    best = min(rows, key=lambda row: row[at])
    count = sum(row[at] <= LEVEL for row in rows)
    where = f" at layer {best[1]}" if best[1] is not None else ""
    return table, (
        f"Of {len(rows)} quantities of layers {count} have a corrected p of at most {LEVEL}; the clearest is {best[0]}"
        f"{where}, {best[2]:.3g} [{best[3]:.3g}, {best[4]:.3g}], g = {best[7]:.2g}."
        if best[2] is not None and best[3] is not None
        else ""
    )


def _judged(
    one: Sequence[Mapping[Any, float]],
    other: Sequence[Mapping[Any, float]],
    judge: Callable[[np.ndarray, np.ndarray], Change | float | None],
    *,
    name: str,
    caption: str,
) -> Table:
    """Lay out a judgement of every quantity, corrected over all of them (Benjamini-Hochberg)."""
    keys = [key for key in one[0] if key in other[0]]
    array = lambda side, key: np.asarray([values[key] for values in side])
    found = {key: judge(array(one, key), array(other, key)) for key in keys}
    p = corrected([c.p if isinstance(c, Change) else np.nan for c in found.values()])
    rows: list[tuple[Any, ...]] = []
    for (key, c), adjusted in zip(found.items(), p, strict=True):
        quantity, layer = key
        words, unit = LAYERWISE.get(quantity) or WHOLE[quantity]
        label = f"{words} ({unit})" if unit != "1" else words
        if not isinstance(c, Change):  # one clip has a change, and nothing to judge it by
            rows.append((label, layer, c, *[None] * 8, "in fewer than two clips"))
            continue
        numbers = (as_cell(c.p), as_cell(adjusted), as_cell(c.effect), as_cell(c.rank_biserial))
        rows.append((label, layer, *as_cells(c), *numbers, as_cell(c.smallest_detectable), c.n, c.interval.note or ""))
    heads = ("quantity", "layer", "change", "low", "high", "p", "p corrected", "g", "rank-biserial", "smallest seen")
    return Table(name, 0, caption, tuple(map(Column, (*heads, "clusters", "note"))), tuple(rows))


def _mean(values: np.ndarray) -> float:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if kept.size else float("nan")
