"""Change one thing, clip by clip: what every variant of a measurement does to its headline numbers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .sections import LEVEL, Columns, as_cells, mean_of, rows_where
from .statistics import Change, change_of, corrected, smallest_detectable
from .tables import Column, Table

# quantity → how it is written, and its unit
QUANTITIES: Mapping[str, tuple[str, str]] = {
    "lam": ("λ", "nats/layer"),
    "kappa_abs": ("|κ|", "1"),
    "sigma1": ("σ₁", "1"),
    "xi": ("ξ", "1"),
    "growth": ("log‖W_L…W_1‖", "nats"),
    "unexplained": ("log‖W_L…W_1‖ beyond the dominant path", "nats"),
}


def differences(columns: Columns, quantity: str, variant: str, base: str) -> tuple[np.ndarray, np.ndarray]:
    """Return variant minus base of one quantity, per clip and condition, and the clusters.

    Parameters
    ----------
    columns : `clip`, `cluster`, `condition`, `variant`, and the quantity; several rows of one variant are averaged.

    Returns
    -------
    (n,) finite differences, and (n,) labels

    Examples
    --------
    >>> columns = {"clip": np.asarray(["a", "a"]), "cluster": np.asarray(["a", "a"]), "condition": np.asarray(["", ""]),
    ...            "variant": np.asarray(["plain", "other"]), "lam": np.asarray([1.0, 3.0])}
    >>> differences(columns, "lam", "other", "plain")[0].tolist()
    [2.0]
    """
    sides = []
    for name in (variant, base):
        rows, cells = rows_where(columns, variant=name), {}
        for clip, condition, cluster, value in zip(
            rows["clip"], rows["condition"], rows["cluster"], rows[quantity], strict=True
        ):
            cells.setdefault((str(clip), str(condition), str(cluster)), []).append(float(value))
        sides.append({key: float(np.mean(values)) for key, values in cells.items()})
    keys = [key for key in sides[0] if key in sides[1] and np.isfinite(sides[0][key] - sides[1][key])]
    found = np.asarray([sides[0][key] - sides[1][key] for key in keys], float)
    return found, np.asarray([cluster for _, _, cluster in keys])


def contrasts(
    columns: Columns, base: str, variants: Sequence[str], quantities: Sequence[str], *, seed: int = 0
) -> dict[tuple[str, str], Change]:
    """Judge every variant against the base, quantity by quantity.

    Parameters
    ----------
    columns : as in `differences`.

    Returns
    -------
    dict
        (variant, quantity) to the `Change`; pairs that no clip has are left out.
    """
    found = {}
    for variant in variants:
        for quantity in quantities:
            if quantity not in columns:
                continue
            values, clusters = differences(columns, quantity, variant, base)
            if values.size:
                found[variant, quantity] = change_of(values, clusters=clusters, seed=seed)
    return found


def clusters_needed(found: Change) -> int | None:
    r"""Say how many clusters it would take, at least, to see a change of this size in four of five samples.

    Parameters
    ----------
    found : judged on the clusters there are.

    Returns
    -------
    int or None
        From the spread that these clusters have, and no fewer than a test by flipping signs can decide with
        (:math:`2^{1-n}` below the level); None where there is no change to be seen. One cluster has no spread: then
        only the second is known.

    Examples
    --------
    >>> clusters_needed(change_of([0.5])), clusters_needed(change_of([0.0, 0.0]))
    (6, None)
    >>> rng = np.random.default_rng(0)
    >>> clusters_needed(change_of(0.2 + rng.normal(size=30))) > 30
    True
    """
    least = int(np.ceil(1 - np.log2(LEVEL)))
    if found.value == 0:
        return None
    if not found.smallest_detectable > 0:
        return least
    spread = found.smallest_detectable / smallest_detectable(1.0, found.n) * np.sqrt(found.n)
    needed = max(least, int((2.8 * spread / abs(found.value)) ** 2))  # 2.8 is for any number; fewer need more
    while smallest_detectable(spread / np.sqrt(needed), needed) > abs(found.value):
        needed += 1
    return needed


def contrast_table(
    columns: Columns,
    found: Mapping[tuple[str, str], Change],
    base: str,
    *,
    name: str,
    number: int,
    caption: str,
    seed: int = 0,
) -> Table:
    """Lay out variants beside the base: value, change with its interval, corrected p.

    Parameters
    ----------
    columns, found, base : of `contrasts`. name, number, caption : of the table; the caption is completed.
    """
    p = dict(zip(found, corrected([change.p for change in found.values()], "holm"), strict=True)) if found else {}
    quantities = list(dict.fromkeys(quantity for _, quantity in found))
    rows: list[tuple[Any, ...]] = []
    value = lambda variant, quantity: mean_of(
        *(rows_where(columns, variant=variant)[name] for name in (quantity, "cluster")), seed=seed
    )
    for quantity in quantities:
        words, unit = QUANTITIES[quantity]
        label = f"{words} ({unit})" if unit != "1" else words
        rows.append((label, base, *as_cells(value(base, quantity)), *[None] * 5))
        for variant in dict.fromkeys(v for v, q in found if q == quantity):
            change = found[variant, quantity]
            judged = (*as_cells(change), float(p[variant, quantity]), change.n)
            rows.append((label, variant, *as_cells(value(variant, quantity)), *judged))
    headings = ("low", "high", "change", "change low", "change high", "p (Holm)", "clusters")
    note = "Intervals of 95 % by bootstrap over clips; changes are paired by clip."
    columns_ = (Column("quantity"), Column("variant"), Column("value"), *map(Column, headings))
    return Table(name, number, f"{caption} {note}", columns_, tuple(rows))
