r"""The dominant path: context Jacobian, Psi, the residual R_Sigma, all in log scale.

A chain is read through its *spine*: the propagators that an injection can meet and the injection
that enters before each. Without `initial` these are W_2..W_L and G_1..G_{L-1}; with it, W_1..W_L
and G_0 = initial, G_1..G_{L-1}. Every sum of the theorem runs over the spine.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .scaled import Scaled, linear, log_norm, log_of, meet, norm, scaled, subtract
from .types import Triplets, container, one_chain, refuse


@container
class Spine:
    """Hold the n propagators that injections meet, their triplets, and the n injections.

    n = L-1 without `initial`, L with it. `kappa`, `misalignment` and the interval ends
    `kappa_upper`, `misalignment_upper` have length n-1.
    """

    propagators: Any
    sources: Any
    direct: Any
    sigma: Any
    xi: Any
    u: Any
    v: Any
    kappa: Any
    misalignment: Any

    @property
    def length(self) -> int:
        """Number n of propagators on the spine."""
        return self.propagators.shape[0]


def dense(chain: Any) -> Any:
    """Return a LayerChain: the chain itself, or an operator chain in an isometric context basis."""
    chain = one_chain(chain)  # first: NumPy arrays have a method `compress` too
    return chain.compress().chain if hasattr(chain, "compress") else chain


def first_layer(chain: Any) -> int:
    """Return the 0-based index of the first propagator that meets an injection."""
    return 1 if chain.initial is None else 0


def spine(chain: Any, triplets: Triplets) -> Spine:
    """Cut out what the theorem's sums run over; a chain without context gets zero injections, C=1."""
    first = first_layer(chain)
    width, depth = chain.width, chain.depth
    injections = chain.injections
    if injections is None:
        injections = jnp.zeros((depth, width, max(chain.context_size, 1)), chain.dtype)
    sources = injections[:-1] if first else jnp.concatenate([chain.initial[None], injections[:-1]])
    return Spine(
        propagators=chain.propagators[first:],
        sources=sources,
        direct=injections[-1],
        sigma=triplets.sigma[first:, 0],
        xi=triplets.xi[first:],
        u=triplets.u[first:],
        v=triplets.v[first:],
        kappa=triplets.kappa[first:],
        misalignment=triplets.misalignment[first:],
    )


def reverse_cumsum(x: Any) -> Any:
    """Return sums over the tail, entry i = x[i] + x[i+1] + ..."""
    return jnp.flip(jnp.cumsum(jnp.flip(x, 0), axis=0), 0)


def log_gains(path: Spine) -> Any:
    """Return log S_{L,k} for every injection of the spine, (n,)."""
    return reverse_cumsum(log_of(path.sigma))


def log_amplitudes(path: Spine) -> tuple[Any, Any]:
    """Return log|A_{L,k}| and its sign for every injection of the spine, both (n,)."""
    padded = jnp.concatenate([path.kappa, jnp.ones((1,), path.sigma.dtype)])
    sign = jnp.flip(jnp.cumprod(jnp.flip(jnp.sign(padded))))
    return log_gains(path) + reverse_cumsum(log_of(jnp.abs(padded))), sign


def row_projections(path: Spine) -> Any:
    """Return the rows v_{k+1}^T G_k, (n, C)."""
    return jnp.einsum("nd,ndc->nc", path.v, path.sources)


def signed_rows(path: Spine) -> Any:
    """Return sign(A_{L,k}) v_{k+1}^T G_k, (n, C): what hypothesis H3 asks a common direction for."""
    return log_amplitudes(path)[1][:, None] * row_projections(path)


def log_scale(path: Spine) -> Any:
    """Return log of sum_k S_{L,k} ||G_k||_F, the unit in which residuals and bounds are compared."""
    sizes = norm(path.sources, axis=(1, 2))
    return jax.nn.logsumexp(log_gains(path) + log_of(sizes)) if path.length else jnp.asarray(-jnp.inf, sizes.dtype)


@container
class DominantPath:
    r"""Hold :math:`J_L = u_L\Psi^\top + G_L + R_\Sigma`.

    Attributes
    ----------
    u : (D,)  :math:`u_L`.
    psi : (C,)  :math:`\Psi`, may over- or underflow; `psi_direction` (C,) and `log_psi_norm` never do.
    log_amplitude, sign : (L-1,)  :math:`\log|A_{L,k}|` and its sign, entry i belongs to k = i+1.
    direct : (D, C)  :math:`G_L`.
    residual : (D, C)  :math:`R_\Sigma` by its own recursion; `residual_unit` and `log_residual_norm` never overflow.
    log_identity_error : ()  log of the Frobenius distance between that recursion and
        :math:`J_L - u_L\Psi^\top - G_L`, computed from a recursion of J and a sum for Psi.
    log_scale : ()  :math:`\log\sum_k S_{L,k}\|G_k\|_F`.
    """

    u: Float[Array, "*batch D"]
    psi: Float[Array, "*batch C"]
    psi_direction: Float[Array, "*batch C"]
    log_psi_norm: Float[Array, "*batch"]
    log_amplitude: Float[Array, "*batch couplings"]
    sign: Float[Array, "*batch couplings"]
    direct: Float[Array, "*batch D C"]
    residual: Float[Array, "*batch D C"]
    residual_unit: Float[Array, "*batch D C"]
    log_residual_norm: Float[Array, "*batch"]
    log_identity_error: Float[Array, "*batch"]
    log_scale: Float[Array, "*batch"]


def context_jacobian(chain: Any) -> Any:
    r"""Return the context Jacobian of the last layer by its recursion.

    .. math:: J_l = W_l J_{l-1} + G_l,\qquad J_0 = \mathrm{initial}\ \text{or}\ 0

    Parameters
    ----------
    chain : LayerChain with injections (L, D, C) or initial (D, C).

    Returns
    -------
    (D, C) array; entries may overflow where the chain grows (see `dominant_path` for log scale).

    Raises
    ------
    InputError
        If the chain has no context.

    Notes
    -----
    Cost O(L D^2 C); the products W_L...W_{k+1} are never formed.

    References
    ----------
    docs/notation.md; recursion of the paper, section 2.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import spectral_theorem as st
    >>> chain = st.LayerChain(2 * jnp.ones((3, 1, 1)), jnp.ones((3, 1, 1)))
    >>> st.context_jacobian(chain).tolist()   # 2*(2*1 + 1) + 1
    [[7.0]]
    """
    return _context_jacobian(dense(chain))


@jax.jit
def _context_jacobian(chain: Any) -> Any:
    first, injections = _injections(chain)
    start = injections[0] if first else chain.initial
    step = lambda jacobian, layer: (layer[0] @ jacobian + layer[1], None)
    return jax.lax.scan(step, start, (chain.propagators[first:], injections[first:]))[0]


def _injections(chain: Any) -> tuple[int, Any]:
    """Return the first spine layer and the injections, zeros where only `initial` is given."""
    if not chain.context_size:
        refuse("a chain without context", "injections or initial", "LayerChain(propagators, injections)")
    if chain.injections is not None:
        return first_layer(chain), chain.injections
    return first_layer(chain), jnp.zeros((chain.depth, chain.width, chain.context_size), chain.dtype)


def scaled_context_jacobian(chain: Any) -> Scaled:
    """Return J_L with its scale kept apart."""
    first, injections = _injections(chain)
    start = injections[0] if first else chain.initial

    def step(jacobian: Scaled, layer: Any) -> tuple[Scaled, None]:
        w, g = layer
        a, b, log = meet(scaled(w @ jacobian.value, jacobian.log), scaled(g))
        return scaled(a + b, log), None

    last, _ = jax.lax.scan(step, scaled(start), (chain.propagators[first:], injections[first:]))
    return last


def dominant_path(chain: Any, triplets: Triplets) -> DominantPath:
    r"""Split the context Jacobian into its rank-1 dominant path, the direct term and the rest.

    .. math:: \Psi^\top = \sum_{k<L} A_{L,k}\,v_{k+1}^\top G_k,\qquad
       R_{l+1} = W_{l+1}R_l + E_{l+1}(u_l\Psi_l^\top + G_l),\quad E = W - \sigma_1 uv^\top

    **Claim** identity (exact): the two routes to :math:`R_\Sigma` agree.

    Parameters
    ----------
    chain : LayerChain, or OperatorChain (then in an isometric context basis of size r).
    triplets : Triplets of the same chain.

    Returns
    -------
    DominantPath

    Notes
    -----
    Cost O(L D^2 C). A chain without context gives empty Psi and R; L = 1 gives zeros.

    References
    ----------
    docs/theory/bounds.md#identity; the split is the paper's, the recursion for R is derived.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import spectral_theorem as st
    >>> chain = st.LayerChain(jnp.stack([jnp.diag(jnp.asarray([2.0, 1.0]))] * 2), jnp.ones((2, 2, 1)))
    >>> path = st.dominant_path(chain, st.decompose(chain))
    >>> path.psi.tolist(), path.residual.tolist()
    ([2.0], [[0.0], [1.0]])
    """
    return _dominant_path(dense(chain), triplets)


@jax.jit
def _dominant_path(chain: Any, triplets: Triplets) -> DominantPath:
    s = spine(chain, triplets)
    size = chain.context_size  # 0 hides the stand-in context of a chain without one
    rest = s.sources.shape[2]
    zero = jnp.zeros((chain.width, rest), chain.dtype)
    if s.length == 0:
        psi, residual, error = scaled(jnp.zeros((rest,), chain.dtype)), scaled(zero), jnp.asarray(-jnp.inf, chain.dtype)
        log_a, sign = jnp.zeros((0,), chain.dtype), jnp.zeros((0,), chain.dtype)
    else:
        log_a, sign = log_amplitudes(s)
        peak = jnp.max(log_a)
        weights = sign * jnp.exp(log_a - jnp.where(jnp.isneginf(peak), 0.0, peak))
        psi = scaled(weights @ row_projections(s), peak)
        residual, _ = residual_by_depth(s)
        jacobian = scaled_context_jacobian(chain) if size else scaled(zero)
        by_difference = subtract(
            subtract(jacobian, Scaled(value=jnp.outer(s.u[-1], psi.value), log=psi.log)), scaled(s.direct)
        )
        error = log_norm(subtract(by_difference, residual))
    whole = first_layer(chain) == 1  # (L-1,) arrays keep k >= 1
    return DominantPath(
        u=triplets.u[-1],
        psi=linear(psi)[:size],
        psi_direction=psi.value[:size] / jnp.maximum(norm(psi.value), jnp.finfo(chain.dtype).tiny),
        log_psi_norm=log_norm(psi),
        log_amplitude=log_a if whole else log_a[1:],
        sign=sign if whole else sign[1:],
        direct=s.direct[:, :size],
        residual=linear(residual)[:, :size],
        residual_unit=residual.value[:, :size],
        log_residual_norm=log_norm(residual),
        log_identity_error=error,
        log_scale=log_scale(s),
    )


def previous(x: Any) -> Any:
    """Shift by one along the spine: entry i becomes x[i-1], entry 0 becomes 0."""
    return jnp.concatenate([jnp.zeros_like(x[:1]), x])[: x.shape[0]]


def residual_by_depth(s: Spine) -> tuple[Scaled, Any]:
    """Run R' = W R + E (u Psi^T + G), Psi' = sigma (kappa Psi + G^T v); return R_L and log ||R_l||_F (n,)."""
    kappas = jnp.concatenate([jnp.zeros((1,), s.sigma.dtype), s.kappa])
    layers = (s.propagators, s.sources, s.sigma, s.u, s.v, previous(s.u), kappas)
    last, sizes = jax.lax.scan(residual_step, residual_start(s.sources[0]), layers)
    return Scaled(value=last.value[0], log=last.log), sizes


def residual_start(source: Any) -> Scaled:
    """Return R and Psi before the first layer."""
    return scaled((jnp.zeros_like(source), jnp.zeros_like(source[0])))


def residual_step(state: Scaled, layer: Any) -> tuple[Scaled, Any]:
    """Pass one layer: its W, the injection before it, sigma, u, v, u before it, kappa before it."""
    w, g, sigma, u, v, u_before, kappa_before = layer
    (residual, psi), g, log = meet(state, scaled(g))
    row = kappa_before * psi + v @ g
    path = jnp.outer(u_before, psi) + g
    rest = w @ path - sigma * jnp.outer(u, row)
    residual = w @ residual + rest
    return scaled((residual, sigma * row), log), log_of(norm(residual)) + log
