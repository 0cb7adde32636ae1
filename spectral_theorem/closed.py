r"""A small chain that stands for one whose state and context are both too large to write down.

Conditions and bounds read a chain through few left vectors. Spaces of vectors that hold all that is read,
and that every :math:`W^\top` carries into each other, give matrices of a few dozen rows on which nothing
is lost but :math:`R_\Sigma` and the norms of products (docs/theory/whisper.md#a-small-chain-for-a-wide-one).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from .scaled import norm
from .types import LayerChain, Triplets, container


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class StateSize:
    """Hold a number where arrays are expected, so that it shapes what is compiled."""

    number: int


@container
class StandIn(LayerChain):
    """Hold a small chain that stands for a wide one, with the size of the wide state.

    Parameters
    ----------
    propagators, injections, initial : as in `LayerChain`, of the small chain.
    wide : size of the state that it stands for, in which rounding is counted.
    """

    wide: StateSize = StateSize(1)

    @property
    def state_size(self) -> int:
        """Size of the wide state."""
        return self.wide.number


@dataclasses.dataclass(frozen=True)
class ReadingSpaces:
    r"""Hold orthonormal bases Q_i of what is read before layer i, i = 2..L+1, and how layers act on them.

    Attributes
    ----------
    bases : L arrays (N, d_i); entry k-1 holds :math:`Q_{k+1}`, the vectors that meet :math:`G_k` and :math:`u_k`.
    maps : L-1 arrays (d_{i+1}, d_i), :math:`Q_{i+1}^\top W_iQ_i` for i = 2..L.
    """

    bases: tuple[Any, ...]
    maps: tuple[Any, ...]


def reading_spaces(pull: Callable[[int, Any], Any], triplets: Triplets) -> ReadingSpaces:
    r"""Return spaces that hold all that conditions and bounds read of a chain, from the last layer to the first.

    .. math:: R_{L+1} = \operatorname{span}U_L, \qquad
       R_i = \operatorname{span}\{V_i,\ U_{i-1},\ W_i^\top\cdots W_l^\top v_{l+1}\ (l \ge i)\}

    Parameters
    ----------
    pull : function (l, y (b, N)) -> y W, rows through layer l, counted from 0.
    triplets : of the chain, with its leading K.

    Returns
    -------
    ReadingSpaces
        :math:`d_i = \min(2K+L-i,\ N)`.

    Notes
    -----
    :math:`d_{i+1}` products with :math:`W_i^\top` per layer and one QR of (N, d_i); holds all bases. What is carried on
    is brought to unit length at every layer: only spans count, and nothing overflows.

    References
    ----------
    docs/theory/whisper.md#a-small-chain-for-a-wide-one.

    Examples
    --------
    >>> import spectral_theorem as st
    >>> chain = st.LayerChain(jnp.stack([jnp.diag(jnp.arange(1.0, 21.0))] * 3))
    >>> found = reading_spaces(lambda l, y: y @ chain.propagators[l], st.decompose(chain))
    >>> [q.shape for q in found.bases], [w.shape for w in found.maps]
    ([(20, 5), (20, 4), (20, 2)], [(4, 5), (2, 4)])
    """
    depth = triplets.u.shape[0]
    left, right = jnp.asarray(triplets.U), jnp.asarray(triplets.V)
    above = _basis(left[-1])
    carried = jnp.zeros((above.shape[1], 0), left.dtype)  # coordinates of what goes on through the next layer
    bases, maps = [above], []
    for layer in range(depth - 1, 0, -1):
        pulled = pull(layer, above.T)
        rows = _unit(jnp.matmul(carried.T, pulled, precision="highest"))
        here = _basis(jnp.concatenate([right[layer], left[layer - 1], rows.T], axis=1))
        maps.append(jnp.matmul(pulled, here, precision="highest"))
        going_on = jnp.concatenate([right[layer, :, :1], rows.T], axis=1)
        carried = jnp.linalg.qr(jnp.matmul(here.T, going_on, precision="highest"))[0]
        bases.append(here)
        above = here
    return ReadingSpaces(tuple(reversed(bases)), tuple(reversed(maps)))


def _basis(columns: Any) -> Any:
    """Return orthonormal columns that span the given ones; all of the space where these are as many."""
    size, count = columns.shape
    return jnp.eye(size, dtype=columns.dtype) if count >= size else jnp.linalg.qr(columns)[0]


def _unit(rows: Any) -> Any:
    length = norm(rows, axis=-1)[..., None]
    return rows / jnp.where(length > 0, length, 1.0)


def isometric_rows(parts: Any) -> Any:
    r"""Return rows in few coordinates that keep all their inner products.

    Parameters
    ----------
    parts : iterable of (m, c)  the columns of one (m, C) array, some at a time.

    Returns
    -------
    (m, min(m, C)) array

    Notes
    -----
    By QR, without squares, so small rows beside large ones keep their digits. Holds one part and m^2 numbers.

    Examples
    --------
    >>> rows = jax.random.normal(jax.random.key(0), (3, 100))
    >>> short = isometric_rows([rows[:, :60], rows[:, 60:]])
    >>> short.shape, bool(jnp.allclose(short @ short.T, rows @ rows.T))
    ((3, 3), True)
    """
    triangle = None
    for part in parts:
        tall = part.T if triangle is None else jnp.concatenate([triangle, part.T])
        triangle = jnp.linalg.qr(tall, mode="r")
    if triangle is None:
        raise ValueError("got no parts; expected at least one")
    return triangle.T


def stand_in(spaces: ReadingSpaces, rows: Sequence[Any], norms: Any, triplets: Triplets) -> tuple[StandIn, Triplets]:
    r"""Return the small chain with its triplets, in the coordinates of the reading spaces.

    Parameters
    ----------
    spaces : from `reading_spaces`.
    rows : L-1 entries, :math:`Q_{k+1}^\top G_k` as (d, r) in isometric coordinates; None where :math:`G_k = 0`.
    norms : (L,)  exact :math:`\|G_l\|_F`.
    triplets : of the wide chain.

    Returns
    -------
    chain : StandIn
        State of :math:`\max_i d_i` numbers, and one more for what is not read.
    triplets : Triplets
        Vectors in coordinates; every number and every error bar is that of the wide chain.

    Notes
    -----
    What G_k has outside the reading space goes into a direction of its own, of the state and of the context: only its
    norm counts. The first propagator meets no injection and is left zero. A norm that is smaller than its own rows (by
    rounding) leaves no remainder.
    """
    depth, size = triplets.u.shape
    dtype = jnp.asarray(triplets.u).dtype
    bases = spaces.bases
    small = max(b.shape[1] + (b.shape[1] < size) for b in bases)
    short = next((r.shape[1] for r in rows if r is not None), 0)
    propagators = jnp.zeros((depth, small, small), dtype)
    for layer, w in enumerate(spaces.maps, 1):
        propagators = propagators.at[layer, : w.shape[0], : w.shape[1]].set(w)
    injections = jnp.zeros((depth, small, short + depth), dtype).at[-1, 0, -1].set(norms[-1])
    for k, known in enumerate(rows):
        if known is None:
            continue
        injections = injections.at[k, : known.shape[0], :short].set(known)
        if bases[k].shape[1] < size:
            rest = jnp.sqrt(jnp.clip(norms[k] ** 2 - jnp.sum(known**2), 0.0))
            injections = injections.at[k, small - 1, short + k].set(rest)
    place = lambda basis, x: jnp.pad(jnp.matmul(basis.T, x, precision="highest"), ((0, small - basis.shape[1]), (0, 0)))
    left = jnp.stack([place(basis, x) for basis, x in zip(bases, jnp.asarray(triplets.U), strict=True)])
    # the first layer's input is read by nobody
    right = [place(basis, x) for basis, x in zip(bases, jnp.asarray(triplets.V[1:]), strict=False)]
    right = jnp.stack([jnp.zeros_like(left[0]), *right])
    moved = dataclasses.replace(triplets, U=left, V=right, u=left[:, :, 0], v=right[:, :, 0])
    return StandIn(propagators, injections, None, StateSize(size)), moved
