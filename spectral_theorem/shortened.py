r"""A chain on a short context on which every condition and bound is that of the real one.

Conditions and bounds look at an injection through few left vectors, :math:`y^\top G_k`, and through
:math:`\|G_k\|_F`. So rows for an orthonormal basis of these y, and one private direction that carries
the rest of the norm, stand for G_k exactly, except in :math:`R_\Sigma` itself (docs/theory/whisper.md).
"""

from typing import Any

import jax
import jax.numpy as jnp

from .scaled import norm
from .types import LayerChain, Triplets


def reading_vectors(propagators: Any, triplets: Triplets) -> Any:
    r"""Return orthonormal left vectors that span all that conditions and bounds apply to an injection.

    Parameters
    ----------
    propagators : (L, D, D). triplets : of the same chain, L >= 2.

    Returns
    -------
    (L-1, m+1, D) array
        For k = 1..L-1: an orthonormal basis of the span of :math:`V_{k+1}`, :math:`U_k` (the leading K) and all
        :math:`W_{k+1}^\top\cdots W_l^\top v_{l+1}`, l > k; then one unit vector across it. m = 2K+L-1, or m = D and no
        further vector where that is the whole space.

    Notes
    -----
    O(L^2 D^2) work. The spans are those that `row_exact` and `top_k` of `bounds` need; `psi`, gamma and the
    coherence direction need :math:`v_{k+1}` only.

    References
    ----------
    docs/theory/whisper.md#reading-an-injection.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import spectral_theorem as st
    >>> chain = st.LayerChain(jnp.stack([jnp.diag(jnp.arange(1.0, 21.0))] * 3))
    >>> reading_vectors(chain.propagators, st.decompose(chain)).shape
    (2, 7, 20)
    """
    w = propagators[1:]
    n, width = w.shape[:2]
    top = triplets.V.shape[-1]
    if 2 * top + n >= width:
        return jnp.broadcast_to(jnp.eye(width, dtype=w.dtype), (n, width, width))
    v = triplets.v[1:]
    place = jnp.arange(n)

    def back(rows: Any, layer: Any) -> tuple[Any, Any]:
        i, w_i = layer
        # v_{i+1} joins, then all go through layer i; unit length, since only the span counts
        rows = jnp.where((place == i + 1)[:, None], v, rows)
        rows = _unit(jnp.matmul(rows, w_i, precision="highest"))
        return rows, rows

    _, carried = jax.lax.scan(back, jnp.zeros_like(v), (place, w), reverse=True)
    before = jnp.concatenate([jnp.zeros_like(triplets.U[:1]), triplets.U[1:-1]])
    filler = jax.random.normal(jax.random.key(0), (n, 1, width), w.dtype)
    rows = jnp.concatenate([jnp.swapaxes(triplets.V[1:], 1, 2), jnp.swapaxes(before, 1, 2), carried, filler], axis=1)
    return jnp.swapaxes(jnp.linalg.qr(jnp.swapaxes(rows, 1, 2))[0], 1, 2)


def _unit(rows: Any) -> Any:
    size = norm(rows, axis=-1)[..., None]
    return rows / jnp.where(size > 0, size, 1.0)


def shortened(propagators: Any, left: Any, rows: Any, norms: Any) -> LayerChain:
    r"""Return the chain on a short context that stands for one whose injections are too large to write down.

    Parameters
    ----------
    propagators : (L, D, D).
    left : (L-1, m+1, D)  from `reading_vectors` (m+1 = m = D where that is the whole space).
    rows : (L-1, m, C)  :math:`y^\top G_k` for the first m of these, in any isometric coordinates.
    norms : (L,)  :math:`\|G_l\|_F`.

    Returns
    -------
    LayerChain
        Context size min((L-1)m, C) + L. Row norms, their inner products and :math:`\|G_l\|_F` are those given, so
        conditions, :math:`\Psi`, bounds and the coherence value carry over; :math:`R_\Sigma` and :math:`J_L` do not.

    Notes
    -----
    By QR, without squares. A norm that is smaller than its own rows (by rounding) leaves no remainder.
    """
    depth, width = propagators.shape[:2]
    n, m = rows.shape[:2]
    triangle = jnp.linalg.qr(rows.reshape(n * m, -1).T, mode="r")
    short = triangle.T.reshape(n, m, -1)
    rest = jnp.sqrt(jnp.clip(norms[:-1] ** 2 - jnp.sum(rows**2, axis=(1, 2)), 0.0))
    known = jnp.einsum("nmd,nmr->ndr", left[:, :m], short, precision="highest")
    private = jnp.zeros((depth, width, depth), rows.dtype)
    if left.shape[1] > m:
        private = private.at[jnp.arange(n), :, jnp.arange(n)].set(left[:, m] * rest[:, None])
    private = private.at[-1, 0, -1].set(norms[-1])
    injections = jnp.concatenate([jnp.pad(known, ((0, 1), (0, 0), (0, 0))), private], axis=2)
    return LayerChain(propagators, injections)
