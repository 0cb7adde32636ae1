r"""Leading singular triplets of many operators at once: eigenpairs of their Gramians, and one product more."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from .eigenpairs import Leading, _dot, _length, leading_eigenpairs
from .types import container

__all__ = ["Leading", "SingularTriplets", "leading_eigenpairs", "singular_triplets"]


@container
class SingularTriplets:
    r"""Hold converged estimates of the leading singular triplets of N operators.

    Attributes
    ----------
    sigma : (N, top+1)  descending; the last is an estimate of :math:`\sigma_{top+1}`, never an upper bound.
    U, V : (N, M, top), (N, D, top)  orthonormal columns, `W @ V == sigma * U`.
    residual : (N,)  observed :math:`\max_i(\|Wv_i-\sigma_iu_i\|^2+\|W^\top u_i-\sigma_iv_i\|^2)^{1/2}`, absolute.
    size : (N,) int  vectors in the Krylov basis; D means the whole space.
    converged : (N,) bool  the top residuals are within tolerance.
    """

    sigma: Any
    U: Any
    V: Any
    residual: Any
    size: Any
    converged: Any


def singular_triplets(
    push: Any,
    pull: Any,
    *,
    count: int,
    width: int,
    dtype: Any,
    key: Any,
    top: int = 2,
    tolerance: float | None = None,
    most: int | None = None,
    start: Any = None,
    block: int = 2,
) -> SingularTriplets:
    r"""Estimate the leading singular triplets of N operators at once, with observed residuals.

    .. math:: W_n v_{i,n} = \sigma_{i,n} u_{i,n}, \qquad W_n^\top u_{i,n} = \sigma_{i,n} v_{i,n}

    Parameters
    ----------
    push, pull : functions (N, b, D) -> (N, b, M) and back, :math:`W_n` and its transpose on rows.
    tolerance : residual to reach, relative to :math:`\sigma_1`; default 64 eps.
    count, width, dtype, key, top, most, start, block : as in `leading_eigenpairs`; `start` are guesses of v.

    Returns
    -------
    SingularTriplets

    Raises
    ------
    InputError
        As `leading_eigenpairs`.

    Notes
    -----
    Eigenpairs of :math:`W^\top W`, then one product more: the triplets are those of W itself within the
    span of the leading vectors, so a small :math:`\sigma_2` is not lost with its square. Operators are divided
    by a power of two, so that no square over- or underflows. `converged` is judged by the residuals of the
    result, not by those of the recurrence.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> w = jnp.diag(jnp.arange(1.0, 101.0))[None]
    >>> found = singular_triplets(lambda x: x @ w.swapaxes(1, 2), lambda y: y @ w, count=1, width=100,
    ...                           dtype=w.dtype, key=jax.random.key(0))
    >>> found.sigma.round(3).tolist(), found.converged.tolist()
    ([[100.0, 99.0, 98...]], [True])
    """
    eps = float(jnp.finfo(jnp.dtype(dtype)).eps)
    push, pull = (f if isinstance(f, Partial) else Partial(f) for f in (push, pull))
    probe = jax.random.normal(jax.random.fold_in(key, 3), (count, 1, width), dtype)
    operator = _scaled_operator(push, pull, probe)
    found = leading_eigenpairs(
        Partial(_gramian, operator),
        count=count,
        width=width,
        dtype=dtype,
        key=key,
        top=top,
        tolerance=tolerance,
        most=most,
        start=start,
        block=block,
    )
    return _finished(operator, found, 64 * eps if tolerance is None else tolerance, top=top)


@container
class _Operator:
    push: Any
    pull: Any
    scale: Any  # (N,) powers of two


@jax.jit
def _scaled_operator(push: Any, pull: Any, probe: Any) -> _Operator:
    size = jnp.abs(push(probe)).max(axis=(1, 2))
    usable = jnp.isfinite(size) & (size > 0)
    return _Operator(push, pull, jnp.ldexp(jnp.ones_like(size), jnp.frexp(jnp.where(usable, size, 1.0))[1]))


def _forward(operator: _Operator, x: Any) -> Any:
    return operator.push(x) / operator.scale[:, None, None]


def _backward(operator: _Operator, y: Any) -> Any:
    return operator.pull(y) / operator.scale[:, None, None]


def _gramian(operator: _Operator, x: Any) -> Any:
    return _backward(operator, _forward(operator, x))


@container
class _Found:
    """Hold triplets of an operator within a space of few dimensions, and how far each is from one of the operator."""

    sigma: Any  # (N, k)
    u: Any  # (N, k, M), rows
    v: Any  # (N, k, D), rows
    back: Any  # (N, k, D), W^T u
    each: Any  # (N, k), observed residual


@functools.partial(jax.jit, static_argnames="top")
def _finished(operator: _Operator, found: Leading, tolerance: Any, *, top: int) -> SingularTriplets:
    """Take the triplets of W within the span of the leading vectors, and look at their residuals."""
    first = _within(operator, found.vector)
    converged = lambda t: (t.each[:, :top] <= tolerance * t.sigma[:, :1]).all(axis=1)

    def again(t: _Found) -> _Found:
        # a value small beside the first is lost in W^T W: one product with W^T alone, the first direction taken out
        # of the second, has it to working precision
        span, _ = jnp.linalg.qr(jnp.swapaxes(t.back, 1, 2))
        finer = _within(operator, jnp.swapaxes(span, 1, 2))
        done = converged(t)
        return jax.tree.map(lambda a, b: jnp.where(done.reshape(-1, *[1] * (a.ndim - 1)), a, b), t, finer)

    t = jax.lax.cond(converged(first).all(), lambda t: t, again, first)
    columns = lambda rows: jnp.swapaxes(rows[:, :top], 1, 2)
    return SingularTriplets(
        sigma=t.sigma * operator.scale[:, None],
        U=columns(t.u),
        V=columns(t.v),
        residual=t.each[:, :top].max(axis=1) * operator.scale,
        size=found.size,
        converged=converged(t),
    )


def _within(operator: _Operator, rows: Any) -> _Found:
    """Return the triplets of W within the span of (N, k, D) orthonormal rows."""
    images = _forward(operator, rows)
    image, triangle = jnp.linalg.qr(jnp.swapaxes(images, 1, 2))
    x, sigma, y = jnp.linalg.svd(triangle)
    u, v = jnp.swapaxes(image @ x, 1, 2), _dot("nij,njd->nid", y, rows)
    ahead = _dot("nij,njd->nid", y, images) - sigma[:, :, None] * u
    back = _backward(operator, u)
    each = jnp.sqrt(_length(ahead) ** 2 + _length(back - sigma[:, :, None] * v) ** 2)
    return _Found(sigma, u, v, back, each)
