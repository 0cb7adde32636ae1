r"""Leading eigenpairs of many positive semidefinite operators at once, by block Lanczos.

One application serves all operators together, so that where they share kernels (one decoder block at
many tokens) every step is a matrix product. The block has at least two columns from independent
random starts: a single start vector sees one direction of a tied pair, two see both.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from .types import container, refuse

_FIRST, _SEGMENT = 16, 4  # basis vectors before the first look, and between looks


@container
class Leading:
    r"""Hold converged estimates of the leading eigenpairs of N operators S, :math:`S x_i = \theta_i x_i`.

    Attributes
    ----------
    value : (N, top+1)  descending, at least 0; the last is an estimate of :math:`\theta_{top+1}` from below.
    vector : (N, top+1, D)  unit rows.
    residual : (N, top)  :math:`\|Sx_i-\theta_ix_i\|`, as the recurrence gives it.
    size : (N,) int  vectors in the Krylov basis; D means the whole space.
    converged : (N,) bool  the top residuals are within tolerance.
    """

    value: Any
    vector: Any
    residual: Any
    size: Any
    converged: Any


@container
class _Basis:
    """Hold the orthonormal rows so far, S within their span, and what leads out of it."""

    rows: Any  # (N, P, D), zero beyond `size`
    inner: Any  # (N, P, P)
    outward: Any  # (N, b, b), rows: S applied to the last block, in the block to come
    block: Any  # (N, b, D), the block to come
    peak: Any  # (N,), largest norm of S x met
    size: Any  # ()


def leading_eigenpairs(
    apply: Any,
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
    look: int = _FIRST,
) -> Leading:
    r"""Estimate the leading eigenpairs of N symmetric positive semidefinite operators at once.

    .. math:: S_n x_{i,n} = \theta_{i,n} x_{i,n}, \qquad \theta_{1,n} \ge \theta_{2,n} \ge \dots \ge 0

    Parameters
    ----------
    apply : function (N, b, D) -> (N, b, D), row j of entry n being :math:`S_n` times that row. Traceable;
        a `jax.tree_util.Partial` of one function compiles once for all arrays of the same shapes.
    count, width, dtype : N, D and float32 or float64.
    key : PRNG key of the random starts.
    top : number of eigenpairs.
    tolerance : residual to reach, relative to :math:`\theta_1`; default 64 eps.
    most : largest Krylov basis; default min(D, 192). What is not converged then is flagged.
    start : (N, m, D), optional
        First rows, for instance the vectors of the previous token; at least one more row is random.
    block : columns of the block, at least 2 (at least `top` finds ties among the top).
    look : vectors in the basis before the residuals are looked at; fewer pay where `start` is good. Below 4, also
        those between two looks.

    Returns
    -------
    Leading

    Raises
    ------
    InputError
        Sizes below 1, top outside 1..D, a tolerance below rounding, a block below 2, a start of another
        shape, or a dtype other than float32/float64.

    Notes
    -----
    Full orthogonalisation, twice per block. A direction in which the space cannot grow is replaced by a
    random one, so an invariant space does not end the search. For D at most 64, or a basis that would
    reach D, S is written down and decomposed instead. Looks at the residuals after `look` vectors and then
    after every 4; the basis doubles until all N are converged or `most` is reached.

    Eigenvalues of S below eps times the first are noise. The loop over basis sizes is Python; its parts
    are jitted, and with `most` below 96, twice the first basis, all of it is allotted at once and this is traceable.

    References
    ----------
    docs/theory/rigour.md (what such estimates are worth). G. Golub, R. Underwood, The block Lanczos method, 1977.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> d = jnp.stack([jnp.arange(1.0, 101.0), jnp.ones(100)])
    >>> found = leading_eigenpairs(lambda x: x * d[:, None], count=2, width=100, dtype=d.dtype, key=jax.random.key(0))
    >>> found.value.round(3).tolist(), found.converged.tolist()
    ([[100.0, 99.0, 98...], [1.0, 1.0, 1.0]], [True, True])
    """
    if count < 1 or width < 1:
        refuse(f"count={count}, width={width}", "both >= 1", "count=1, width=1")
    if not 1 <= top <= width:
        refuse(f"top={top}", f"1 <= top <= D = {width}", "top=1")
    dtype = jnp.dtype(dtype)
    if dtype not in (jnp.dtype("float32"), jnp.dtype("float64")):
        refuse(f"dtype {dtype}", "float32 or float64", "dtype='float32'")
    eps = float(jnp.finfo(dtype).eps)
    tolerance = 64 * eps if tolerance is None else tolerance
    if not tolerance >= 16 * eps:
        refuse(f"tolerance={tolerance}", f"at least {16 * eps:.1e}, rounding in {dtype}", f"tolerance={64 * eps:.1e}")
    if block < 2:
        refuse(f"block={block}", "block >= 2: one start vector sees one direction of a tied pair", "block=2")
    if start is not None and (start.ndim != 3 or start.shape[0] != count or start.shape[2] != width):
        refuse(f"start with shape {tuple(start.shape)}", f"(N, m, D) with N={count}, D={width}", "start=None")
    apply = apply if isinstance(apply, Partial) else Partial(apply)
    most = 192 if most is None else most
    block = max(block, 1 if start is None else start.shape[1] + 1)
    first, least = max(3 * _FIRST, 2 * (top + 1)), 2 * (top + 1)
    capacity = -(-(first if most >= 2 * first else max(most, least)) // block) * block
    if width <= 64 or capacity >= width:
        return _whole_space(apply, jnp.eye(width, dtype=dtype), count=count, top=top)
    basis = _begin(apply, key, start, count=count, width=width, block=block, capacity=capacity, dtype=dtype.name)
    while True:
        basis, found = _grow(apply, basis, key, tolerance, top=top, look=look)
        if 2 * capacity > most or bool(found.converged.all()):
            return found
        if 2 * capacity >= width:
            return _whole_space(apply, jnp.eye(width, dtype=dtype), count=count, top=top)
        capacity *= 2
        basis = _enlarged(basis, capacity=capacity)


def _dot(subscripts: str, x: Any, y: Any) -> Any:
    return jnp.einsum(subscripts, x, y, precision="highest")


def _length(x: Any) -> Any:
    """Return norms over the last axis; the squares of what is larger or smaller than its own square would be lost."""
    size = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    unit = x / jnp.where((size > 0) & jnp.isfinite(size), size, 1.0)
    return size[..., 0] * jnp.sqrt(jnp.sum(unit**2, axis=-1))


@functools.partial(jax.jit, static_argnames=("count", "top"))
def _whole_space(apply: Any, eye: Any, *, count: int, top: int) -> Leading:
    width = eye.shape[0]
    s = apply(jnp.broadcast_to(eye, (count, width, width)))
    s = 0.5 * (s + jnp.swapaxes(s, 1, 2))
    finite = jnp.isfinite(s).all(axis=(1, 2))
    values, vectors = jnp.linalg.eigh(jnp.where(finite[:, None, None], s, 0.0))
    values = jnp.where(finite[:, None], jnp.clip(values[:, ::-1], 0.0), jnp.nan)
    rows = jnp.swapaxes(vectors, 1, 2)[:, ::-1]
    kept = min(top + 1, width)
    residual = _length(_dot("nij,nkj->nki", s, rows[:, :top]) - values[:, :top, None] * rows[:, :top])
    pad = lambda x: jnp.concatenate([x, jnp.zeros_like(x[:, :1])], axis=1) if kept == top else x
    return Leading(
        value=pad(values[:, :kept]),
        vector=pad(rows[:, :kept]),
        residual=residual,
        size=jnp.full((count,), width),
        converged=finite,
    )


@functools.partial(jax.jit, static_argnames=("count", "width", "block", "capacity", "dtype"))
def _begin(
    apply: Any, key: Any, start: Any, *, count: int, width: int, block: int, capacity: int, dtype: str
) -> _Basis:
    rows = jax.random.normal(jax.random.fold_in(key, 0), (count, block, width), dtype)
    if start is not None:
        given = jnp.asarray(start, dtype)
        length = _length(given)[..., None]
        usable = jnp.isfinite(length) & (length > 0)
        given = jnp.where(usable, given / jnp.where(usable, length, 1.0), rows[:, : start.shape[1]])
        rows = rows.at[:, : start.shape[1]].set(given)
    zeros = functools.partial(jnp.zeros, dtype=dtype)
    nothing = zeros((count,))
    first, _ = _orthonormal(rows, nothing, jax.random.fold_in(key, 1))
    first, _ = _orthonormal(first, nothing, jax.random.fold_in(key, 2))
    return _Basis(
        rows=zeros((count, capacity, width)),
        inner=zeros((count, capacity, capacity)),
        outward=zeros((count, block, block)),
        block=first,
        peak=nothing,
        size=jnp.asarray(0, jnp.int32),
    )


@functools.partial(jax.jit, static_argnames="capacity")
def _enlarged(basis: _Basis, *, capacity: int) -> _Basis:
    more = capacity - basis.rows.shape[1]
    return dataclasses.replace(
        basis,
        rows=jnp.pad(basis.rows, ((0, 0), (0, more), (0, 0))),
        inner=jnp.pad(basis.inner, ((0, 0), (0, more), (0, more))),
    )


def _orthonormal(rows: Any, floor: Any, key: Any) -> tuple[Any, Any]:
    """Make b rows orthonormal one after the other; a row of at most `floor` becomes a random one.

    Returns the rows (N, b, D) and lower triangular coefficients (N, b, b), zero for what was replaced.
    """
    count, b, width = rows.shape
    done: list[Any] = []
    table: list[Any] = []
    for i in range(b):
        x, along = rows[:, i], []
        for q in done:
            share = jnp.sum(x * q, axis=1)
            along.append(share)
            x = x - share[:, None] * q
        length = _length(x)
        lost = ~(length > floor)

        def redraw(x: Any, i: int = i, lost: Any = lost) -> Any:
            fresh = jax.random.normal(jax.random.fold_in(key, i), (count, width), rows.dtype)
            for q in done:
                fresh = fresh - jnp.sum(fresh * q, axis=1)[:, None] * q
            return jnp.where(lost[:, None], fresh, x)

        x = jax.lax.cond(lost.any(), redraw, lambda x: x, x)
        done.append(x / jnp.maximum(_length(x), jnp.finfo(rows.dtype).tiny)[:, None])
        table.append(jnp.stack([*along, jnp.where(lost, 0.0, length), *[jnp.zeros_like(length)] * (b - i - 1)], axis=1))
    return jnp.stack(done, axis=1), jnp.stack(table, axis=1)


def _step(apply: Any, key: Any, basis: _Basis) -> _Basis:
    """Take the block to come into the basis, and find the next."""
    rows = jax.lax.dynamic_update_slice_in_dim(basis.rows, basis.block, basis.size, axis=1)
    key = jax.random.fold_in(key, basis.size)
    eps = float(jnp.finfo(rows.dtype).eps)
    images = apply(basis.block)
    peak = jnp.maximum(basis.peak, _length(images).max(axis=1))
    inside = _dot("nbd,npd->nbp", images, rows)
    rest = images - _dot("nbp,npd->nbd", inside, rows)
    fresh, first = _orthonormal(rest, 16 * eps * peak, key)
    again = _dot("nbd,npd->nbp", fresh, rows)
    fresh, second = _orthonormal(fresh - _dot("nbp,npd->nbd", again, rows), 0.0 * peak, key)
    inside = inside + _dot("nij,njp->nip", first, again)
    inner = jax.lax.dynamic_update_slice_in_dim(basis.inner, inside, basis.size, axis=1)
    inner = jax.lax.dynamic_update_slice_in_dim(inner, jnp.swapaxes(inside, 1, 2), basis.size, axis=2)
    return _Basis(
        rows=rows,
        inner=inner,
        outward=_dot("nij,njk->nik", first, second),
        block=fresh,
        peak=peak,
        size=basis.size + basis.block.shape[1],
    )


def _look(basis: _Basis, tolerance: Any, *, top: int) -> tuple[Any, Any, Any, Any]:
    """Return Ritz values and coordinates (N, top+1, P), residuals (N, top), and who is converged (N,)."""
    finite = jnp.isfinite(basis.inner).all(axis=(1, 2))
    # what is not in the basis yet goes below every eigenvalue, 0 included
    empty = jnp.diag((jnp.arange(basis.inner.shape[1]) >= basis.size).astype(basis.inner.dtype))
    inner = basis.inner - jnp.where(basis.peak > 0, basis.peak, 1.0)[:, None, None] * empty
    values, turns = jnp.linalg.eigh(jnp.where(finite[:, None, None], inner, 0.0))
    values, turns = values[:, ::-1][:, : top + 1], jnp.swapaxes(turns, 1, 2)[:, ::-1][:, : top + 1]
    b = basis.block.shape[1]
    last = jax.lax.dynamic_slice_in_dim(turns, basis.size - b, b, axis=2)
    residual = _length(_dot("nkb,nbc->nkc", last[:, :top], basis.outward))
    values = jnp.where(finite[:, None], jnp.clip(values, 0.0), jnp.nan)
    converged = (residual <= tolerance * values[:, :1]).all(axis=1)
    return values, turns, residual, converged


@functools.partial(jax.jit, static_argnames=("top", "look"))
def _grow(apply: Any, basis: _Basis, key: Any, tolerance: Any, *, top: int, look: int) -> tuple[_Basis, Leading]:
    """Extend until all are converged or the basis is full; then read off the leading pairs."""
    capacity, b = basis.rows.shape[1], basis.block.shape[1]
    step = functools.partial(_step, apply, key)

    def several(basis: _Basis, until: Any) -> _Basis:
        return jax.lax.while_loop(lambda now: now.size < until, step, basis)

    def more(state: Any) -> Any:
        basis, _ = state
        basis = several(basis, jnp.minimum(basis.size + -(-min(_SEGMENT, look) // b) * b, capacity))
        return basis, _look(basis, tolerance, top=top)[3].all()

    basis = several(basis, jnp.minimum(look, capacity))
    ready = _look(basis, tolerance, top=top)[3].all()
    basis, _ = jax.lax.while_loop(lambda s: ~s[1] & (s[0].size < capacity), more, (basis, ready))
    values, turns, residual, converged = _look(basis, tolerance, top=top)
    return basis, Leading(
        value=values,
        vector=_dot("nkp,npd->nkd", turns, basis.rows),
        residual=residual,
        size=jnp.full(values.shape[:1], basis.size),
        converged=converged,
    )
