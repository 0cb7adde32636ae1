r"""Is one λ enough? Gains of products of layers beside what laws of few numbers predict, on clips they did not see."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .association import Estimate, calibration, r_squared
from .sections import Columns, Section, above, as_cells, mean_of, not_computed, shown
from .tables import Column, Table

ID, TITLE = "constant_lambda", "Is a constant λ enough?"
ENOUGH = 0.5
LAWS: Mapping[str, str] = {
    "mean λ": "the mean of all λ, per layer: exp(λ d)",
    "best rate": "the constant rate that fits best: exp(r d)",
    "λ by layer": "the mean λ of each layer, and the mean σ₁ of the last",
    "own λ": "the token's own λ in every layer: the dominant path",
    "aligned": "the token's own σ₁ with perfect alignment, an upper bound",
    "mean by depth": "the mean gain at each depth: the best that no look at the token allows",
}


def halves(clusters: Any, *, seed: int = 0) -> np.ndarray:
    """Choose half of the clusters to fit on; True for rows of these.

    Parameters
    ----------
    clusters : (n,) labels. seed : of the choice.

    Examples
    --------
    >>> int(halves(["a", "b", "c", "d"]).sum())
    2
    """
    names = sorted(set(np.asarray(clusters).tolist()))
    chosen = set(np.random.default_rng(seed).permutation(names)[: len(names) // 2].tolist())
    return np.asarray([name in chosen for name in np.asarray(clusters).tolist()])


def predictions(columns: Columns, fitting: np.ndarray) -> dict[str, np.ndarray]:
    r"""Predict :math:`\log\|W_L\cdots W_l\|` by every law, with numbers fitted on some rows.

    Parameters
    ----------
    columns : of `layerwise.layer_columns`. fitting : (n,) bool.

    Returns
    -------
    dict of (n,) arrays, nats
    """
    depth, actual = columns["depth"], columns["actual"]
    last = float(depth.min())
    usable = fitting & np.isfinite(actual)
    mean = float(np.nanmean(columns["lam"][fitting]))
    rate = float((depth[usable] * actual[usable]).sum() / (depth[usable] ** 2).sum())
    depths = sorted(set(depth.tolist()))
    by_layer = {d: float(np.nanmean(columns["lam"][fitting & (depth == d)])) for d in depths if d > last}
    end = float(np.mean(np.log(columns["sigma1"][fitting & (depth == last)])))
    layered = {d: end + sum(value for other, value in by_layer.items() if other <= d) for d in depths}
    means = {d: float(np.mean(actual[usable & (depth == d)])) for d in depths}
    at = lambda table: np.asarray([table[d] for d in depth.tolist()])
    return {
        "mean λ": mean * depth,
        "best rate": rate * depth,
        "λ by layer": at(layered),
        "own λ": columns["predicted"],
        "aligned": columns["aligned"],
        "mean by depth": at(means),
    }


def constancy_section(columns: Columns, *, seed: int = 0) -> Section:
    r"""Compare gains with predictions by numbers that were fitted on the other half of the clips.

    Parameters
    ----------
    columns : of `layerwise.layer_columns`.

    Returns
    -------
    Section
        The statement is that exp(λ d), λ the measured mean, explains at least half of the variance of log gains.
    """
    if not columns or not np.isfinite(columns["actual"]).any():
        return not_computed(ID, TITLE, "gains of products were not measured")
    if len(set(columns["cluster"].tolist())) < 4:
        return not_computed(ID, TITLE, "there are fewer than four clips to split in halves")
    if columns["depth"].max() < 2 or not np.isfinite(columns["lam"]).any():
        return not_computed(ID, TITLE, "no clip has two resolved layers")
    fitting = halves(columns["cluster"], seed=seed)
    one, other = predictions(columns, fitting), predictions(columns, ~fitting)
    predicted = {law: np.where(fitting, other[law], one[law]) for law in one}  # of clips by a fit to the others
    rows: list[Any] = []
    fits: dict[str, Estimate] = {}
    off: dict[tuple[str, int], Estimate] = {}
    for law, values in predicted.items():
        keep = np.isfinite(values) & np.isfinite(columns["actual"])
        if not keep.any():
            continue
        actual, guess, clusters = columns["actual"][keep], values[keep], columns["cluster"][keep]
        fits[law] = r_squared(actual, guess, clusters=clusters, seed=seed)
        slope = calibration(actual, guess, clusters=clusters, seed=seed)[1]
        error = mean_of(guess - actual, clusters, seed=seed)
        rows.append((law, LAWS[law], *as_cells(fits[law]), *as_cells(slope), *as_cells(error), int(keep.sum())))
        for depth in sorted(set(columns["depth"].tolist())):
            at = keep & (columns["depth"] == depth)
            if at.any():
                off[law, int(depth)] = mean_of(values[at] - columns["actual"][at], columns["cluster"][at], seed=seed)
    three = lambda name, unit="": [Column(f"{name}{end}", unit) for end in ("", " low", " high")]
    note = (
        "Numbers fitted on half of the clips, judged on the other, both ways; 95 % intervals by bootstrap over clips."
    )
    laws = Table(
        "constant_lambda",
        1,
        f"How well laws predict log‖W_L…W_l‖. {note}",
        (Column("law"), Column("prediction"), *three("R²"), *three("slope"), *three("error", "nats"), Column("gains")),
        tuple(rows),
    )
    by_depth = Table(
        "constant_lambda_depth",
        2,
        f"Calibration with depth: predicted minus actual log gain over the last d layers. {note}",
        (Column("law"), Column("d"), *three("error", "nats")),
        tuple((*key, *as_cells(found)) for key, found in off.items()),
    )
    verdict = above(fits["mean λ"], ENOUGH)
    lead = {"HOLDS": "is enough", "VIOLATED": "is not enough"}.get(verdict, "may or may not be enough")
    mean = float(np.nanmean(columns["lam"]))
    depth = max((d for law, d in off if law == "best rate"), key=lambda d: abs(off["best rate", d].value))
    sentence = (
        f"A constant λ {lead}: with the measured mean λ of {mean:.3g} nats per layer, exp(λ d) explains R² = "
        f"{shown(fits['mean λ'])} of the log gains of other clips; below 0, their mean predicts better. The constant "
        f"rate that fits best is no λ: it explains {shown(fits['best rate'])} and is off by up to "
        f"{shown(off['best rate', depth])} nats, at d = {depth}; the mean gain at each depth explains "
        f"{shown(fits['mean by depth'])}."
    )
    if "own λ" in fits:
        sentence += f" The token's own dominant path gives {shown(fits['own λ'])}."
    return Section(ID, TITLE, verdict, sentence, (laws, by_depth), {"scatter": _scatter(columns, predicted)})


def _scatter(columns: Columns, predicted: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return up to 400 gains with their predictions, evenly spaced."""
    places = np.flatnonzero(np.isfinite(columns["actual"]))
    places = places[np.unique(np.linspace(0, len(places) - 1, min(400, len(places))).astype(int))]
    pick = lambda x: [float(v) if np.isfinite(v) else None for v in np.asarray(x, float)[places]]
    laws = {law: pick(values) for law, values in predicted.items()}
    return {"depth": pick(columns["depth"]), "actual": pick(columns["actual"]), **laws}
