r"""Check the theorem at many decoder tokens: certified triplets, injections that are never formed, all bounds.

A sweep judges token by token, one compiled function for all, because the proof and the residual need dense propagators
anyway. `layer_triplets` and `injection_triplets` need none: there rows of all tokens share every product with a kernel.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from .lanczos import Leading, SingularTriplets, leading_eigenpairs, singular_triplets
from .tokenwise import Granularity, chain_layers, judge_token, probe_rows, value_grams
from .triplets import assemble
from .types import Thresholds, container, refuse
from .verification import Verification
from .whisper.rows import injection_gramian
from .whisper.sensitivity import Part, TokenFactors, pull, push, shared_and_own, with_rows_in_mind

BUCKET = 4  # tokens are padded to a multiple, so that few shapes are compiled


@container
class Sweep:
    r"""Hold what was found at T tokens of one chain of L layers; every array has a leading axis T.

    Attributes
    ----------
    verification : `Verification` of each token.
    injection_sigma : (T, L, 2)  leading singular values of :math:`G_l`, NaN for layers without context.
    injection_u : (T, L, D)  leading left singular vector of :math:`G_l`.
    injection_residual : (T, L)  observed residual of both triplets, absolute.
    injection_norm : (T, L)  exact :math:`\|G_l\|_F`.
    log_residual_spectral : (T,)  :math:`\log\|R_\Sigma\|_2`, a converged estimate.
    log_residual_error : (T,)  log of the half-width of the interval of :math:`\|R_\Sigma\|_F`, cancellation included.
    basis : (T, L) int  vectors in the Krylov bases of the triplets.
    certificate : (T, L)  proven upper bound of :math:`\|W-\sum_{i\le2}\sigma_iu_iv_i^\top\|`, inf where none was found.
    """

    verification: Verification
    injection_sigma: Any
    injection_u: Any
    injection_residual: Any
    injection_norm: Any
    log_residual_spectral: Any
    log_residual_error: Any
    basis: Any
    certificate: Any


def sweep_tokens(
    factors: Sequence[TokenFactors],
    granularity: Granularity = "block",
    thresholds: Thresholds | None = None,
    *,
    tolerance: float | None = None,
    start: Any = None,
    count: int | None = None,
    directions: Any = None,
) -> Sweep:
    r"""Check the theorem at the T tokens of these factors.

    Parameters
    ----------
    factors : one `TokenFactors` per decoder block, from `token_factors`.
    granularity : "block", or "sub-block" for self-attention, cross-attention and MLP apart.
    thresholds : as in `verify`.
    tolerance : residual of the triplets to reach, relative to :math:`\sigma_1`; default 64 eps.
    start : (L, D), optional
        First guesses of the leading right singular vectors, such as those of the previous token.
    count : tokens to judge, the first ones; the rest only fill a shape. Default all.
    directions : (r, F, D), optional
        Directions of the encoder output, from `context_directions`, that stand for the context. Default: all of it.

    Returns
    -------
    Sweep
        Of `count` tokens.

    Raises
    ------
    InputError
        A tolerance below rounding.

    Notes
    -----
    Per layer and token 16 D^3 operations for the dense W and 2 D^3 + D^3/3 for its certificate, beside which a short
    Lanczos on it is cheap (a spectrum too flat for that goes through `layer_triplets`); 2 F D^2 per pair of layers for
    :math:`\|R_\Sigma\|_F`. No array of the size of G.

    References
    ----------
    docs/theory/whisper.md, docs/theory/rigour.md#certified-krylov-triplets.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model, token_factors
    >>> dims = Dims(width=8, mels=4, frames=10, vocabulary=6, positions=9, encoder_layers=1, encoder_heads=2,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=2, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> context = jax.random.normal(jax.random.key(1), (10, 8), "float32")
    >>> found = sweep_tokens(token_factors(model, context, [4, 1, 2], [0, 1, 2]))
    >>> found.verification.triplets.sigma.shape, bool(found.verification.triplets.certified.all())
    ((3, 2, 2), True)
    """
    layers = chain_layers(len(factors), granularity)
    tokens = factors[0].state.shape[0]
    judged = count or tokens
    dtype = factors[0].state.dtype
    limit = _checked_tolerance(tolerance, dtype)
    split = [shared_and_own(f) for f in factors]
    shared, own = [one for one, _ in split], [one for _, one in split]
    values = value_grams(shared, layers) if directions is None else None
    limits = Thresholds() if thresholds is None else thresholds
    probes = probe_rows(factors, layers) if directions is None else None
    judge_one = lambda t, triplets: judge_token(
        shared, own, t, triplets, limit, start, probes, values, directions, layers, limits
    )
    found = [judge_one(t, None) for t in range(judged)]
    slow = [t for t, one in enumerate(found) if not bool(one["converged"].all())]
    if slow:  # spectra so flat that the short basis was not enough: once more, as far as it takes
        longer = [layer_triplets(factors[layer.block], layer.part, tolerance=tolerance) for layer in layers]
        for t in slow:
            found[t] = judge_one(t, jax.tree.map(lambda *leaves, t=t: jnp.stack(leaves)[:, t], *longer))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)
    del stacked["converged"]
    return Sweep(**stacked)


def _checked_tolerance(tolerance: float | None, dtype: Any) -> float:
    eps = float(jnp.finfo(dtype).eps)
    if tolerance is not None and not tolerance >= 16 * eps:
        refuse(f"tolerance={tolerance}", f"at least {16 * eps:.1e}, rounding in {dtype}", f"tolerance={64 * eps:.1e}")
    return 64 * eps if tolerance is None else tolerance


def layer_triplets(
    f: TokenFactors, part: Part = "block", *, top: int = 2, tolerance: float | None = None, **more: Any
) -> SingularTriplets:
    """Return the leading singular triplets of one layer's propagator at all tokens, matrix-free.

    Parameters
    ----------
    f : factors of a block. part : of it. top, tolerance : as in `singular_triplets`. more : other options of it.

    Returns
    -------
    SingularTriplets
        With leading axis T.
    """
    tokens, width = f.state.shape
    f = with_rows_in_mind(f)
    return singular_triplets(
        _maps(part)[0](f),
        _maps(part)[1](f),
        count=tokens,
        width=width,
        dtype=f.state.dtype,
        key=jax.random.key(0),
        top=min(top, width),
        tolerance=tolerance,
        **more,
    )


@jax.jit
def layer_quantities(found: Sequence[SingularTriplets]) -> dict[str, Any]:
    """Return what the triplets of neighbouring layers say at every token, with errors.

    Parameters
    ----------
    found : of every layer, from `layer_triplets`, T tokens each.

    Returns
    -------
    dict
        (T, L) each: `sigma1`, `sigma2`, `xi`, `kappa_abs`, `lam` and their `_error`, `resolved`. The last layer has no
        coupling: NaN. What did not converge has an infinite error.
    """

    def one(found: Any) -> dict[str, Any]:
        residual = jnp.where(found.converged, found.residual, jnp.inf)
        t = assemble(
            found.sigma, found.sigma, found.U, found.V, residual=residual, certified=jnp.zeros_like(found.converged)
        )
        last = lambda x: jnp.concatenate([x, jnp.full((1,), jnp.nan, x.dtype)])
        return {
            "sigma1": t.sigma[:, 0],
            "sigma1_error": t.sigma_error,
            "sigma2": t.sigma[:, 1],
            "sigma2_error": t.sigma2_error,
            "xi": t.xi,
            "xi_error": t.xi_error,
            "kappa_abs": last(jnp.abs(t.kappa)),
            "kappa_abs_error": last(t.kappa_error),
            "lam": last(t.lam),
            "lam_error": last(t.lam_error),
            "resolved": t.resolved.astype(t.u.dtype),
        }

    return jax.vmap(one)(jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *found))


def injection_triplets(
    f: TokenFactors, part: Part = "block", *, top: int = 2, tolerance: float | None = None
) -> Leading:
    r"""Return the leading eigenpairs of :math:`G G^\top` of one layer's injection at all tokens, matrix-free.

    Parameters
    ----------
    f, part, top, tolerance : as in `layer_triplets`; `part` is "block" or "cross-attention".

    Returns
    -------
    Leading
        `value` are squares of singular values, `vector` left singular vectors; the right ones are
        `pull_context(f, u) / sigma`.
    """
    tokens, width = f.state.shape
    f = with_rows_in_mind(f)
    return leading_eigenpairs(
        _maps(part)[2](f),
        count=tokens,
        width=width,
        dtype=f.state.dtype,
        key=jax.random.key(1),
        top=min(top, width),
        tolerance=tolerance,
    )


@functools.cache
def _maps(part: Part) -> tuple[Any, Any, Any]:
    """Return makers of pytrees of one function each, so that other factors of these shapes compile nothing anew."""
    forward, backward = functools.partial(_push, part), functools.partial(_pull, part)
    gramian = functools.partial(_injection, part)
    return (lambda f: Partial(forward, f), lambda f: Partial(backward, f), lambda f: Partial(gramian, f))


def leading_triplets(f: TokenFactors, start: Any, *, tolerance: float, most: int) -> SingularTriplets:
    """Return the leading singular triplet of a block at all tokens, few products from a good start.

    Parameters
    ----------
    f : factors of the block. start : (T, D) first guesses of v.
    tolerance, most : as in `singular_triplets`; it can be traced where `most` is below 96.

    Returns
    -------
    SingularTriplets
        With leading axis T, one triplet each; the second singular value is an estimate from below.

    Notes
    -----
    Eigenpairs of the Gram matrix and one product more, which is enough where tolerance is far above rounding.
    """
    tokens, width = f.state.shape
    found = leading_eigenpairs(
        Partial(_gramian, f),
        count=tokens,
        width=width,
        dtype=f.state.dtype,
        key=jax.random.key(0),
        top=1,
        tolerance=tolerance,
        start=start[:, None],
        look=2,
        most=most,
    )
    v = found.vector[:, :1]
    image = push(f, v)
    sigma = jnp.linalg.norm(image, axis=2)
    safe = jnp.where(sigma > 0, sigma, 1.0)
    return SingularTriplets(
        sigma=jnp.concatenate([sigma, jnp.sqrt(found.value[:, 1:])], axis=1),
        U=jnp.swapaxes(image / safe[:, :, None], 1, 2),
        V=jnp.swapaxes(v, 1, 2),
        residual=found.residual[:, 0] / safe[:, 0],
        size=found.size,
        converged=found.converged,
    )


def _gramian(f: TokenFactors, x: Any) -> Any:
    return pull(f, push(f, x))


def _push(part: Part, f: TokenFactors, x: Any) -> Any:
    return push(f, x, part)


def _pull(part: Part, f: TokenFactors, y: Any) -> Any:
    return pull(f, y, part)


def _injection(part: Part, f: TokenFactors, y: Any) -> Any:
    return injection_gramian(f, y, part)
