"""What stress changes through the sound, and what through the tokens: a control that is told the clean transcript.

Under stress a model hears another sound and writes other tokens, and both enter its layers. Told the tokens that it
wrote without stress, at the same steps, only the sound is another.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .association import Estimate
from .contrast import QUANTITIES, clusters_needed, contrasts
from .layerwise import layer_columns
from .resampling import interval_of
from .sections import (
    Answer,
    Columns,
    Section,
    as_cell,
    as_cells,
    as_columns,
    exceeds,
    not_computed,
    rows_where,
    shown,
    together,
)
from .statistics import Change, change_of, corrected
from .tables import Column, Table

ID, TITLE = "same_tokens", "Is it the sound, or the tokens?"
CLEAN, OWN, TOLD = "clean", "own tokens", "clean tokens"
COMPARED = ("lam", "kappa_abs", "sigma1", "xi")
# what changes → variant, and what it is compared with
CHANGES: Mapping[str, tuple[str, str]] = {
    "sound and tokens": (OWN, CLEAN),
    "sound alone": (TOLD, CLEAN),
    "tokens alone": (OWN, TOLD),
}
WHOLE = 0.0  # stands for all layers


def same_token_columns(cells: Sequence[Any], clean: str) -> dict[str, np.ndarray]:
    """Lay out means over steps: as without stress, under stress, and under stress with the tokens of the first.

    Parameters
    ----------
    cells : of a `Study` that was collected with `told`. clean : the first condition.

    Returns
    -------
    dict of (n,) arrays
        `clip`, `cluster`, `condition`, `variant`, `layer` (0 for all), `same` (1 where both transcripts agree) and the
        quantities; a coupling that is not resolved counts in no mean.
    """
    base = {cell.clip: cell for cell in cells if cell.condition == clean}
    rows: list[dict[str, Any]] = []
    for cell in cells:
        told, own = cell.told(), base.get(cell.clip)
        if told is None or own is None:
            continue
        labels = {"clip": cell.clip, "cluster": cell.cluster, "condition": cell.condition}
        labels["same"] = float(cell.transcript.tokens == own.transcript.tokens)
        for variant, one in ((CLEAN, own), (OWN, cell), (TOLD, told)):
            found = layer_columns([one])
            for layer in (WHOLE, *sorted(set(found["layer"].tolist()))):
                here = found if layer == WHOLE else rows_where(found, layer=layer)
                rows.append({**labels, "variant": variant, "layer": layer} | {q: _mean(here[q]) for q in COMPARED})
    return as_columns(rows)


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")


def same_token_section(columns: Columns, *, seed: int = 0) -> Section:
    """Say how much of what stress does to λ the sound does alone.

    Parameters
    ----------
    columns : of `same_token_columns`.

    Returns
    -------
    Section
        The statement is that the sound alone, tokens held, makes more than half of the change of the mean λ.
    """
    if not columns:
        return not_computed(ID, TITLE, "no clip was measured without stress and under it")
    found: dict[tuple[str, float, str, str], Change] = {}
    conditions = list(dict.fromkeys(columns["condition"].tolist()))
    for condition in conditions:
        for layer in sorted(set(columns["layer"].tolist())):
            here = rows_where(columns, condition=condition, layer=layer)
            for what, (variant, base) in CHANGES.items():
                for (_, quantity), change in contrasts(here, base, [variant], COMPARED, seed=seed).items():
                    found[condition, layer, quantity, what] = change
    judged = [c for c in conditions if (c, WHOLE, "lam", "sound and tokens") in found]
    if not judged:
        return not_computed(ID, TITLE, "no clip has two resolved layers")
    verdicts: dict[str, Answer] = {}
    sentences = []
    for condition in judged:
        by = {what: found[condition, WHOLE, "lam", what] for what in CHANGES}
        here = rows_where(columns, condition=condition, layer=WHOLE)
        verdicts[condition], words = _judged(here, by, seed=seed)
        sentences.append(f"Under {condition}: {words}")
    verdict = together(verdicts.values())
    lead = {
        "HOLDS": "The sound alone, tokens held, makes more than half of what stress does to λ.",
        "VIOLATED": "The tokens make at least half of what stress does to λ.",
    }.get(
        verdict, "It is not sure whether the sound alone, tokens held, makes more than half of what stress does to λ."
    )
    return Section(ID, TITLE, verdict, " ".join([lead, *sentences]), (_table(found),))


def _judged(here: Columns, by: Mapping[str, Change], *, seed: int) -> tuple[Answer, str]:
    """Judge one condition by the mean λ of its clips."""
    whole, sound = by["sound and tokens"], by["sound alone"]
    sides = {variant: rows_where(here, variant=variant) for variant in (CLEAN, OWN, TOLD)}  # one row per clip, in order
    own, told = (sides[variant]["lam"] - sides[CLEAN]["lam"] for variant in (OWN, TOLD))
    known = np.isfinite(own) & np.isfinite(told)
    own, told, clusters, same = (x[known] for x in (own, told, sides[OWN]["cluster"], sides[OWN]["same"]))
    count = f"{len(own)} clips, {int(same.sum())} of them with the same transcript"
    words = (
        f"λ changes by {shown(whole)} nats per layer, by {shown(sound)} when the clean transcript is forced, and by "
        f"{shown(by['tokens alone'])} from there to the tokens that the model writes ({count})"
    )
    if exceeds(whole) == "UNDECIDED" or not known.any():
        needed = clusters_needed(whole)
        more = "" if needed is None else f", which it would take {max(needed, whole.n + 1)} clusters of clips to see"
        return "UNDECIDED", f"{words}; the whole is no more than chance shows{more}."
    part = change_of(np.sign(whole.value) * (told - own / 2), clusters=clusters, seed=seed)
    share = interval_of(lambda rows: float(told[rows].mean() / own[rows].mean()), len(own), clusters, seed=seed)
    verdict = exceeds(part)
    words += f"; the sound makes {shown(Estimate(float(told.mean() / own.mean()), share))} of it"
    if verdict == "UNDECIDED" and (needed := clusters_needed(part)) is not None:
        words += f", and to tell that from half it takes {max(needed, part.n + 1)} clusters of clips or more"
    return verdict, f"{words}."


def _table(found: Mapping[tuple[str, float, str, str], Change]) -> Table:
    p = dict(zip(found, corrected([change.p for change in found.values()], "holm"), strict=True))
    rows = []
    for key, change in found.items():
        condition, layer, quantity, what = key
        words, unit = QUANTITIES[quantity]
        label = words if unit == "1" else f"{words} ({unit})"
        where = "all" if layer == WHOLE else int(layer)
        rest = (float(p[key]), as_cell(change.smallest_detectable), change.n)
        rows.append((condition, where, label, what, *as_cells(change), *rest))
    heads = ("condition", "layer", "quantity", "what changes", "change", "low", "high", "p (Holm)")
    caption = (
        "What stress changes, and what of it is left when the model is told the tokens that it wrote without stress, "
        "at the same steps. Means over steps, paired by clip; intervals of 95 % by bootstrap over clusters of clips."
    )
    columns = (*map(Column, heads), Column("smallest detectable"), Column("clusters"))
    return Table("same_tokens", 1, caption, columns, tuple(rows))
