r"""Chains that keep the spectrum of every layer and lose how layers fit together: what chance would give.

A number of a trained network says something where it differs from the same number of these.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .types import LayerChain, one_chain, refuse


def rotated(key: Any, chain: LayerChain) -> LayerChain:
    r"""Turn every layer by two independent random rotations: singular values stay, directions are chance.

    .. math:: W_l \to Q_l W_l P_l,\qquad G_l \to Q_l G_l

    Parameters
    ----------
    key : PRNG key.
    chain : propagators (L, D, D), injections (L, D, C) or none.

    Returns
    -------
    LayerChain
        With the same :math:`\sigma_{i,l}`; :math:`u_l` and :math:`v_{l+1}` are independent and uniform, so that
        :math:`E\,\kappa^2=1/D`.

    Notes
    -----
    The identity of a residual layer is turned as well, so this null has no skip connection; `conjugated` keeps it.

    References
    ----------
    docs/guides/sensitivity.md#nulls. Haar measure by QR: F. Mezzadri, Notices of the AMS 54, 2007.

    Examples
    --------
    >>> chain = LayerChain(jnp.stack([jnp.diag(jnp.asarray([2.0, 1.0, 0.5]))] * 2))
    >>> turned = rotated(jax.random.key(0), chain)
    >>> bool(jnp.allclose(jnp.linalg.svd(turned.propagators)[1], jnp.asarray([2.0, 1.0, 0.5]), atol=1e-5))
    True
    """
    left, right = jax.random.split(key)
    q, p = _frames(left, chain), _frames(right, chain)
    return _with(chain, _product(_product(q, chain.propagators), p), _turned(q, chain.injections))


def conjugated(key: Any, chain: LayerChain) -> LayerChain:
    r"""Turn every layer's space by a rotation of its own: the layer stays the same map, its neighbours lose it.

    .. math:: W_l \to Q_l W_l Q_l^\top,\qquad G_l \to Q_l G_l

    Parameters
    ----------
    key : PRNG key.
    chain : as in `rotated`.

    Returns
    -------
    LayerChain
        With the same singular values, the same eigenvalues, and the same identity part: :math:`I+A` becomes
        :math:`I+QAQ^\top`.

    References
    ----------
    docs/guides/sensitivity.md#nulls.

    Examples
    --------
    >>> chain = LayerChain(jnp.stack([jnp.diag(jnp.asarray([2.0, 1.0, 0.5]))] * 2))
    >>> turned = conjugated(jax.random.key(0), chain)
    >>> bool(jnp.allclose(jnp.trace(turned.propagators, axis1=1, axis2=2), 3.5, atol=1e-5))
    True
    """
    q = _frames(key, chain)
    return _with(chain, _product(_product(q, chain.propagators), jnp.swapaxes(q, 1, 2)), _turned(q, chain.injections))


def shuffled(key: Any, chain: LayerChain) -> LayerChain:
    """Put the layers in another order, never the one they had.

    Parameters
    ----------
    key : PRNG key.
    chain : as in `rotated`, with two layers or more.

    Returns
    -------
    LayerChain

    Raises
    ------
    InputError
        For a single layer, which has no other order.

    Examples
    --------
    >>> chain = LayerChain(jnp.arange(3.0)[:, None, None] * jnp.eye(2))
    >>> sorted(shuffled(jax.random.key(0), chain).propagators[:, 0, 0].tolist())
    [0.0, 1.0, 2.0]
    """
    depth = one_chain(chain).depth
    if depth < 2:
        refuse("one layer to shuffle", "two layers or more", "a longer chain")
    order = jnp.arange(depth)
    drawn = jax.random.permutation(key, depth)
    # the one order that is no null is the old one: then all move up by one
    order = jnp.where(jnp.all(drawn == order), jnp.roll(order, 1), drawn)
    return _with(chain, chain.propagators[order], None if chain.injections is None else chain.injections[order])


NULLS: dict[str, Callable[[Any, LayerChain], LayerChain]] = {
    "rotated": rotated,
    "conjugated": conjugated,
    "shuffled": shuffled,
}


def _frames(key: Any, chain: LayerChain) -> Any:
    """Return a uniform random rotation or reflection per layer, (L, D, D)."""
    return jax.random.orthogonal(key, one_chain(chain).width, (chain.depth,), chain.dtype)


def _product(x: Any, y: Any) -> Any:
    return jnp.matmul(x, y, precision="highest")


def _turned(q: Any, injections: Any) -> Any:
    return None if injections is None else _product(q, injections)


def _with(chain: LayerChain, propagators: Any, injections: Any) -> LayerChain:
    return LayerChain(propagators, injections, chain.initial)
