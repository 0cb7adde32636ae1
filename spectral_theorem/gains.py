r"""Gains of whole chains at many tokens, matrix-free: norms of products of propagators, and of the context Jacobian.

.. math:: \|W_L\cdots W_{k+1}\|_2, \qquad \|J_L\|_2,\quad J_L = \sum_k (W_L\cdots W_{k+1}) G_k

Converged estimates with observed residuals, as cheap as the leading triplets of the layers themselves.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from .lanczos import Leading, leading_eigenpairs
from .types import container
from .whisper.rows import pull_row, push_rows
from .whisper.sensitivity import TokenFactors, pull, push

TOLERANCE = 1e-3  # of the residual of an eigenvalue; what the logarithm of its root is off by is half of that at most


@container
class LogNorms:
    """Hold logarithms of norms, nats.

    Attributes
    ----------
    value : NaN where the estimate did not converge; the true norm is no less, rounding apart.
    error : what the observed residual allows.
    """

    value: Any
    error: Any


def product_norms(factors: Sequence[TokenFactors], *, tolerance: float = TOLERANCE) -> LogNorms:
    r"""Return :math:`\log\|W_L\cdots W_{k+1}\|_2` for k = 0..L-1, at every token.

    Parameters
    ----------
    factors : of all blocks, from `token_factors`; T tokens.
    tolerance : residual to reach, relative to the squared norm.

    Returns
    -------
    LogNorms
        (T, L) each; entry i, from 0, is the product from layer i+1 on.

    Notes
    -----
    Lanczos on the Gram operators of all products at once: rows of all of them share every product with a kernel, and
    pass by the layers that are not theirs.

    References
    ----------
    docs/theory/rigour.md (what converged estimates are worth).

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model, token_factors
    >>> dims = Dims(width=8, mels=4, frames=10, vocabulary=6, positions=9, encoder_layers=1, encoder_heads=2,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=2, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> f = token_factors(model, jax.random.normal(jax.random.key(1), (10, 8), "float32"), [4, 1, 2], [0, 1, 2])
    >>> product_norms(f).value.shape, context_norms(f).value.shape
    ((3, 2), (3,))
    """
    tokens, depth = factors[0].state.shape[0], len(factors)
    found = _log_norms(Partial(_product_gramian, list(factors)), factors[0], depth * tokens, tolerance)
    return jax.tree.map(lambda x: x.reshape(tokens, depth), found)


def context_norms(factors: Sequence[TokenFactors], *, tolerance: float = TOLERANCE) -> LogNorms:
    r"""Return :math:`\log\|J_L\|_2`, the gain from the whole encoder output to the last state, at every token.

    Parameters
    ----------
    factors, tolerance : as in `product_norms`, of all blocks.

    Returns
    -------
    LogNorms
        (T,) each.

    Notes
    -----
    :math:`J_LJ_L^\top y` goes back through the blocks, keeps the row of each injection as heads' coefficients, and
    comes forward again; nothing of the context's size times D is formed.

    References
    ----------
    docs/theory/whisper.md (structured injection).
    """
    return _log_norms(Partial(_context_gramian, list(factors)), factors[0], factors[0].state.shape[0], tolerance)


def _log_norms(apply: Any, first: TokenFactors, count: int, tolerance: float) -> LogNorms:
    found = leading_eigenpairs(
        apply,
        count=count,
        width=first.width,
        dtype=first.state.dtype,
        key=jax.random.key(2),
        top=1,
        tolerance=tolerance,
    )
    return _in_logs(found)


@jax.jit
def _in_logs(found: Leading) -> LogNorms:
    value, residual = found.value[:, 0], found.residual[:, 0]
    good = found.converged & (value > 0)
    safe = jnp.where(good, value, 1.0)
    relative = jnp.clip(residual / safe, 0.0, 0.5)
    return LogNorms(
        value=jnp.where(good, 0.5 * jnp.log(safe), jnp.where(value == 0, -jnp.inf, jnp.nan)),
        error=jnp.where(good, -0.5 * jnp.log1p(-relative), jnp.inf),
    )


def _product_gramian(factors: list[TokenFactors], y: Any) -> Any:
    depth, (count, block, width) = len(factors), y.shape
    rows = y.reshape(count // depth, depth * block, width)
    product = jnp.repeat(jnp.arange(depth), block)[None, :, None]  # a row of product i meets layers i+1 to L
    for layer in reversed(range(depth)):
        rows = jnp.where(product <= layer, pull(factors[layer], rows), rows)
    for layer in range(depth):
        rows = jnp.where(product <= layer, push(factors[layer], rows), rows)
    return rows.reshape(y.shape)


def _context_gramian(factors: list[TokenFactors], y: Any) -> Any:
    rows: list[Any] = []
    for f in reversed(factors):
        rows.append((f, pull_row(f, y)))
        y = pull(f, y)
    total = jnp.zeros_like(y)
    for f in factors:
        total = push(f, total) + push_rows(f, rows)
    return total
