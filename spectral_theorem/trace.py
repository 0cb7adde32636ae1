r"""Frobenius norms of operators that are known by products only, with intervals.

Hutch++: what a sketched subspace captures is summed exactly, and only the rest is estimated, from
Gaussian probes. The rest is a positive semidefinite trace, and of such an estimate the extreme
tails are known: those of a chi-square with as many degrees of freedom as probes times stable rank.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .types import container, refuse

_LEAST_CONFIDENCE = 0.85  # below, quantiles come so near to the mean that the extremal tails are not known
_BISECTIONS = 80


@container
class FrobeniusNorm:
    r"""Hold an estimate of :math:`\|A\|_F` and two intervals for it.

    Attributes
    ----------
    norm : square root of an unbiased estimate of :math:`\|A\|_F^2`.
    lower, upper : interval by the stable rank that the probes show.
    lower_any, upper_any : interval that holds whatever the spectrum is; wider.
    captured : share of the estimated :math:`\|A\|_F^2` that was summed, not estimated.
    stable_rank : what the probes show of :math:`\|B\|_F^2/\|B\|^2`, B the part that was estimated; biased downwards,
        between 1 and the number of probes.
    """

    norm: Float[Array, "*batch"]
    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    lower_any: Float[Array, "*batch"]
    upper_any: Float[Array, "*batch"]
    captured: Float[Array, "*batch"]
    stable_rank: Float[Array, "*batch"]


def frobenius_norm(
    key: Any,
    *,
    rmatvec: Callable[[Any], Any],
    rows: int,
    dtype: Any,
    matvec: Callable[[Any], Any] | None = None,
    sketch: int = 16,
    probes: int = 32,
    confidence: float = 0.95,
) -> FrobeniusNorm:
    r"""Estimate the Frobenius norm of an operator from products with a few vectors.

    .. math:: \|A\|_F^2 = \|Q^\top A\|_F^2 + \operatorname{tr}(BB^\top), \qquad B = (I-QQ^\top)A, \qquad
       \operatorname{tr}(BB^\top) \approx \tfrac1m\textstyle\sum_{i\le m}\|B^\top g_i\|^2

    **Claim.** Given the spectrum of B (upper, the any-spectrum interval; finding, the other): with
    probability at least `confidence` over the probes the interval contains the norm.

    Parameters
    ----------
    key : PRNG key.
    rmatvec : function (b, rows) -> (b, C), every row y to :math:`A^\top y`; traceable by JAX.
    rows : number of rows of A.
    dtype : float32 or float64.
    matvec : function (b, C) -> (b, rows), every row x to Ax; by transposition of `rmatvec` when absent.
    sketch : number of directions summed exactly; 0 for Hutchinson's estimate.
    probes : number m of Gaussian probes for the rest.
    confidence : of both intervals, 0.85 to below 1.

    Returns
    -------
    FrobeniusNorm

    Raises
    ------
    InputError
        rows or probes < 1, sketch < 0, confidence out of range, or another dtype.

    Notes
    -----
    2 sketch + probes products with :math:`A^\top` and `sketch` with A; holds (probes + sketch) C numbers.
    May be jitted over `key`, and over whatever the two functions close over.

    Q is an orthonormal basis of :math:`AA^\top S`, S Gaussian and independent of the probes; given Q the
    estimate of the rest divided by its truth is :math:`\sum_jw_jX_j`, :math:`w_j` the shares of B's squared singular
    values and :math:`X_j` independent :math:`\chi^2_m/m`. Among all B of stable rank at least r its two tails are at
    most those of :math:`\chi^2_{mr}/(mr)`, beyond :math:`1\pm2/(mr)` (Hallman, theorem 6; conjecture 3 for this
    threshold); the interval inverts these quantiles. With r = 1 nothing about B is assumed:
    `lower_any`, `upper_any`. For `lower`, `upper` r is :math:`\operatorname{tr}K/\|K\|` of the probes' own Gram matrix
    :math:`K_{ij} = g_i^\top BB^\top g_j`: 1 when B has rank one, and otherwise below the stable rank by about
    :math:`(1+\sqrt{r/m})^2`, which is what makes the interval conservative though r is not known. Tests count how often
    it covers. Rounding widens both intervals by 16 eps sqrt(rows).

    References
    ----------
    R. A. Meyer, C. Musco, C. Musco, D. P. Woodruff, Hutch++, SOSA 2021. E. Hallman, Extremal bounds for
    Gaussian trace estimation, arXiv 2411.15454. docs/theory/rigour.md.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> a = jnp.diag(1.0 / jnp.arange(1.0, 201.0))
    >>> found = frobenius_norm(jax.random.key(0), rmatvec=lambda y: y @ a, rows=200, dtype=a.dtype)
    >>> bool(found.lower < jnp.linalg.norm(a) < found.upper), bool(found.upper / found.lower < 1.02)
    (True, True)
    """
    if rows < 1 or probes < 1 or sketch < 0:
        refuse(
            f"rows={rows}, sketch={sketch}, probes={probes}", "rows, probes >= 1, sketch >= 0", "sketch=16, probes=32"
        )
    if not _LEAST_CONFIDENCE <= confidence < 1:
        refuse(f"confidence={confidence}", f"{_LEAST_CONFIDENCE} <= confidence < 1", "confidence=0.95")
    if jnp.dtype(dtype) not in (jnp.dtype("float32"), jnp.dtype("float64")):
        refuse(f"dtype {jnp.dtype(dtype)}", "float32 or float64", "dtype='float32'")
    count = min(sketch, rows)
    for_sketch, for_probes = jax.random.split(key)
    basis = jnp.zeros((0, rows), dtype)
    summed = jnp.zeros((), dtype)
    if count:
        drawn = rmatvec(jax.random.normal(for_sketch, (count, rows), dtype))
        back = matvec or _transposed(rmatvec, (count, rows), dtype)
        basis = jnp.linalg.qr(back(drawn).T)[0].T
        summed = jnp.sum(rmatvec(basis) ** 2)
    probe = jax.random.normal(for_probes, (probes, rows), dtype)
    # twice: what rounding leaves of a large captured part would pass for the rest
    for _ in range(2):
        probe = probe - jnp.matmul(jnp.matmul(probe, basis.T, precision="highest"), basis, precision="highest")
    images = rmatvec(probe)
    gram = jnp.matmul(images, images.T, precision="highest")
    total, largest = jnp.trace(gram), jnp.linalg.eigvalsh(gram)[-1]
    rank = jnp.clip(jnp.where(largest > 0, total / jnp.where(largest > 0, largest, 1.0), 1.0), 1.0, probes)
    rest = total / probes
    margin = 16 * float(jnp.finfo(dtype).eps) * math.sqrt(rows)

    def interval(r: Any) -> tuple[Array, Array]:
        freedom = probes * r
        low, high = (chi_square_quantile(p, freedom) for p in ((1 - confidence) / 2, (1 + confidence) / 2))
        ends = summed + rest * freedom / high, summed + rest * freedom / low
        return jnp.sqrt(ends[0]) * (1 - margin), jnp.sqrt(ends[1]) * (1 + margin)

    lower, upper = interval(rank)
    lower_any, upper_any = interval(jnp.ones_like(rank))
    whole = summed + rest
    return FrobeniusNorm(
        norm=jnp.sqrt(whole),
        lower=lower,
        upper=upper,
        lower_any=lower_any,
        upper_any=upper_any,
        captured=jnp.where(whole > 0, summed / jnp.where(whole > 0, whole, 1.0), 1.0),
        stable_rank=rank,
    )


@functools.partial(jax.jit, static_argnames="probability")
def chi_square_quantile(probability: float, freedom: Any) -> Any:
    r"""Return x with :math:`P(\chi^2_\nu \le x)` = probability, by bisection; jittable.

    Parameters
    ----------
    probability : above 0 and below 1.
    freedom : :math:`\nu > 0`, an array of any shape.

    Notes
    -----
    JAX has the distribution function and not its inverse. The search starts from 0 and from
    :math:`\nu+2\sqrt{\nu t}+2t`, :math:`t=-\log(1-p)`, an upper bound of the quantile.

    References
    ----------
    B. Laurent, P. Massart, Ann. Statist. 28 (2000) 1302, lemma 1.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> [round(float(chi_square_quantile(p, jnp.asarray(3.0))), 3) for p in (0.025, 0.975)]
    [0.216, 9.348]
    """
    freedom = jnp.asarray(freedom)
    t = -math.log1p(-probability)
    high = freedom + 2 * jnp.sqrt(freedom * t) + 2 * t

    def halve(_: Any, ends: tuple[Any, Any]) -> tuple[Any, Any]:
        low, high = ends
        middle = 0.5 * (low + high)
        below = jax.scipy.special.gammainc(freedom / 2, middle / 2) < probability
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    low, high = jax.lax.fori_loop(0, _BISECTIONS, halve, (jnp.zeros_like(high), high))
    return 0.5 * (low + high)


def _transposed(function: Callable[[Any], Any], shape: tuple[int, ...], dtype: Any) -> Callable[[Any], Any]:
    pull = jax.linear_transpose(function, jax.ShapeDtypeStruct(shape, dtype))
    return lambda y: pull(y)[0]
