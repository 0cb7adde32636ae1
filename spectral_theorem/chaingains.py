r"""How large products of layers are, beside what a constant or a layerwise exponent would have them be."""

from typing import Any

import jax
import jax.numpy as jnp

from .largest import largest_singular_value
from .scaled import Scaled, log_of, scaled
from .triplets import decompose
from .types import LayerChain, Triplets, container


@container
class Gains:
    r"""Hold the scalars of a chain's layers and the growth of its products; all logarithms in nats.

    Attributes
    ----------
    sigma1, sigma2, xi : (L,)  of every layer.
    kappa_abs, lam : (L-1,)  :math:`|\kappa_l|` and :math:`\lambda_l=\log\sigma_{1,l}|\kappa_l|`.
    sigma_error, xi_error : (L,), kappa_error, lam_error : (L-1,)  error bars of these.
    resolved : (L,) bool  whether the leading vectors are known.
    log_norm : (L,)  :math:`\log\|W_L\cdots W_l\|_2` for l = 1..L.
    log_dominant : (L,)  what the dominant path alone predicts, :math:`\sum_{j=l}^{L-1}\lambda_j+\log\sigma_{1,L}`.
    log_aligned : (L,)  what perfect alignment would give, :math:`\sum_{j\ge l}\log\sigma_{1,j}`; an upper bound.
    u_last : (D,)  :math:`u_L`, along which the theorem puts the output.
    """

    sigma1: Any
    sigma2: Any
    xi: Any
    kappa_abs: Any
    lam: Any
    sigma_error: Any
    xi_error: Any
    kappa_error: Any
    lam_error: Any
    resolved: Any
    log_norm: Any
    log_dominant: Any
    log_aligned: Any
    u_last: Any


@jax.jit
def chain_gains(chain: LayerChain) -> Gains:
    r"""Return the scalars of every layer beside the size of every product of layers up to the last.

    Parameters
    ----------
    chain : propagators (L, D, D).

    Returns
    -------
    Gains

    Notes
    -----
    2 L dense SVDs. Products are kept at unit size with a logarithm, so depth does not overflow.

    References
    ----------
    docs/guides/sensitivity.md; the dominant path: docs/theory/statement.md.

    Examples
    --------
    >>> found = chain_gains(LayerChain(jnp.stack([jnp.diag(jnp.asarray([2.0, 1.0]))] * 3)))
    >>> [round(float(x), 4) for x in found.log_norm / jnp.log(2.0)]
    [3.0, 2.0, 1.0]
    >>> bool(jnp.allclose(found.log_norm, found.log_dominant))
    True
    """
    t: Triplets = decompose(chain)
    log_sigma = log_of(t.sigma[:, 0])
    after = lambda x: jnp.flip(jnp.cumsum(jnp.flip(x)))
    return Gains(
        sigma1=t.sigma[:, 0],
        sigma2=t.sigma[:, 1],
        xi=t.xi,
        kappa_abs=jnp.abs(t.kappa),
        lam=t.lam,
        sigma_error=t.sigma_error,
        xi_error=t.xi_error,
        kappa_error=t.kappa_error,
        lam_error=t.lam_error,
        resolved=t.resolved,
        log_norm=log_products(chain),
        log_dominant=after(jnp.append(t.lam, log_sigma[-1])),
        log_aligned=after(log_sigma),
        u_last=t.u[-1],
    )


def log_products(chain: Any, *, one_by_one: bool = False) -> Any:
    r"""Return :math:`\log\|W_L\cdots W_l\|_2` for l = 1..L.

    Parameters
    ----------
    chain : propagators (L, D, D).
    one_by_one : enter LAPACK matrix by matrix, see `triplets.svd_triplets`.

    Returns
    -------
    (L,)
    """

    def back(product: Scaled, w: Any) -> tuple[Scaled, Any]:
        product = scaled(product.value @ w, product.log)
        return product, product

    eye = scaled(jnp.eye(chain.width, dtype=chain.dtype))
    _, products = jax.lax.scan(back, eye, chain.propagators, reverse=True)
    # all values in one batched call: inside the scan LAPACK would be entered layer by layer with a fresh workspace
    return log_of(largest_singular_value(products.value, one_by_one=one_by_one)) + products.log
