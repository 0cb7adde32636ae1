r"""λ across layers, decoding steps, clips and stress: means with intervals, and what its variance goes with."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from .association import variance_components
from .contrast import QUANTITIES, contrasts
from .sections import (
    Columns,
    Section,
    above,
    as_cell,
    as_cells,
    mean_exceeds,
    mean_of,
    not_computed,
    rows_where,
    shown,
    together,
)
from .statistics import corrected
from .tables import Column, Table

MAP_ID, MAP_TITLE = "lambda_map", "λ across layers and decoding steps"
VARIANCE_ID, VARIANCE_TITLE = "variance", "What λ varies with"
HALF = 0.5


def layer_columns(cells: Sequence[Any]) -> dict[str, np.ndarray]:
    r"""Lay out a study in long form: a row per clip, condition, step and layer.

    Parameters
    ----------
    cells : of a `Study`.

    Returns
    -------
    dict of (n,) arrays
        `clip`, `cluster`, `speaker`, `condition`, `step`, `layer` (from 1), `depth` (layers from this one to the
        last), `sigma1`, `xi`, `kappa_abs`, `lam`, `resolved` (both layers of the coupling); `actual`, `predicted` and
        `aligned`: :math:`\log\|W_L\cdots W_l\|` as it is, along the dominant path, and with perfect alignment, nats. A
        coupling that is not resolved is NaN.
    """
    parts: list[dict[str, np.ndarray]] = []
    for cell in cells:
        found = cell.layers
        steps, depth = found["sigma1"].shape
        resolved = found["resolved"].astype(bool)
        both = np.append(resolved[:, :-1] & resolved[:, 1:], np.zeros((steps, 1), bool), axis=1)
        log_sigma = np.log(found["sigma1"])
        grid = {
            "step": np.repeat(np.asarray(cell.steps, float)[:, None], depth, axis=1),
            "layer": np.tile(np.arange(1.0, depth + 1), (steps, 1)),
            "depth": np.tile(np.arange(depth, 0.0, -1), (steps, 1)),
            "sigma1": found["sigma1"],
            "xi": found["xi"],
            "resolved": both.astype(float),
            "aligned": np.flip(np.cumsum(np.flip(log_sigma, 1), 1), 1),
        }
        for name in ("kappa_abs", "lam"):
            grid[name] = np.where(both & np.isfinite(found[name]), found[name], np.nan)
        for name, source in (("actual", "log_gain_actual"), ("predicted", "log_gain_predicted")):
            grid[name] = found.get(source, np.full((steps, depth), np.nan))
        labels = {name: getattr(cell, name) for name in ("clip", "cluster", "speaker", "condition")}
        parts.append(
            {name: np.full(steps * depth, value) for name, value in labels.items()}
            | {name: np.asarray(value, float).ravel() for name, value in grid.items()}
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}


def chance_log_alignment(width: int) -> float:
    r"""Return the expected :math:`\log|\kappa|` of two independent random directions in R^D.

    .. math:: \mathbb E\log|\kappa| = \tfrac12\big(\psi(\tfrac12)-\psi(\tfrac D2)\big)

    References
    ----------
    :math:`\kappa^2` is Beta(1/2, (D-1)/2) there; :math:`\psi` is the digamma function.

    Examples
    --------
    >>> round(chance_log_alignment(384), 3), chance_log_alignment(1)
    (-3.609, 0.0)
    """
    from scipy import special

    return float(0.5 * (special.digamma(0.5) - special.digamma(width / 2)))


def lambda_map(columns: Columns, clean: str, *, seed: int = 0) -> Section:
    """Map λ over layers and steps under every condition, with what stress changes in each layer.

    Parameters
    ----------
    columns : of `layer_columns`, and `width`, D, for what chance gives. clean : the condition that others are compared
        with.

    Returns
    -------
    Section
        The statement is that the dominant path gains at every layer, λ > 0.
    """
    if not columns or not np.isfinite(columns["lam"]).any():
        return not_computed(MAP_ID, MAP_TITLE, "no clip has two resolved layers")
    conditions = list(dict.fromkeys(columns["condition"].tolist()))
    conditions.sort(key=lambda name: name != clean)
    layers = sorted(set(columns["layer"].tolist()))
    rows: list[tuple[Any, ...]] = []
    changes: dict[tuple[str, str, float], Any] = {}
    means = {}
    for layer in layers:
        here = rows_where(columns, layer=layer)
        sides = {**here, "variant": here["condition"], "condition": np.full(len(here["clip"]), "")}
        others = [name for name in conditions if name != clean]
        for (variant, quantity), change in contrasts(
            sides, clean, others, ("lam", "kappa_abs", "sigma1", "xi")
        ).items():
            changes[variant, quantity, layer] = change
        for condition in conditions:
            mine = rows_where(here, condition=condition)
            for quantity in ("lam", "kappa_abs", "sigma1", "xi"):
                if len(mine["clip"]) and np.isfinite(mine[quantity]).any():
                    means[condition, quantity, layer] = mean_of(mine[quantity], mine["cluster"], seed=seed)
    p = dict(zip(changes, corrected([c.p for c in changes.values()], "holm"), strict=True)) if changes else {}
    for (condition, quantity, layer), mean in means.items():
        words, unit = QUANTITIES[quantity]
        change = changes.get((condition, quantity, layer))
        rest: tuple[Any, ...] = (None,) * 5
        if change is not None:
            rest = (*as_cells(change), float(p[condition, quantity, layer]), as_cell(change.smallest_detectable))
        label = words if unit == "1" else f"{words} ({unit})"
        rows.append((int(layer), label, condition, *as_cells(mean), *rest))
    heads = ("low", "high", f"change from {clean}", "change low", "change high", "p (Holm)", "smallest detectable")
    table = Table(
        "lambda_by_layer",
        1,
        "Means over clips and steps; intervals of 95 % by bootstrap over clips that share no recording; changes are "
        "paired.",
        (Column("layer"), Column("quantity"), Column("condition"), Column("mean"), *map(Column, heads)),
        tuple(rows),
    )
    of_clean = {layer: means[key] for key in means if key[:2] == (clean, "lam") for layer in [key[2]]}
    here = {layer: rows_where(columns, condition=clean, layer=layer) for layer in of_clean}
    verdict = together(mean_exceeds(rows["lam"], rows["cluster"], seed=seed) for rows in here.values())
    lead = {"HOLDS": "gains at every layer", "VIOLATED": "does not gain at every layer"}.get(verdict, "may gain")
    parts = [f"λ_{int(layer)} = {shown(mean)}" for layer, mean in of_clean.items()]
    sentence = f"On {clean} clips the dominant path {lead} (λ > 0): {', '.join(parts)} nats per layer."
    if "width" in columns and of_clean:
        log_kappa = chance_log_alignment(int(columns["width"][0]))
        chance = [f"λ_{int(l)} = {np.log(rows['sigma1']).mean() + log_kappa:.3g}" for l, rows in here.items()]
        sentence += f" With the same σ₁, random directions would give {', '.join(chance)}."
    moved = [(key, change) for key, change in changes.items() if key[1] == "lam"]
    sure = [(key, change) for key, change in moved if p[key] < 0.05]
    if moved:
        said = [f"{k[0]} at layer {int(k[2])} by {shown(c)} (p = {p[k]:.2g})" for k, c in sure]
        sentence += (
            f" λ changes under {'; '.join(said)}."
            if said
            else f" No change of λ under stress is significant after correction over {len(p)} tests."
        )
    return Section(MAP_ID, MAP_TITLE, verdict, sentence, (table,), {"maps": _maps(columns, conditions, layers, seed)})


def _maps(columns: Columns, conditions: Sequence[str], layers: Sequence[float], seed: int) -> list[dict[str, Any]]:
    """Return the mean of λ, its interval and the number of clips for each (layer, step)."""
    maps = []
    for condition in conditions:
        mine = rows_where(columns, condition=condition)
        steps = sorted(set(mine["step"].tolist()))
        used = [layer for layer in layers if np.isfinite(rows_where(mine, layer=layer)["lam"]).any()]
        grid: dict[str, list[list[Any]]] = {"mean": [], "low": [], "high": [], "clips": []}
        for layer in used:
            line: dict[str, list[Any]] = {name: [] for name in grid}
            for step in steps:
                rows = rows_where(mine, layer=layer, step=step)
                found = mean_of(rows["lam"], rows["cluster"], seed=seed)
                for name, cell in zip(("mean", "low", "high"), as_cells(found), strict=True):
                    line[name].append(cell)
                line["clips"].append(int(np.isfinite(rows["lam"]).sum()))
            for name, values in line.items():
                grid[name].append(values)
        maps.append(
            {"condition": condition, "layers": [int(x) for x in used], "steps": [int(x) for x in steps], **grid}
        )
    return maps


def variance_section(columns: Columns) -> Section:
    """Split the variance of λ among layer, step, clip and stress.

    Parameters
    ----------
    columns : of `layer_columns`. Clips that share recordings are one level.

    Returns
    -------
    Section
        The statement is that the layer explains at least half of it.
    """
    if not columns or not np.isfinite(columns["lam"]).any():
        return not_computed(VARIANCE_ID, VARIANCE_TITLE, "no clip has two resolved layers")
    keep = np.isfinite(columns["lam"])
    named = {"layer": "layer", "step": "step", "clip": "cluster", "stress": "condition"}
    factors = {name: columns[source][keep] for name, source in named.items()}
    factors = {name: levels for name, levels in factors.items() if len(set(levels.tolist())) > 1}
    if "layer" not in factors:
        return not_computed(VARIANCE_ID, VARIANCE_TITLE, "there is one coupling of layers only")
    levels = sum(len(set(values.tolist())) for values in factors.values())
    if keep.sum() <= levels + 1:
        return not_computed(VARIANCE_ID, VARIANCE_TITLE, f"{int(keep.sum())} values are too few for {levels} levels")
    clusters = "clip" if "clip" in factors else None
    shares = variance_components(columns["lam"][keep], factors, clusters=clusters)
    rows = []
    for name, share in shares.items():
        ends = (None, None) if share.interval is None else as_cells(share, share.share)[1:]
        rows.append((name, share.levels or None, share.share, *ends))
    table = Table(
        "variance",
        1,
        "Shares of the variance of λ, corrected for what chance levels would explain; the rest is interactions and "
        "noise. "
        "Intervals of 95 % by leaving clips out.",
        (Column("factor"), Column("levels"), Column("share"), Column("low"), Column("high")),
        tuple(rows),
    )
    layer = shares["layer"]
    if layer.interval is None:
        verdict = "UNDECIDED"
        number = f"{layer.share:.1%}"
    else:
        verdict = above(layer, HALF)
        number = f"{layer.share:.1%} [{layer.interval.low:.1%}, {layer.interval.high:.1%}]"
    lead = {
        "HOLDS": "The layer explains at least half",
        "VIOLATED": "The layer explains less than half",
    }.get(verdict, "It is not sure whether the layer explains half")
    others = [f"{name} {share.share:.1%}" for name, share in shares.items() if name != "layer"]
    sentence = f"{lead} of the variance of λ: {number}; {', '.join(others)}."
    return Section(VARIANCE_ID, VARIANCE_TITLE, verdict, sentence, (table,))
