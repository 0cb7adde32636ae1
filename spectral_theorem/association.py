"""Say how well one number tells another: detection, prediction, and which factor a number varies with."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from .resampling import NOMINAL, RESAMPLES, TOO_SMALL, Interval, bca, finite, groups_of, interval_of
from .types import refuse

FOLDS = 50
FEW = 10  # of a class: fewer make a normal approximation on the logit scale rough


@dataclasses.dataclass(frozen=True)
class Estimate:
    """Hold a number with its interval.

    Examples
    --------
    >>> auroc([0.1, 0.4, 0.8, 0.9], [0, 0, 1, 1]).value
    1.0
    """

    value: float
    interval: Interval


@dataclasses.dataclass(frozen=True)
class Share:
    """Hold what part of a variance goes with one factor.

    Parameters
    ----------
    share : of the total variance, corrected for the levels that chance alone would explain; may be below 0 by chance.
    interval : of the share. levels : distinct values of the factor.

    Examples
    --------
    >>> found = variance_components([1.0, 2.0, 1.1, 2.1], {"step": [0, 1, 0, 1]})
    >>> found["step"].levels, bool(found["step"].share > 0.9)
    (2, True)
    """

    share: float
    interval: Interval | None
    levels: int


def auroc(scores: Any, labels: Any, *, clusters: Any = None, level: float = 0.95, seed: int = 0) -> Estimate:
    """Estimate the chance that a positive clip scores above a negative one, ties counted half.

    Parameters
    ----------
    scores : (n,) finite. labels : (n,) true or false. clusters : (n,) labels of recordings or speakers, or None.
    level : nominal coverage. seed : of the cluster bootstrap.

    Returns
    -------
    Estimate
        DeLong's interval on the logit scale; Newcombe's where the estimate is 0 or 1, which DeLong gives no width.
        With clusters, BCa over clusters.

    Raises
    ------
    InputError
        When all labels are equal, or lengths differ.

    References
    ----------
    DeLong, DeLong and Clarke-Pearson 1988; Newcombe 2006, method 5.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> labels = np.repeat([0, 1], 60)
    >>> found = auroc(rng.normal(labels, 1.0), labels)
    >>> found.interval.method, found.interval.contains(0.76)
    ('DeLong', True)
    """
    x, y = finite(scores, "scores"), np.asarray(labels).astype(bool)
    if y.shape != x.shape or y.all() or not y.any():
        got = f"{x.size} scores with {y.size} labels, {int(y.sum())} of them true"
        refuse(got, "a label for each score, some true and some false", "clips of both kinds")
    groups = groups_of(x.size, clusters)
    above = (x[y][:, None] > x[~y]) + 0.5 * (x[y][:, None] == x[~y])
    value = float(above.mean())
    if clusters is None:
        return Estimate(value, _delong(above, value, level))
    count = int(groups.max()) + 1
    wins = np.zeros((count, count))
    np.add.at(wins, (groups[y][:, None], groups[~y][None, :]), above)
    positive, negative = (np.bincount(groups[side], minlength=count).astype(float) for side in (y, ~y))

    def again(index: np.ndarray) -> np.ndarray:
        flat = index.reshape(-1, index.shape[-1])
        shift = count * np.arange(len(flat))[:, None]
        w = np.bincount((flat + shift).ravel(), minlength=count * len(flat)).reshape(-1, count).astype(float)
        area = ((w @ wins) * w).sum(-1) / ((w @ positive) * (w @ negative))
        return area.reshape(index.shape[:-1])

    return Estimate(value, bca(again, count, level=level, seed=seed, resamples=RESAMPLES))


def r_squared(actual: Any, predicted: Any, *, clusters: Any = None, level: float = 0.95, seed: int = 0) -> Estimate:
    r"""Estimate :math:`R^2 = 1-\sum(y-\hat y)^2/\sum(y-\bar y)^2` of predictions that were fixed beforehand.

    Parameters
    ----------
    actual, predicted : (n,) finite. clusters, level, seed : as in `interval`.

    Returns
    -------
    Estimate
        Below 0 where the mean predicts better; NaN where `actual` does not vary.

    Examples
    --------
    >>> r_squared(np.arange(60.0), np.arange(60.0) + 1).value > 0.99, r_squared([1.0, 3.0], [3.0, 1.0]).value
    (True, -3.0)
    """
    y, guess = _pair(actual, predicted)
    value = lambda index: _explained(y[index], guess[index])
    found = interval_of(value, y.size, clusters, level=level, seed=seed, vector=clusters is None)
    return Estimate(float(_explained(y, guess)), found)


def calibration(
    actual: Any, predicted: Any, *, clusters: Any = None, level: float = 0.95, seed: int = 0
) -> tuple[Estimate, Estimate]:
    """Estimate intercept and slope of what happened on what was predicted: 0 and 1 when predictions are calibrated.

    Parameters
    ----------
    actual, predicted : (n,) finite. clusters, level, seed : as in `interval`.

    Returns
    -------
    (intercept, slope) : Estimate

    Examples
    --------
    >>> x = np.linspace(0, 1, 60)
    >>> [round(part.value, 9) for part in calibration(1 + 2 * x, x)]
    [1.0, 2.0]
    """
    y, guess = _pair(actual, predicted)

    def line(index: np.ndarray) -> tuple[Any, Any]:
        a, b = guess[index], y[index]
        off = a - a.mean(-1, keepdims=True)
        with np.errstate(invalid="ignore", divide="ignore"):
            slope = (off * b).sum(-1) / (off**2).sum(-1)
        return b.mean(-1) - slope * a.mean(-1), slope

    everything = np.arange(y.size)
    again = lambda part: interval_of(
        lambda index: line(index)[part], y.size, clusters, level=level, seed=seed, vector=clusters is None
    )
    intercept, slope = (Estimate(float(line(everything)[part]), again(part)) for part in (0, 1))
    return intercept, slope


def variance_components(
    values: Any, factors: Mapping[str, Any], *, clusters: str | None = None, level: float = 0.95
) -> dict[str, Share]:
    r"""Split the variance of a number among factors such as layer, step, clip and stress.

    :math:`(SS_f - d_f\,MS_{res})/SS_{tot}`, with :math:`SS_f` what leaving the factor out of the additive model loses.

    Parameters
    ----------
    values : (n,) finite. factors : name to (n,) levels.
    clusters : the factor whose levels are the sample, such as "clip"; None gives no intervals.
    level : nominal coverage.

    Returns
    -------
    dict
        A `Share` per factor, and "rest": interactions and noise. The shares add up to 1 where the design is balanced.

    Raises
    ------
    InputError
        On factors of another length, `clusters` that is none of them, or a model that leaves no degree of freedom.

    Notes
    -----
    One least-squares problem of the size of all levels per factor and fold of clusters, 50 of them; on a full grid
    averages would do, but cells are missing where a clip is shorter.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> layer, clip = (grid.ravel() for grid in np.meshgrid(range(4), range(60)))
    >>> found = variance_components(layer + rng.normal(size=240), {"layer": layer, "clip": clip}, clusters="clip")
    >>> round(sum(part.share for part in found.values()), 6), found["layer"].interval.contains(5 / 9)
    (1.0, True)
    """
    x = finite(values, "values")
    codes = {name: groups_of(x.size, labels) for name, labels in factors.items()}
    if clusters is not None and clusters not in codes:
        refuse(f"clusters={clusters!r}", f"one of {list(codes)}", f'clusters="{next(iter(codes), "clip")}"')
    if not codes or x.size <= sum(code.max() for code in codes.values()) + 1:
        refuse(f"{x.size} values for the factors {list(codes)}", "more values than levels", "fewer factors")
    names, shares = [*codes, "rest"], _shares(x, codes)
    bars: dict[str, Interval | None] = dict.fromkeys(names)
    if clusters is not None:
        bars = dict(zip(names, _share_intervals(x, codes, clusters, level=level), strict=True))
    return {
        name: Share(float(share), bars[name], int(codes[name].max()) + 1 if name in codes else 0)
        for name, share in zip(names, shares, strict=True)
    }


def _delong(above: np.ndarray, value: float, level: float) -> Interval:
    from scipy import optimize, special, stats

    n, m = above.shape
    few = min(n, m)
    nominal, z = few >= FEW, stats.norm.ppf(0.5 + level / 2)
    note = "" if nominal else TOO_SMALL
    if few > 1 and 0 < value < 1:
        error = np.sqrt(above.mean(1).var(ddof=1) / n + above.mean(0).var(ddof=1) / m)
        half = z * error / (value * (1 - value))
        low, high = special.expit(special.logit(value) + np.asarray([-half, half])).tolist()
        if half > 0:
            return Interval(low, high, level, "DeLong", few, nominal, note)

    def beyond(area: float) -> float:
        even, both = (n + m) / 2 - 1, area * (1 - area) / (n * m)
        spread = both * (1 + even * ((1 - area) / (2 - area) + area / (1 + area)))
        return (area - value) ** 2 - z**2 * spread

    tiny = 1e-12
    low = 0.0 if value < tiny else float(optimize.brentq(beyond, tiny, value - tiny))  # pyright: ignore[reportArgumentType]
    high = 1.0 if value > 1 - tiny else float(optimize.brentq(beyond, value + tiny, 1 - tiny))  # pyright: ignore[reportArgumentType]
    return Interval(low, high, level, "Newcombe", few, nominal, note)


def _pair(actual: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    y, guess = finite(actual, "actual"), finite(predicted, "predicted")
    if y.size != guess.size:
        refuse(f"{y.size} actual and {guess.size} predicted values", "as many of each", "the same clips")
    return y, guess


def _explained(y: np.ndarray, guess: np.ndarray) -> Any:
    total = ((y - y.mean(-1, keepdims=True)) ** 2).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, 1 - ((y - guess) ** 2).sum(-1) / total, np.nan)


def _shares(x: np.ndarray, codes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the share of each factor and the rest."""
    x = x - x.mean()
    counts = {name: int(code.max()) + 1 for name, code in codes.items()}
    ends = np.cumsum([1, *(count - 1 for count in counts.values())]).tolist()
    place = dict(zip(codes, (range(a, b) for a, b in itertools.pairwise(ends)), strict=True))
    # products of dummies are counts of cells, so the tall design matrix is never written down
    gram, moment = np.zeros((ends[-1], ends[-1])), np.zeros(ends[-1])
    gram[0, 0] = x.size
    for name, code in codes.items():
        rows = place[name]
        gram[0, rows] = gram[rows, 0] = np.bincount(code)[1:]
        moment[rows] = np.bincount(code, weights=x)[1:]
        for other, second in codes.items():
            cells = np.bincount(code * counts[other] + second, minlength=counts[name] * counts[other])
            gram[np.ix_(rows, place[other])] = cells.reshape(counts[name], counts[other])[1:, 1:]
    square = float(x @ x)

    def rest(names: list[str]) -> tuple[float, int]:
        used = [0, *(row for name in names for row in place[name])]
        solved, _, rank, _ = np.linalg.lstsq(gram[np.ix_(used, used)], moment[used], rcond=1e-10)
        return max(0.0, square - float(solved @ moment[used])), int(rank)

    if square == 0:
        return np.full(len(codes) + 1, np.nan)
    left, rank = rest(list(codes))
    noise = left / max(x.size - rank, 1)
    shares = []
    for name in codes:
        without, smaller = rest([other for other in codes if other != name])
        shares.append((without - left - (rank - smaller) * noise) / square)
    return np.asarray([*shares, noise * (x.size - 1) / square])


def _share_intervals(x: np.ndarray, codes: Mapping[str, np.ndarray], clusters: str, *, level: float) -> list[Interval]:
    """Leave out a fold of clusters at a time: drawn with replacement, a cluster would be two that agree perfectly."""
    from scipy.special import stdtrit

    home = codes[clusters]
    n = int(home.max()) + 1
    folds = min(n, FOLDS)
    left = [home % folds != fold for fold in range(folds)]
    if n < 3 or any(np.ptp(x[rows]) == 0 for rows in left):
        return [Interval(np.nan, np.nan, level, "none", n, False, TOO_SMALL)] * (len(codes) + 1)
    again = lambda rows: {name: np.unique(code[rows], return_inverse=True)[1] for name, code in codes.items()}
    values = np.asarray([_shares(x[rows], again(rows)) for rows in left])
    error = np.sqrt((folds - 1) / folds * ((values - values.mean(0)) ** 2).sum(0))
    half, middle = float(stdtrit(n - 1, 0.5 + level / 2)) * error, _shares(x, codes)
    nominal = n >= NOMINAL["jackknife"]
    note = "" if nominal else TOO_SMALL
    return [
        Interval(float(m - h), float(m + h), level, "jackknife", n, nominal, note)
        for m, h in zip(middle, half, strict=True)
    ]
