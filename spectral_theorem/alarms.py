r"""Alarms about a decoding that goes on, at a false-positive rate that the user's own clean clips vouch for.

A clip's score is the worst that a signal came to while it was decoded. An alarm is raised where a score passes the
conformal limit of the clean clips' scores, so that of clips exchangeable with them at most the level raise any,
whatever the signals are like, however long the clips, and whenever the listener stops.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .suspicion import limit
from .types import refuse

LEAST_POSITIONS = 3  # two positions have one mode, whose effective rank is 1 whatever they are
SURE = 0.95


@dataclasses.dataclass(frozen=True)
class Signal:
    """Describe what an alarm listens to.

    Parameters
    ----------
    words : what it is. sign : +1 where larger is more suspicious. source : the number it is made of.
    """

    words: str
    sign: int
    source: str


SIGNALS = {
    "low_rank": Signal("effective rank, as a share of what its positions allow, low", -1, "rank"),
    "high_rank": Signal("effective rank, as a share of what its positions allow, high", 1, "rank"),
    "steep": Signal("spectral slope alpha, steep", 1, "alpha"),
    "flat": Signal("spectral slope alpha, flat", -1, "alpha"),
    "low_gain": Signal("mean of lambda over the layers, low", -1, "lam"),
    "high_gain": Signal("mean of lambda over the layers, high", 1, "lam"),
    "unlikely": Signal("mean log-probability of the window's tokens, low", -1, "logprob"),
}
DEFAULT = ("low_rank", "steep", "unlikely")


@dataclasses.dataclass(frozen=True)
class Raised:
    """Hold one alarm: the signal, its value, and the threshold it passed."""

    signal: str
    value: float
    threshold: float


def sources(
    rank: np.ndarray, alpha: np.ndarray, positions: np.ndarray, modes: int, logprob: np.ndarray, lam: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the numbers that signals are made of, (k,) each, NaN where there is none.

    Parameters
    ----------
    rank, alpha : (k, P) effective rank and slope at P places, of windows with `positions` (k,) and so many `modes`.
    logprob : (k,) means over the window. lam : (k, L) of the couplings, NaN where it was not measured.

    Examples
    --------
    >>> two = np.ones((1, 2))
    >>> found = sources(3 * two, np.nan * two, np.asarray([5]), 10, np.zeros(1), two)
    >>> {name: float(value[0]) for name, value in found.items()}
    {'rank': 0.75, 'alpha': nan, 'logprob': 0.0, 'lam': 1.0}
    """
    most = np.minimum(positions - 1, modes)
    share = _mean(rank) / np.maximum(most, 1)
    return {
        "rank": np.where(positions >= LEAST_POSITIONS, share, np.nan),
        "alpha": _mean(alpha),
        "logprob": np.asarray(logprob, np.float64),
        "lam": _mean(lam),
    }


def _mean(x: np.ndarray) -> np.ndarray:
    """Average over the last axis what is known; NaN where nothing is."""
    x = np.asarray(x, np.float64)
    known = np.isfinite(x)
    count = known.sum(-1)
    return np.where(count > 0, np.where(known, x, 0.0).sum(-1) / np.maximum(count, 1), np.nan)


def worst(values: Mapping[str, Sequence[float] | np.ndarray]) -> dict[str, float]:
    """Return a clip's scores: the worst of every signal over its steps, larger is worse; -inf where there is none.

    Parameters
    ----------
    values : by source, of all steps.

    Examples
    --------
    >>> worst({"rank": [0.5, 0.25, float("nan")], "lam": []})["low_rank"]
    -0.25
    """
    found = {}
    for name, signal in SIGNALS.items():
        all = signal.sign * np.asarray(values.get(signal.source, ()), np.float64)
        found[name] = float(all[~np.isnan(all)].max(initial=-math.inf))
    return found


@dataclasses.dataclass(frozen=True)
class Alarms:
    """Hold the limits of calibrated alarms; made by `calibrate`.

    Parameters
    ----------
    level : share of clean clips that may raise an alarm. clips : clean clips that this rests on.
    limits : signal to the score beyond which it is raised. above : clean clips that may lie beyond one limit.
    """

    level: float
    clips: int
    limits: Mapping[str, float]
    above: int

    def raised(self, values: Mapping[str, float]) -> tuple[Raised, ...]:
        """Return the alarms that these values raise.

        Parameters
        ----------
        values : by source, of one step; NaN raises nothing.
        """
        found = []
        for name, edge in self.limits.items():
            signal = SIGNALS[name]
            value = values.get(signal.source, math.nan)
            if signal.sign * value > edge:
                found.append(Raised(name, float(value), signal.sign * edge))
        return tuple(found)

    @property
    def rate_upper(self) -> float:
        """Bound on the false-positive rate given this very set of clean clips, met in 95 % of such sets."""
        from scipy import stats

        each = (1 - SURE) / len(self.limits)
        one = float(stats.beta.ppf(1 - each, self.above + 1, self.clips - self.above))
        return min(len(self.limits) * one, 1.0)

    def says(self) -> str:
        """Say what is promised, and what it rests on."""
        return (
            f"At most {self.level:.3g} of clips exchangeable with the {self.clips} clean ones raise an alarm, on "
            f"average over such sets of clean clips; with this set at most {self.rate_upper:.3g}, at {SURE:.0%} "
            f"confidence. Signals: {', '.join(self.limits)}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, thresholds in the units of the values."""
        return {
            "level": self.level,
            "clips": self.clips,
            "rate_upper": self.rate_upper,
            "thresholds": {name: SIGNALS[name].sign * edge for name, edge in self.limits.items()},
            "says": self.says(),
        }


def calibrate(
    clean: Sequence[Mapping[str, float]],
    *,
    level: float = 0.05,
    signals: Sequence[str] = DEFAULT,
    modes: int | None = None,
) -> Alarms:
    r"""Set the limits of alarms from the scores of clean clips.

    .. math:: P(\text{any alarm}) \le \sum_s \frac{k+1}{n+1} \le \alpha, \qquad
       k+1 = \lfloor (n+1)\,\alpha/m \rfloor

    Parameters
    ----------
    clean : scores of n clips, from `worst`. level : :math:`\alpha`, shared evenly by m signals.
    signals : names of `SIGNALS`. modes : of the spectra, by which the effective rank is bounded.

    Returns
    -------
    Alarms

    Raises
    ------
    InputError
        A level outside 0 to 1, unknown signals, and an alarm that could never be raised: too few clean clips, a signal
        that no clean clip has, or a limit at the end of what the signal can come to.

    References
    ----------
    V. Vovk, A. Gammerman, G. Shafer, Algorithmic Learning in a Random World, 2005 (conformal p-values).

    Examples
    --------
    >>> clean = [{"unlikely": float(i)} for i in range(9)]
    >>> alarms = calibrate(clean, level=0.1, signals=("unlikely",))
    >>> len(alarms.raised({"logprob": -8.5})), len(alarms.raised({"logprob": -8.0})), round(alarms.rate_upper, 3)
    (1, 0, 0.283)
    """
    if not 0 < level < 1:
        refuse(f"level={level}", "a rate between 0 and 1", "level=0.05")
    unknown = [name for name in signals if name not in SIGNALS]
    if unknown or not signals or len(set(signals)) < len(signals):
        refuse(
            f"signals {', '.join(signals) or 'none'}", f"some of {', '.join(SIGNALS)}, each once", ", ".join(DEFAULT)
        )
    n, share = len(clean), level / len(signals)
    if limit(np.zeros(n), share) is None:
        needed = next(m for m in itertools.count(math.floor(1 / share) - 1) if limit(np.zeros(m), share) is not None)
        refuse(
            f"{n} clean clips for {len(signals)} signals at level {level:g}, with which no alarm could ever be raised",
            f"at least {needed} clean clips",
            f"more clips, fewer signals, or a level of {min(len(signals) / (n + 1), 0.99):.2g}",
        )
    limits = {}
    for name in signals:
        scores = np.asarray([each.get(name, -math.inf) for each in clean], np.float64)
        if np.isnan(scores).any() or not np.isfinite(scores).any():
            hint = "every=1" if SIGNALS[name].source == "lam" else "longer clips, or other signals"
            refuse(f"signal {name}, which no clean clip has a value of", "clean clips that have one", hint)
        edge = limit(scores, share)
        if edge is None or edge >= _most(name, modes):
            refuse(
                f"a limit of {SIGNALS[name].sign * (edge or 0):g} for {name}, beyond which nothing can be",
                "clean clips that leave room for worse ones",
                "another signal",
            )
        limits[name] = edge
    return Alarms(level, n, limits, int(np.floor(share * (n + 1))) - 1)


def _most(name: str, modes: int | None) -> float:
    """Return the largest score that a signal can come to."""
    if name == "low_rank":
        return -1 / modes if modes else 0.0
    return 1 - 1e-9 if name == "high_rank" else math.inf
