r"""The coherence direction psi0: an exact convex problem, its solution and its certificate.

Hypothesis H3(b, c) asks for a unit psi with <g_k, psi> >= 1/sqrt(2) for every signed, normalised
row g_k. The best such psi points at the point of conv{g_k} nearest to 0, so the question is a
minimum-norm-point problem. It is solved by an active-set method (Wolfe's) whose inner step is a
QR least-squares solve on rows, never a Cholesky factor of their (often singular) Gram matrix.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .types import container, refuse


@container
class Coherence:
    """Hold the solution of max over unit psi of min_k <g_k, psi>.

    Attributes
    ----------
    psi0 : (C,)  unit vector; zeros when 0 lies in conv{g_k} (then no direction exists).
    value : ()  min_k <g_k, psi0>, a lower bound of the optimum (primal certificate); 0 without psi0.
    upper : ()  ||sum_k w_k g_k||, an upper bound of the optimum (dual certificate).
    gap : ()  upper - value.
    weights : (n,)  the convex combination w; 0 for rows that left.
    """

    psi0: Float[Array, "*batch C"]
    value: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    gap: Float[Array, "*batch"]
    weights: Float[Array, "*batch n"]


def coherence_direction(rows: Any) -> Coherence:
    r"""Find the direction that all rows agree on, with a duality gap as certificate.

    .. math:: \max_{\|\psi\|=1}\min_k \langle g_k,\psi\rangle = \min_{w\ge0,\,\sum w=1}\Big\|\sum_k w_k g_k\Big\|
       \quad(\text{if } 0\notin\mathrm{conv})

    Parameters
    ----------
    rows : (n, C)
        Signed rows, :math:`\mathrm{sign}(A_{L,k})\,v_{k+1}^\top G_k`; normalised inside. Zero rows leave.

    Returns
    -------
    Coherence

    Raises
    ------
    InputError
        If `rows` is not a non-empty (n, C) floating-point array.

    Notes
    -----
    jit- and vmap-able. Each iteration costs one QR of size (m+d+1, m), d = min(n, C), m = min(n, d+1).
    `value` has the gradient of the optimum (Danskin); the weights are constants under differentiation.

    References
    ----------
    docs/theory/coherence.md. P. Wolfe, Finding the nearest point in a polytope, 1976.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> found = coherence_direction(jnp.asarray([[1.0, 0.0], [0.0, 2.0]]))
    >>> [round(float(x), 6) for x in (found.value, found.gap, *found.psi0)]
    [0.707107, 0.0, 0.707107, 0.707107]
    """
    rows = jnp.asarray(rows)
    if rows.ndim != 2 or 0 in rows.shape or not jnp.issubdtype(rows.dtype, jnp.floating):
        refuse(
            f"rows of shape {rows.shape}, {rows.dtype}",
            "a non-empty floating-point (n, C)",
            "rows[None, :] for one row",
        )
    return _solve(rows)


@jax.jit
def _solve(rows: Any) -> Coherence:
    """Normalise, reduce to min(n, C) coordinates, solve, certify."""
    square = jnp.sum(rows**2, axis=1)
    present = ~(square == 0)  # a NaN row stays: it must spoil the answer, not leave
    unit = jnp.where(present[:, None], rows / jnp.sqrt(jnp.where(present, square, 1.0))[:, None], 0.0)
    fixed = jax.lax.stop_gradient(unit)
    n, size = rows.shape
    points = jnp.linalg.qr(fixed.T, mode="r").T if size > n else fixed
    weights = _nearest_point(points, present)
    nearest = weights @ fixed
    upper = jnp.sqrt(jnp.sum(nearest**2))
    psi = nearest / jnp.where(upper > 0, upper, 1.0)
    value = jnp.min(jnp.where(present, fixed @ psi, jnp.inf), initial=jnp.inf)
    exists = (value > 0) & (upper > 0)
    broken = jnp.isnan(upper)
    value = jnp.where(exists, value, jnp.where(broken, jnp.nan, 0.0))
    upper = jnp.maximum(upper, value)
    psi = jnp.where(exists, psi, 0.0)
    slope = weights @ (unit @ psi)  # gradient of the optimum, value of the constant
    value = value + jnp.where(exists, slope - jax.lax.stop_gradient(slope), 0.0)
    return Coherence(psi0=psi, value=value, upper=upper, gap=upper - value, weights=weights)


def _nearest_point(points: Any, present: Any) -> Any:
    """Return the convex weights (n,) of the point of conv(points) nearest to 0; absent rows get 0.

    State: up to m active rows (`slot`, `used`), their weights. A pass solves for the minimiser of
    the affine hull of the active rows; if it lies inside their hull it is accepted and the most
    violating row joins, else the step stops at the boundary and the row that hit it leaves.
    """
    n, dim = points.shape
    m = min(n, dim + 1)
    dtype = points.dtype
    eps = float(jnp.finfo(dtype).eps)

    def system(slot: Any, used: Any) -> Any:
        columns = jnp.concatenate([points[slot].T, jnp.ones((1, m), dtype)], axis=0) * used
        return jnp.concatenate([columns, jnp.diag(1.0 - used)], axis=0)  # idle slots: private unit columns

    def affine_minimiser(slot: Any, used: Any) -> Any:
        q, r = jnp.linalg.qr(system(slot, used))
        w = jax.scipy.linalg.solve_triangular(r, q[dim]) * used
        return w / jnp.sum(w)

    def advance(state: Any) -> Any:
        slot, used, w, count, _ = state
        target = affine_minimiser(slot, used)
        inside = jnp.all(target >= -eps) | jnp.any(jnp.isnan(target))
        # towards the minimiser, at most to the boundary of the simplex
        falling = (used > 0) & (target < 0)
        ratio = jnp.where(falling, w / jnp.where(falling, w - target, 1.0), jnp.inf)
        length = jnp.clip(jnp.min(ratio), 0.0, 1.0)
        stepped = jnp.where(inside, jnp.clip(target, 0.0), jnp.clip(w + length * (target - w), 0.0))
        leaves = ~inside & ((jnp.arange(m) == jnp.argmin(ratio)) | (stepped <= eps))
        used_next = jnp.where(leaves, 0.0, used)
        w = stepped * used_next
        w = w / jnp.sum(w)
        x = w @ points[slot]
        size = jnp.sqrt(jnp.sum(x**2))
        height = jnp.where(present, points @ x, jnp.inf)
        worst = jnp.argmin(height)
        optimal = size**2 - height[worst] <= 8 * eps * size
        known = jnp.any((slot == worst) & (used_next > 0))
        free = jnp.argmin(used_next)
        full = jnp.all(used_next > 0)
        done = inside & (optimal | known | full | (size <= 8 * eps)) | jnp.isnan(size)
        join = inside & ~done
        slot = jnp.where(join, slot.at[free].set(worst.astype(jnp.int32)), slot)
        used_next = jnp.where(join, used_next.at[free].set(1.0), used_next)
        return slot, used_next, w, count + 1, done

    start = jnp.argmax(present)
    slot = jnp.zeros((m,), jnp.int32).at[0].set(start.astype(jnp.int32))
    one = jnp.zeros((m,), dtype).at[0].set(1.0)
    state = (slot, one, one, jnp.asarray(0), ~jnp.any(present))
    if n == m:
        # most rows are active as a rule: where they are independent, start from all instead of adding one by one
        r = jnp.linalg.qr(system(jnp.arange(n), present.astype(dtype)), mode="r")
        sizes = jnp.abs(jnp.diagonal(r))
        independent = jnp.any(present) & (jnp.min(sizes) > math.sqrt(eps) * jnp.max(sizes))
        share = present / jnp.maximum(jnp.sum(present), 1).astype(dtype)
        everyone = (jnp.arange(n, dtype=jnp.int32), present.astype(dtype), share, state[3], state[4])
        state = jax.tree.map(lambda a, b: jnp.where(independent, a, b), everyone, state)
    limit = 20 * (m + 5)
    slot, used, w, _, _ = jax.lax.while_loop(lambda s: ~s[4] & (s[3] < limit), advance, state)
    return jnp.zeros((n,), dtype).at[slot].add(w * used) * present
