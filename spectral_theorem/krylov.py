r"""Leading singular triplets from products with :math:`W` and :math:`W^\top` only.

Golub-Kahan bidiagonalisation sees one direction per singular value, and nothing that its start
vector is orthogonal to. So each round is followed by another, from a fresh random start in the
complement of what was found, until a round finds nothing larger. The results are converged
estimates with observed residuals, never bounds (docs/theory/rigour.md).
"""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from matfree import decomp

from .types import container, refuse

_FIRST_STEPS = 40
_MOST_STEPS = 2048  # where the basis of a wide state would no longer fit; max_steps overrides


@container
class KrylovTriplets:
    r"""Hold converged estimates of the leading singular triplets of every layer.

    Attributes
    ----------
    sigma : (L, top+1)  descending; the last is an *estimate* of :math:`\sigma_{top+1}`, never an upper
        bound, and 0 when top = D.
    U, V : (L, D, top)  orthonormal columns, `W @ V == sigma * U`.
    residual : (L,)  observed :math:`\max_i\,(\|Wv_i-\sigma_iu_i\|^2+\|W^\top u_i-\sigma_iv_i\|^2)^{1/2}`
        over the top triplets, absolute.
    steps : (L,) int  longest Krylov space used; D means the whole space.
    converged : (L,) bool  all top+1 triplets reached the tolerance, and a last round from an independent
        random start in their complement found nothing larger.
    """

    sigma: Any
    U: Any
    V: Any
    residual: Any
    steps: Any
    converged: Any


@container
class _Found:
    """Hold the triplets of one round (working precision, p = min(top+1, D) columns)."""

    sigma: Any  # (L, p)
    U: Any  # (L, D, p)
    V: Any  # (L, D, p)
    residual: Any  # (L, p)
    fresh: Any  # (L,) largest Ritz value in the complement of what was deflated
    fresh_residual: Any  # (L,)
    invariant: Any  # (L,) bool: the Krylov space cannot grow


def leading_triplets(
    matvec: Callable[..., Any],
    rmatvec: Callable[..., Any],
    *,
    depth: int,
    width: int,
    dtype: Any,
    key: Any,
    top: int = 2,
    tolerance: float | None = None,
    max_steps: int | None = None,
    start: Any = None,
) -> KrylovTriplets:
    r"""Estimate the leading singular triplets of L operators at once, with observed residuals.

    .. math:: W_l v_{i,l} = \sigma_{i,l} u_{i,l},\quad W_l^\top u_{i,l} = \sigma_{i,l} v_{i,l},\quad i=1..top

    Parameters
    ----------
    matvec, rmatvec : functions (L, D) -> (L, D) giving :math:`W_lx_l` and :math:`W_l^\top y_l`.
        Traceable by JAX. A method of a pytree, or a `jax.tree_util.Partial`, compiles once for
        all arrays of the same shapes.
    depth, width, dtype : L, D and float32 or float64.
    key : PRNG key of the random starts.
    top : number of triplets, 1..D.
    tolerance : residual to reach, relative to :math:`\sigma_1`; default 1e-12 in float64, 1e-5 in float32.
    max_steps : longest Krylov space; default min(D, 2048).
    start : (L, D), optional
        First start vectors, for instance the v of the previous decoding step. Later rounds start
        at random, so that a start vector that misses the leading direction does no harm.

    Returns
    -------
    KrylovTriplets

    Raises
    ------
    InputError
        Sizes below 1, top outside 1..D, tolerance not positive, max_steps < 1, a dtype other than
        float32/float64, or `start` of another shape.

    Notes
    -----
    Spaces of 40, 80, 160, ... steps; as soon as 2 steps reach D, D products with unit vectors cost no
    more, and the whole space is decomposed by SVD instead. Up to D products and O(D^2) memory per
    layer then; before that, 2 products and O(steps D) work per step. The loop over rounds is
    ordinary Python, so this function cannot be jitted; its parts are.

    Each round deflates the converged triplets and starts from an independent Gaussian vector. For
    such a start, k steps underestimate the largest eigenvalue of :math:`W^\top W` on the complement by a
    relative :math:`\epsilon` with probability at most :math:`1.648\sqrt D\,e^{-\sqrt\epsilon(2k-1)}` (Kuczyński and
    Woźniakowski 1992), 1e-5 for D=384, k=40, :math:`\epsilon=0.04`. So ties and near-ties are found,
    though not with certainty; a certified value needs the dense route.

    XLA takes subnormal numbers for zero: of an operator of norm below about 1e-290 (1e-22 in float32)
    trailing digits are lost before this function sees them, and at 1e-308 (1e-38) all of it.

    References
    ----------
    docs/theory/rigour.md. J. Kuczyński, H. Woźniakowski, SIAM J. Matrix Anal. Appl. 13 (1992) 1094.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> w = jnp.stack([jnp.diag(1.0 / jnp.arange(1.0, 101.0)), jnp.eye(100)])
    >>> found = leading_triplets(
    ...     lambda x: jnp.einsum("lij,lj->li", w, x), lambda y: jnp.einsum("lij,li->lj", w, y),
    ...     depth=2, width=100, dtype=w.dtype, key=jax.random.key(0))
    >>> found.sigma.round(4).tolist(), found.converged.tolist()
    ([[1.0, 0.5, 0.3333...], [1.0, 1.0, 1.0]], [True, True])
    """
    if depth < 1 or width < 1:
        refuse(f"depth={depth}, width={width}", "both >= 1", "depth=1, width=1")
    if not 1 <= top <= width:
        refuse(f"top={top}", f"1 <= top <= D = {width}", "top=1")
    if jnp.dtype(dtype) not in (jnp.dtype("float32"), jnp.dtype("float64")):
        refuse(f"dtype {jnp.dtype(dtype)}", "float32 or float64", "dtype='float32'")
    if tolerance is None:
        tolerance = 1e-12 if jnp.dtype(dtype) == jnp.dtype("float64") else 1e-5
    if not tolerance > 0:
        refuse(f"tolerance={tolerance}", "a number > 0", "tolerance=1e-12")
    if max_steps is not None and max_steps < 1:
        refuse(f"max_steps={max_steps}", "max_steps >= 1", "max_steps=40")
    if start is not None and tuple(start.shape) != (depth, width):
        refuse(f"start with shape {tuple(start.shape)}", f"(L, D) = ({depth}, {width})", "start=None")
    most = min(width, _MOST_STEPS if max_steps is None else max_steps)
    count = min(top + 1, width)
    # matfree allocates in JAX's default precision: float64 also for float32 operators once x64 is on
    working = jnp.zeros(()).dtype
    draw = lambda k: jax.random.normal(k, (depth, width), working)
    name = jnp.dtype(dtype).name
    operator = _operator(_as_pytree(matvec), _as_pytree(rmatvec), draw(jax.random.fold_in(key, 0)), dtype=name)
    limit = lambda found: tolerance * found.sigma[:, :1]

    best = _nothing(depth, width, count, working)
    steps_used = np.zeros(depth, int)
    converged, abandoned = np.zeros(depth, bool), np.zeros(depth, bool)
    for number in range(2 * count + 2):
        first = draw(jax.random.fold_in(key, number + 1))
        if number == 0 and start is not None:
            given = jnp.asarray(start, working)
            usable = jnp.isfinite(given).all(axis=1) & (jnp.abs(given).max(axis=1) > 0)
            first = jnp.where(usable[:, None], given, first)
        candidate, working_on, steps = best, ~(converged | abandoned), min(_FIRST_STEPS, most)
        settled = np.zeros(depth, bool)
        while True:
            whole = most == width and 2 * steps >= width
            if whole:
                found = _whole_space(operator, best, dtype=name)
            else:
                locked = best.residual <= limit(best)
                found = _round(operator, best, locked, first, steps=steps, dtype=name)
            candidate = _where(working_on, found, candidate)
            steps_used[working_on] = np.maximum(steps_used[working_on], width if whole else steps)
            settled = np.where(working_on, np.asarray((found.residual <= limit(found)).all(axis=1)), settled)
            below = found.fresh + found.fresh_residual <= found.sigma[:, -1]
            exact = found.fresh_residual <= limit(found)[:, 0]
            ended = np.asarray(found.invariant | ~jnp.isfinite(found.sigma[:, 0])) | (
                settled & np.asarray(below | exact)
            )
            working_on = working_on & ~ended
            if whole or steps == most or not working_on.any():
                break
            steps = min(2 * steps, most)
        silent = np.asarray(candidate.fresh <= best.sigma[:, -1] + limit(candidate)[:, 0])
        complete = steps_used == width
        best = _where(~(converged | abandoned), candidate, best)
        converged |= ~abandoned & settled & (complete | (silent & ~working_on))
        abandoned |= ~converged & (complete | working_on | ~np.isfinite(np.asarray(best.sigma[:, 0])))
        if (converged | abandoned).all():
            break
    return _finish(best, operator, steps_used, converged, top=top, dtype=name)


def _as_pytree(function: Any) -> Any:
    """Make the arrays of a function visible to jit, so that new arrays need no new compilation."""
    if isinstance(function, Partial):
        return function
    owner = getattr(function, "__self__", None)
    if inspect.ismethod(function) and not jax.tree_util.all_leaves([owner]):
        return Partial(function.__func__, owner)
    return Partial(function)


@container
class _Operator:
    """Hold W and its transpose divided by a power of two, so that no norm over- or underflows."""

    push: Any
    pull: Any
    scale: Any  # (L,)


@functools.partial(jax.jit, static_argnames="dtype")
def _operator(push: Any, pull: Any, probe: Any, *, dtype: str) -> _Operator:
    size = jnp.abs(push(probe.astype(dtype)).astype(probe.dtype)).max(axis=1)
    usable = jnp.isfinite(size) & (size > 0)
    exponent = jnp.frexp(jnp.where(usable, size, 1.0))[1]
    return _Operator(push=push, pull=pull, scale=jnp.ldexp(jnp.ones_like(size), exponent))


def _product(function: Any, scale: Any, x: Any, *, dtype: str) -> Any:
    """Apply a batched map to (L, D) or, column by column, to (L, D, q)."""
    if x.ndim == 3:
        return jax.vmap(lambda column: _product(function, scale, column, dtype=dtype), in_axes=2, out_axes=2)(x)
    return function(x.astype(dtype)).astype(x.dtype) / scale[:, None]


def _deflated(function: Any, scale: Any, before: Any, after: Any, x: Any, *, dtype: str) -> Any:
    """Apply (I - A A^T) F (I - B B^T), with A `after` and B `before`, both (L, D, p)."""
    y = _product(function, scale, _rejected(before, x), dtype=dtype)
    return _rejected(after, y)


def _rejected(basis: Any, x: Any) -> Any:
    """Take from x (L, D) its part along the columns of basis (L, D, p)."""
    return x - jnp.einsum("ldp,lp->ld", basis, jnp.einsum("ldp,ld->lp", basis, x))


@jax.custom_batching.custom_vmap
def _for_all_layers(function: Any, x: Any) -> Any:
    """Stand for a map of all layers while matfree, under vmap, sees one; never evaluated itself."""
    del function
    return x


@_for_all_layers.def_vmap
def _for_all_layers_batched(axis_size: int, in_batched: Any, function: Any, x: Any) -> tuple[Any, bool]:
    del axis_size, in_batched
    return function(x), True


@jax.custom_vjp
def _linear(push: Any, pull: Any, x: Any) -> Any:
    del pull
    return _for_all_layers(push, x)


_linear.defvjp(
    lambda push, pull, x: (_for_all_layers(push, x), pull),
    lambda pull, y: (None, None, _for_all_layers(pull, y)),
)


@functools.partial(jax.jit, static_argnames=("steps", "dtype"))
def _round(operator: _Operator, best: _Found, locked: Any, start: Any, *, steps: int, dtype: str) -> _Found:
    """Search the complement of the locked triplets from `start` and merge what is found."""
    count = best.sigma.shape[1]
    left, right = best.U * locked[:, None, :], best.V * locked[:, None, :]
    push = Partial(functools.partial(_deflated, dtype=dtype), operator.push, operator.scale, right, left)
    pull = Partial(functools.partial(_deflated, dtype=dtype), operator.pull, operator.scale, left, right)
    algorithm = decomp.bidiag(steps, materialize=False)
    result = jax.vmap(lambda x: algorithm(lambda z: _linear(push, pull, z), x))(_rejected(right, start))
    alphas, inner = result.J_small
    tall = result.Q_tall[1]
    last = jnp.sqrt(jnp.sum(result.residual**2, axis=1, keepdims=True))
    betas = jnp.concatenate([inner, last], axis=1)

    eps = float(jnp.finfo(dtype).eps)
    width = start.shape[1]
    # Past a breakdown matfree's vectors are no longer orthogonal and its entries grow without bound, so
    # what is negligible is judged by the entries before; the floor is below ||W||, by the scaling.
    before = jnp.maximum(jax.lax.cummax(alphas, axis=1), jnp.maximum(best.sigma[:, :1], 0.25 / math.sqrt(width)))
    before = jnp.maximum(before, jax.lax.cummax(jnp.pad(betas, ((0, 0), (1, 0)))[:, :-1], axis=1))
    negligible = 4 * eps * math.sqrt(width) * before
    # comparisons are False for the NaN that a breakdown leaves: a direction counts up to the first one
    continued = (alphas > negligible) & (betas > negligible)
    valid = jnp.concatenate([jnp.isfinite(tall[:, :1]).all(axis=2), continued[:, :-1]], axis=1)
    valid = jnp.cumprod(valid, axis=1).astype(bool)
    tall = jnp.where(valid[:, :, None], tall, 0.0)
    diagonal, above = jnp.where(valid, alphas, 0.0), jnp.where(valid[:, 1:], inner, 0.0)
    small = jax.vmap(lambda a, b: jnp.diag(a) + jnp.diag(b, 1))(diagonal, above)
    ritz = jnp.linalg.svd(small)[2][:, : min(count, steps)]
    fresh = jnp.einsum("lqk,lkd->ldq", ritz, tall)
    found = _rayleigh_ritz(operator, jnp.concatenate([right, fresh], axis=2), fresh[:, :, 0], left, right, dtype=dtype)
    return dataclasses.replace(found, invariant=~continued.all(axis=1))


@functools.partial(jax.jit, static_argnames="dtype")
def _whole_space(operator: _Operator, best: _Found, *, dtype: str) -> _Found:
    """Decompose on the whole space, which is the Krylov space of D steps."""
    depth, width, count = best.V.shape
    eye = jnp.eye(width, dtype=best.V.dtype)
    one = lambda x: _product(operator.push, operator.scale, jnp.broadcast_to(x, (depth, width)), dtype=dtype)
    rows = jax.lax.map(one, eye, batch_size=64)  # (D, L, D), row j being W e_j
    basis = jnp.swapaxes(jnp.linalg.svd(jnp.transpose(rows, (1, 2, 0)), full_matrices=False)[2][:, :count], 1, 2)
    empty = jnp.zeros_like(basis)
    return _rayleigh_ritz(operator, basis, empty[:, :, 0], empty, empty, dtype=dtype)


def _rayleigh_ritz(operator: _Operator, columns: Any, first: Any, left: Any, right: Any, *, dtype: str) -> _Found:
    """Take the leading triplets within the span of (L, D, q) columns, and look at their residuals.

    `first` (L, D) is the leading new direction, one of the columns, or zero; left and right (L, D, p) are
    what was deflated when it was found, p being the number of triplets to return.
    """
    count = right.shape[2]
    # Columns are of unit length, or zero where there is nothing (yet). QR completes the zero ones to an
    # orthonormal basis; these completions are no trial directions: half of a tied pair would not settle.
    order = jnp.argsort(-jnp.sum(columns**2, axis=1), axis=1)
    basis, triangle = jnp.linalg.qr(jnp.take_along_axis(columns, order[:, None, :], axis=2))
    real = jnp.abs(jnp.diagonal(triangle, axis1=1, axis2=2)) > 0.5
    images = _product(operator.push, operator.scale, basis, dtype=dtype)
    image, triangle = jnp.linalg.qr(images * real[:, None, :])
    x, sigma, y = jnp.linalg.svd(triangle)
    turn = jnp.swapaxes(y, 1, 2)[:, :, :count]
    sigma, u, v = sigma[:, :count], (image @ x)[:, :, :count], basis @ turn

    tip = _rejected(left, jnp.einsum("ldq,leq,le->ld", images, basis, first))
    fresh = jnp.sqrt(jnp.sum(tip**2, axis=1))
    tip = tip / jnp.where(fresh > 0, fresh, 1.0)[:, None]
    both = _product(operator.pull, operator.scale, jnp.concatenate([u, tip[:, :, None]], axis=2), dtype=dtype)
    ahead, back = images @ turn - u * sigma[:, None, :], both[:, :, :-1] - v * sigma[:, None, :]
    fresh_back = _rejected(right, both[:, :, -1]) - fresh[:, None] * first
    return _Found(
        sigma=sigma,
        U=u,
        V=v,
        residual=jnp.sqrt(jnp.sum(ahead**2, axis=1) + jnp.sum(back**2, axis=1)),
        fresh=fresh,
        fresh_residual=jnp.sqrt(jnp.sum(fresh_back**2, axis=1)),
        invariant=jnp.ones_like(fresh, bool),
    )


def _nothing(depth: int, width: int, count: int, dtype: Any) -> _Found:
    """Start with no triplet: residuals are infinite, so nothing is deflated."""
    zeros = lambda *shape: jnp.zeros((depth, *shape), dtype)
    return _Found(
        sigma=zeros(count),
        U=zeros(width, count),
        V=zeros(width, count),
        residual=zeros(count) + jnp.inf,
        fresh=zeros(),
        fresh_residual=zeros(),
        invariant=jnp.zeros(depth, bool),
    )


def _where(choose: np.ndarray, yes: _Found, no: _Found) -> _Found:
    """Take layer by layer from one or the other."""
    pick = lambda a, b: jnp.where(choose.reshape(-1, *[1] * (a.ndim - 1)), a, b)
    return jax.tree.map(pick, yes, no)


def _finish(
    best: _Found, operator: _Operator, steps: np.ndarray, converged: np.ndarray, *, top: int, dtype: str
) -> KrylovTriplets:
    """Undo the scaling and return to the operator's precision."""
    sigma = best.sigma * operator.scale[:, None]
    padded = jnp.concatenate([sigma, jnp.zeros_like(sigma[:, :1])], axis=1)
    residual = best.residual[:, :top].max(axis=1) * operator.scale
    return KrylovTriplets(
        sigma=padded[:, : top + 1].astype(dtype),
        U=best.U[:, :, :top].astype(dtype),
        V=best.V[:, :, :top].astype(dtype),
        residual=residual.astype(dtype),
        steps=jnp.asarray(steps),
        converged=jnp.asarray(converged),
    )
