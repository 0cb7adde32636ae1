"""Write the observables as functions of eigenvalues with gradients, which is what drawing clips again needs.

Ranks and indices are taken in logarithms, where their errors are nearly symmetric, and told in the units of reports.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

TEN = np.log(10.0)


@dataclasses.dataclass(frozen=True)
class ModeFunction:
    """Hold a function of the K eigenvalues of a window, how it is told, and how a change of it is told.

    Parameters
    ----------
    value : of (..., K), largest first and all above 0. gradient : of (K,), as an array (K,).
    observed, told : name in `Observables`, and the way to it from `value`.
    changed, change_told : name of the change, and the way to it from a difference of two values.

    Examples
    --------
    >>> function, mu = QUANTITIES[0], np.asarray([3.0, 2.0, 1.0])
    >>> step = np.asarray([1e-6, 0.0, 0.0])
    >>> difference = (function.value(mu + step) - function.value(mu - step)) / 2e-6
    >>> function.observed, bool(abs(difference - function.gradient(mu)[0]) < 1e-8)
    ('effective_rank', True)
    """

    value: Callable[[np.ndarray], Any]
    gradient: Callable[[np.ndarray], np.ndarray]
    observed: str
    told: Callable[[Any], Any]
    changed: str
    change_told: Callable[[Any], Any]


def _entropy(mu: np.ndarray) -> Any:
    p = mu / mu.sum(-1, keepdims=True)
    return -(p * np.log(p)).sum(-1)


def _alpha(mu: np.ndarray) -> Any:
    off = _places(mu.shape[-1])
    return -(np.log(mu) @ off) / (off @ off)


def _places(n: int) -> np.ndarray:
    off = np.log(np.arange(1.0, n + 1))
    return off - off.mean()


_same = lambda value: value
_percent = lambda value: 100 * np.expm1(value)
_power = lambda value: 10.0**value
_resistance = lambda mu: -1 / mu**2 / (1 / mu).sum() / TEN  # gradient of log10 of the sum of 1/mu
QUANTITIES = (
    ModeFunction(
        value=_entropy,
        gradient=lambda mu: (-np.log(mu / mu.sum()) - _entropy(mu)) / mu.sum(),
        observed="effective_rank",
        told=np.exp,
        changed="effective_rank_percent",
        change_told=_percent,
    ),
    ModeFunction(
        value=lambda mu: 2 * np.log(mu.sum(-1)) - np.log((mu**2).sum(-1)),
        gradient=lambda mu: 2 / mu.sum() - 2 * mu / (mu**2).sum(),
        observed="participation_ratio",
        told=np.exp,
        changed="participation_ratio_percent",
        change_told=_percent,
    ),
    ModeFunction(
        value=lambda mu: np.log10(mu.shape[-1] * (1 / mu).sum(-1)),
        gradient=_resistance,
        observed="kirchhoff",
        told=_power,
        changed="log10_kirchhoff",
        change_told=_same,
    ),
    ModeFunction(
        value=lambda mu: np.log10(mu.sum(-1) * (1 / mu).sum(-1)),
        gradient=lambda mu: 1 / mu.sum() / TEN + _resistance(mu),
        observed="kirchhoff_scale_free",
        told=_power,
        changed="log10_kirchhoff_scale_free",
        change_told=_same,
    ),
    ModeFunction(
        value=_alpha,
        gradient=lambda mu: -_places(mu.size) / (_places(mu.size) @ _places(mu.size)) / mu,
        observed="alpha",
        told=_same,
        changed="alpha",
        change_told=_same,
    ),
)
