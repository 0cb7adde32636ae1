"""Pool a study's activations per component and layer: how spectra change from one condition to the other, and in whom.

Pooling is over clips, because a short transcript has too few positions for a covariance of its own.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .modefunctions import QUANTITIES
from .pooling import Pooled, PooledChange, pooled, pooled_change
from .resampling import Interval
from .statistics import Change, group_difference
from .studyfile import COMPONENTS, Cell

MOST_POOLED = 2000  # clips of a group; memory stays below what these take, and intervals are narrow by then
LEAST_POOLED = 4
_UNTOLD = {
    "effective_rank": np.log,
    "participation_ratio": np.log,
    "kirchhoff": np.log10,
    "kirchhoff_scale_free": np.log10,
    "alpha": lambda x: x,
}


@dataclasses.dataclass(frozen=True)
class Place:
    """Name a component and a layer, from 1."""

    component: str
    layer: int


def thinned(cells: Sequence[Any], most: int = MOST_POOLED) -> list[Any]:
    """Take so many items evenly from all, so that memory is bounded.

    Examples
    --------
    >>> thinned(range(10), 4)
    [0, 2, 5, 7]
    """
    count = min(most, len(cells))
    return [cells[index * len(cells) // count] for index in range(count)]


def positions(
    cells: Sequence[Cell], *, like: Sequence[Cell] | None = None, most: int | None = None
) -> Iterator[tuple[Place, list[np.ndarray]]]:
    """Yield, for every component and layer, the activations of all cells, (positions, D) each.

    Parameters
    ----------
    cells : of a study. like : cells of the same clips; only as many positions are taken as both have.
    most : positions of a clip, the first ones.

    Notes
    -----
    One component is held at a time.
    """
    for component in COMPONENTS:
        rows = [cell.activation(component)[:, :most] for cell in cells]
        if like is not None:
            rows = [x[:, : len(other.transcript.token_logprobs)] for x, other in zip(rows, like, strict=True)]
        for layer in range(rows[0].shape[0] if rows else 0):
            yield Place(component, layer + 1), [x[layer] for x in rows]


def spectra(cells: Sequence[Cell], modes: Sequence[int]) -> dict[Place, Pooled]:
    """Pool cells of one group.

    Parameters
    ----------
    cells : at least `LEAST_POOLED`; more than `MOST_POOLED` are thinned out evenly. modes : windows.

    Returns
    -------
    dict
        Every component and layer to its `Pooled`.
    """
    cells = thinned(cells)
    clusters = [cell.cluster for cell in cells]
    return {place: pooled(rows, modes, clusters=clusters) for place, rows in positions(cells)}


def spectra_change(
    pairs: Sequence[tuple[Cell, Cell]], modes: Sequence[int], *, alike: bool = False, seed: int = 0
) -> dict[Place, PooledChange]:
    """Compare the pooled spectra of the same clips under two conditions.

    Parameters
    ----------
    pairs : cells of the same clips. modes : windows.
    alike : take only as many positions of each clip as it has under both conditions, the first ones: transcripts
        under stress are often shorter, and positions differ in what happens there.
    seed : of the tests.
    """
    pairs = thinned(pairs)
    clusters = [clean.cluster for clean, _ in pairs]
    one, other = [a for a, _ in pairs], [b for _, b in pairs]
    sides = zip(
        positions(one, like=other if alike else None), positions(other, like=one if alike else None), strict=True
    )
    return {
        place: pooled_change(clean, stressed, modes, clusters=clusters, seed=seed)
        for (place, clean), (_, stressed) in sides
    }


def spectra_difference(
    first: Sequence[Cell], second: Sequence[Cell], modes: Sequence[int], *, seed: int = 0
) -> dict[Place, dict[int, dict[str, Change]]]:
    r"""Compare the pooled spectra of two groups of different clips.

    Parameters
    ----------
    first, second : cells, at least `LEAST_POOLED` of each. modes : windows. seed : of the tests.

    Returns
    -------
    dict
        Place to window to quantity (`modefunctions.QUANTITIES`, as it is changed) to second minus first.

    Notes
    -----
    Of each clip at most as many positions are taken as half of the clips have, so that loops do not rule. The interval
    takes the groups for independent. The test exchanges labels of clips, of the scores
    :math:`\nabla f\cdot(\delta\mu_c)` to first order at the covariance of both groups together, which stays the same.
    """
    first, second = thinned(first), thinned(second)
    clusters = [[cell.cluster for cell in group] for group in (first, second)]
    found = {}
    most = int(np.median([len(cell.transcript.token_logprobs) for cell in (*first, *second)]))
    for (place, one), (_, other) in zip(positions(first, most=most), positions(second, most=most), strict=True):
        found[place] = grouped_change(one, other, modes, clusters=(clusters[0], clusters[1]), seed=seed)
    return found


def grouped_change(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    modes: Sequence[int],
    *,
    clusters: tuple[Sequence[str], Sequence[str]],
    seed: int = 0,
) -> dict[int, dict[str, Change]]:
    """Compare pooled observables of two groups of clips, (positions, D) each; as `spectra_difference`.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> a, b = ([rng.normal(size=(8, 12)) * scale for _ in range(60)] for scale in (1.0, np.linspace(1, 0.2, 12)))
    >>> labels = ([f"a{i}" for i in range(60)], [f"b{i}" for i in range(60)])
    >>> change = grouped_change(a, b, [10], clusters=labels)[10]["effective_rank_percent"]
    >>> change.value < 0, change.interval.high < 0, change.p < 0.001
    (True, True, True)
    """
    groups = [pooled(rows, modes, clusters=labels) for rows, labels in zip((first, second), clusters, strict=True)]
    mu, energies = _energies(first, second, max(modes))
    found: dict[int, dict[str, Change]] = {}
    for k in modes:
        found[k] = {}
        for q in QUANTITIES:
            untold = _UNTOLD[q.observed]
            bars = [group.intervals[k][q.observed] for group in groups]
            if min(group.eigenvalues.size for group in groups) < k:
                nothing = Interval(np.nan, np.nan, 0.95, "none", bars[0].n, False, f"fewer than {k} modes")
                found[k][q.changed] = Change(np.nan, nothing, np.nan, np.nan, "none", np.nan, bars[0].n, np.nan)
                continue
            value = q.value(groups[1].eigenvalues[:k]) - q.value(groups[0].eigenvalues[:k])
            scores = [(each[:, :k] - mu[:k]) @ q.gradient(mu[:k]) for each in energies]
            tested = group_difference(scores[0], scores[1], clusters=clusters, seed=seed)
            ends = [(untold(bar.low), untold(bar.high)) for bar in bars]
            middle = np.mean(ends[1]) - np.mean(ends[0])
            half = np.hypot(*(0.5 * (high - low) for low, high in ends))
            nominal = all(bar.nominal for bar in bars)
            note = "; ".join(dict.fromkeys(bar.note for bar in bars if bar.note))
            interval = Interval(
                float(q.change_told(middle - half)), float(q.change_told(middle + half)), 0.95, "jackknife",
                min(bar.n for bar in bars), nominal, note,
            )  # fmt: skip
            found[k][q.changed] = dataclasses.replace(
                tested,
                value=float(q.change_told(value)),
                interval=interval,
                effect_name="Hedges' g of the scores of clips",
                smallest_detectable=float(q.change_told(tested.smallest_detectable)),
            )
    return found


def _energies(
    first: Sequence[np.ndarray], second: Sequence[np.ndarray], count: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Return eigenvalues of both groups together, and each clip's mean squares along their modes."""
    rows = np.concatenate([np.asarray(x, np.float64) for x in (*first, *second)])
    middle = rows.mean(0)
    rows = rows - middle
    mu, modes = np.linalg.eigh(rows.T @ rows / len(rows))
    mu, modes = mu[::-1][:count], modes[:, ::-1][:, :count]
    mean = lambda x: (((np.asarray(x, np.float64) - middle) @ modes) ** 2).mean(0)
    return np.maximum(mu, np.finfo(float).tiny), [np.stack([mean(x) for x in group]) for group in (first, second)]
