"""Say how far apart two distributions of eigenvalues are."""

from typing import Any

import numpy as np

from .resampling import finite
from .types import refuse


def kl(p: Any, q: Any) -> float:
    r"""Return the Kullback-Leibler divergence :math:`\sum_i p_i\log(p_i/q_i)` in nats, of weights made to sum to 1.

    Parameters
    ----------
    p, q : (n,) non-negative; mode i of one beside mode i of the other.

    Returns
    -------
    float
        Infinite where q is zero and p is not.

    Raises
    ------
    InputError
        On weights that are negative, not finite, all zero, or of different number.

    Examples
    --------
    >>> kl([1, 1], [1, 1]), round(kl([3, 1], [1, 1]), 4)
    (0.0, 0.1308)
    """
    from scipy.special import rel_entr

    return float(rel_entr(*_weights(p, q)).sum())


def jensen_shannon(p: Any, q: Any) -> float:
    r"""Return the Jensen-Shannon divergence in nats: symmetric, and at most log 2.

    Parameters
    ----------
    p, q : as in `kl`.

    Examples
    --------
    >>> round(jensen_shannon([1, 0], [0, 1]), 6), jensen_shannon([1, 2], [2, 4])
    (0.693147, 0.0)
    """
    a, b = _weights(p, q)
    middle = (a + b) / 2
    return max(0.0, (kl(a, middle) + kl(b, middle)) / 2)


def _weights(p: Any, q: Any) -> tuple[np.ndarray, np.ndarray]:
    a, b = finite(p, "p"), finite(q, "q")
    if a.size != b.size or min(a.min(), b.min()) < 0 or a.sum() == 0 or b.sum() == 0:
        refuse(f"weights of {a.size} and {b.size} modes", "as many non-negative ones in each, not all zero", "spectrum")
    return a / a.sum(), b / b.sum()
