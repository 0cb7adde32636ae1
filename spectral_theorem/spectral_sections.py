"""Say what stress does to the spectra of activations: observables, healthy baseline, divergence, all beside chance."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .association import Estimate
from .pooling import Pooled, PooledChange
from .resampling import Interval
from .sections import Answer, Section, as_cell, as_cells, not_computed, shown
from .spectra import Place
from .statistics import Change, corrected
from .studyfile import COMPONENTS
from .tables import Column, Table

OBSERVABLES, BASELINE, DIVERGENCE = "observables", "baseline", "divergence"
TITLES = {
    OBSERVABLES: "What stress changes in the spectra",
    BASELINE: "Is it a response to stress, or how the model always is?",
    DIVERGENCE: "How far the distributions of eigenvalues move",
}
WORDS = {"self_attention": "self-attention", "cross_attention": "cross-attention", "mlp": "MLP"}
# name of a change → (how it is written, unit)
CHANGES = {
    "effective_rank_percent": ("ΔN_eff", "%"),
    "participation_ratio_percent": ("Δ participation ratio", "%"),
    "alpha": ("Δα", "1"),
    "log10_kirchhoff": ("Δlog₁₀Kf", "1"),
    "log10_kirchhoff_scale_free": ("Δlog₁₀(Σμ·Σ1/μ)", "1"),
}
LEVEL = 0.05
PLANE = ("effective_rank", "alpha")
HEADLINE = ("cross_attention", "effective_rank_percent")
Changes = Mapping[Place, Mapping[int, Mapping[str, Change]]]


def changes_of(found: Mapping[Place, PooledChange]) -> Changes:
    """Return the changes alone: place to window to quantity."""
    return {place: change.changes for place, change in found.items()}


def over_layers(changes: Changes, component: str, modes: int, quantity: str) -> tuple[float, Interval]:
    """Average a change over the layers of a component.

    Returns
    -------
    value, interval
        The interval has the mean of the layers' half-widths: the mean of errors is at least the error of the mean,
        however layers go together.
    """
    some = [by[modes][quantity] for place, by in changes.items() if place.component == component]
    if not some or not np.isfinite([c.value for c in some]).all():
        return float("nan"), Interval(np.nan, np.nan, 0.95, "none", 0, False, f"fewer than {modes} modes")
    low, high = (float(np.mean([getattr(c.interval, end) for c in some])) for end in ("low", "high"))
    nominal, note = all(c.interval.nominal for c in some), "; ".join({c.interval.note for c in some} - {""})
    return float(np.mean([c.value for c in some])), Interval(
        low, high, 0.95, "mean over layers", some[0].interval.n, nominal, note
    )


def corrected_changes(changes: Changes, modes: int) -> dict[tuple[Place, str], float]:
    """Correct the p-values of one window over components and layers, quantity by quantity (Benjamini-Hochberg)."""
    found: dict[tuple[Place, str], float] = {}
    for quantity in CHANGES:
        places = list(changes)
        p = corrected([changes[place][modes][quantity].p for place in places])
        found |= {(place, quantity): float(value) for place, value in zip(places, p, strict=True)}
    return found


def change_table(changes: Changes, modes: int, *, name: str, caption: str) -> Table:
    """Lay out all changes of one window: a row per component, layer and quantity."""
    p = corrected_changes(changes, modes)
    rows: list[tuple[Any, ...]] = []
    for place, by in changes.items():
        for quantity, (words, unit) in CHANGES.items():
            c = by[modes][quantity]
            numbers = (as_cell(c.p), as_cell(p[place, quantity]), as_cell(c.effect), as_cell(c.rank_biserial))
            least = as_cell(abs(c.smallest_detectable))
            label = f"{words} ({unit})" if unit != "1" else words
            place_cells = (WORDS[place.component], place.layer, label)
            rows.append((*place_cells, *as_cells(c), *numbers, least, c.n, c.interval.note or ""))
    heads = ("component", "layer", "quantity", "change", "low", "high", "p", "p corrected", "g", "rank-biserial")
    columns = tuple(map(Column, (*heads, "smallest seen", "clusters", "note")))
    return Table(name, 0, f"{caption} First {modes} modes.", columns, tuple(rows))


def fallen(ends: Sequence[tuple[float, float]], least: float) -> Answer:
    """Judge "it falls": an exact test says whether there is a change, intervals of all kinds which.

    Parameters
    ----------
    ends : low and high of every interval. least : corrected p.

    Examples
    --------
    >>> fallen([(-3.0, -1.0), (-2.0, -0.5)], 0.01), fallen([(-3.0, -1.0), (-2.0, 0.5)], 0.01), fallen([(1.0, 2.0)], 0.2)
    ('HOLDS', 'UNDECIDED', 'UNDECIDED')
    """
    if not least <= LEVEL:
        return "UNDECIDED"
    falls, rises = all(high < 0 for _, high in ends), all(low > 0 for low, _ in ends)
    return "HOLDS" if falls else "VIOLATED" if rises else "UNDECIDED"


def observables_section(
    found: Mapping[Place, PooledChange],
    alike: Mapping[Place, PooledChange],
    modes: Sequence[int],
    layers: Table | None,
    *,
    pairs: int,
) -> Section:
    """Judge "stress lowers the effective rank of cross-attention", and list all changes.

    Parameters
    ----------
    found : from `spectra_change`. alike : the same with as many positions on both sides.
    modes : windows, the first of which is judged. layers : changes of σ₁, ξ, κ, λ, from `layer_changes`.
    pairs : clips.

    Returns
    -------
    Section
        Decided when both intervals, with all positions and with as many on both sides, lie on one side of zero, and the
        least corrected p of the component is at most 0.05.
    """
    changes, same = changes_of(found), changes_of(alike)
    component, quantity = HEADLINE
    value, bars = over_layers(changes, component, modes[0], quantity)
    matched, matched_bars = over_layers(same, component, modes[0], quantity)
    if not np.isfinite(value):
        return not_computed(OBSERVABLES, TITLES[OBSERVABLES], f"fewer than {modes[0]} modes in {pairs} pairs")
    p = corrected_changes(changes, modes[0])
    least = min(x for (place, q), x in p.items() if place.component == component and q == quantity)
    small = np.mean(
        [by[modes[0]][quantity].smallest_detectable for q, by in changes.items() if q.component == component]
    )
    counted = {q: sum(x <= LEVEL for (_, name), x in p.items() if name == q) for q in CHANGES}
    words = ", ".join(f"{CHANGES[q][0]} {count}" for q, count in counted.items())
    verdict = fallen([(bars.low, bars.high), (matched_bars.low, matched_bars.high)], least)
    sentence = (
        f"Stress lowers the effective rank of decoder cross-attention: it changes by {_number(value, bars)} %, mean "
        f"over layers, first {modes[0]} modes, {pairs} pairs in {bars.n} clusters, and by "
        f"{_number(matched, matched_bars)} % with as many positions of each clip on both sides. When conditions are "
        f"exchanged by chance, the least corrected p over its layers is {least:.2g}; a change of {abs(small):.2g} % "
        f"would have been seen. Of {len(changes)} components × layers so many have a corrected p of at most {LEVEL}: "
        f"{words}."
    )
    tables = [
        change_table(changes, k, name=f"changes_{k}", caption="Stressed minus clean, pooled over clips.") for k in modes
    ]
    caption = "The same with as many positions of each clip under both conditions."
    tables += [change_table(same, k, name=f"changes_alike_{k}", caption=caption) for k in modes[:1]]
    tables += [layers] if layers is not None else []
    data = {
        "spectra": [
            {
                "component": place.component,
                "layer": place.layer,
                "clean": _short(change.clean.eigenvalues),
                "stressed": _short(change.stressed.eigenvalues),
            }
            for place, change in found.items()
        ],
        "plane": [
            {
                "component": place.component,
                "layer": place.layer,
                "modes": k,
                "condition": condition,
                **{name: [as_cell(getattr(side.observed[k], name)), *_ends(side.intervals[k][name])] for name in PLANE},
                "alpha_status": side.observed[k].alpha_status,
            }
            for place, change in found.items()
            for k in modes
            for condition, side in (("clean", change.clean), ("stressed", change.stressed))
        ],
    }
    return Section(OBSERVABLES, TITLES[OBSERVABLES], verdict, sentence, tuple(tables), data)


def baseline_section(
    group: Mapping[Place, Pooled],
    found: Mapping[Place, PooledChange],
    halves: Changes,
    modes: Sequence[int],
    *,
    clips: int,
) -> Section:
    """Compare stress with what healthy transcriptions of the same model show, and with how halves of those differ.

    Parameters
    ----------
    group : spectra of clean clips that were transcribed well. found : from `spectra_change`.
    halves : from `spectra_difference` of two halves of the healthy clips. modes : windows.
    clips : healthy ones.
    """
    k, name = modes[0], HEADLINE[1]
    rows: list[tuple[Any, ...]] = []
    outside = 0
    p, by_chance = (corrected_changes(each, k) for each in (changes_of(found), halves))
    chance = sum(by_chance[place, name] <= LEVEL for place in found)
    for place, change in found.items():
        well, ill, half = group[place], change.stressed, halves[place][k][name]
        one, other = well.intervals[k]["effective_rank"], ill.intervals[k]["effective_rank"]
        away = bool(other.high < one.low or other.low > one.high) and p[place, name] <= LEVEL
        outside += away
        slopes = (well.observed[k], ill.observed[k])
        rows.append(
            (
                WORDS[place.component],
                place.layer,
                as_cell(well.observed[k].effective_rank),
                *_ends(one),
                as_cell(ill.observed[k].effective_rank),
                *_ends(other),
                "yes" if away else "no",
                *as_cells(half),
                *(as_cell(s.alpha) for s in slopes),
                "/".join(s.alpha_status for s in slopes),
            )
        )
    heads = ("component", "layer", "healthy N_eff", "low", "high", "stressed N_eff", "low", "high", "apart")
    heads += ("halves: ΔN_eff (%)", "low", "high", "healthy α", "stressed α", "fits")
    table = Table(
        "baseline", 0,
        f"Clean clips that were transcribed well beside clips under stress, first {k} modes; and how much two halves "
        "of the healthy clips differ from each other.",
        tuple(map(Column, heads)), tuple(rows),
    )  # fmt: skip
    verdict: Answer = "HOLDS" if outside > chance else "UNDECIDED"
    sentence = (
        f"Under stress N_eff leaves the range of healthy transcriptions of the same model: in {outside} of "
        f"{len(found)} components × layers the intervals do not meet and the corrected p of the change is at most "
        f"{LEVEL}; two halves of the {clips} healthy clips differ in {chance}."
    )
    data = {
        "spectra": [
            {"component": place.component, "layer": place.layer, "healthy": _short(well.eigenvalues)}
            for place, well in group.items()
        ]
    }
    return Section(BASELINE, TITLES[BASELINE], verdict, sentence, (table,), data)


def divergence_section(found: Mapping[Place, PooledChange], modes: Sequence[int]) -> Section:
    """Judge "the distributions of eigenvalues differ", place by place."""
    rows: list[tuple[Any, ...]] = []
    best: tuple[float, str] = (-1.0, "")
    counted = {}
    for k in modes:
        places = list(found)
        p = corrected([found[place].divergences[k].p for place in places])
        counted[k] = int(np.nansum(p <= LEVEL)) if np.isfinite(p).any() else None
        for place, adjusted in zip(places, p, strict=True):
            d = found[place].divergences[k]
            label = (WORDS[place.component], place.layer, k)
            numbers = (as_cell(d.kl), as_cell(d.jensen_shannon), *_ends(d.interval))
            rows.append((*label, *numbers, as_cell(d.p), as_cell(adjusted), as_cell(d.energies), as_cell(d.chance)))
            if k == modes[0] and np.isfinite(d.jensen_shannon) and d.jensen_shannon > best[0]:
                where = f"{WORDS[place.component]} of layer {place.layer}"
                said = f"{d.jensen_shannon:.3g} {d.interval} nats of log 2 = 0.693 ({where}; KL {d.kl:.3g})"
                best = (d.jensen_shannon, said)
    if not best[1]:
        return not_computed(DIVERGENCE, TITLES[DIVERGENCE], f"fewer than {modes[0]} modes")
    heads = ("component", "layer", "modes", "KL", "JS", "low", "high", "p", "p corrected", "energies", "by chance 5 %")
    units = {"KL": "nats", "JS": "nats", "energies": "nats", "by chance 5 %": "nats"}
    table = Table(
        "divergence", 0,
        "Divergence of the eigenvalue distributions, stressed from clean; tested by energies along common modes, whose "
        "value and chance level when conditions are exchanged stand at the end.",
        tuple(Column(head, units.get(head, "")) for head in heads), tuple(rows),
    )  # fmt: skip
    words = ", ".join(f"{count} of {len(found)} (first {k} modes)" for k, count in counted.items() if count is not None)
    verdict: Answer = "HOLDS" if counted[modes[0]] else "UNDECIDED"
    sentence = (
        f"The distributions of eigenvalues differ between clean and stress, corrected p at most {LEVEL}, in {words} of "
        f"the components × layers. The largest Jensen-Shannon divergence is {best[1]}."
    )
    return Section(DIVERGENCE, TITLES[DIVERGENCE], verdict, sentence, (table,))


def component_rows(changes: Changes, modes: int) -> dict[str, dict[str, tuple[float, Interval]]]:
    """Return component to quantity to its change, averaged over layers."""
    return {c: {q: over_layers(changes, c, modes, q) for q in CHANGES} for c in COMPONENTS}


def _number(value: float, bars: Interval) -> str:
    return shown(Estimate(value, bars))


def _ends(bars: Interval) -> tuple[float | None, float | None]:
    return as_cell(bars.low), as_cell(bars.high)


def _short(eigenvalues: np.ndarray) -> list[float]:
    """Round to six digits: a figure shows no more, and files stay small."""
    return [float(f"{x:.6g}") for x in eigenvalues]
