"""Make chains to check: planted, random, and named counterexamples."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .planting import checked_dtype, checked_size, checked_values, draw, haar_frames, planted, unit
from .types import LayerChain, refuse

__all__ = [
    "COUNTEREXAMPLES",
    "Counterexample",
    "aligned_but_impure",
    "coherent_but_sign_flipping",
    "gaussian",
    "growing_despite_rho_below_one",
    "orthogonal",
    "planted",
    "residual",
    "rotating",
    "tied",
]


def gaussian(
    key: Any,
    *,
    layers: int,
    width: int,
    context: int | None = None,
    scale: Any = 1.0,
    initial: bool = False,
    dtype: Any = None,
) -> LayerChain:
    r"""Make a chain of independent Gaussian propagators, entries :math:`N(0, \mathrm{scale}^2/D)`.

    Parameters
    ----------
    key : PRNG key
    layers, width : int
        L, D, each at least 1.
    context : int, optional
        C; injections are Gaussian with :math:`\|G_k\|_F=1`. Default: a chain without context.
    scale : float
        Positive; the largest singular value of a wide W is near 2 scale.
    initial : bool
        Add :math:`G_0`, drawn like an injection; needs a context.
    dtype : float32 or float64, optional
        Default: JAX's default floating-point type.

    Returns
    -------
    LayerChain

    Raises
    ------
    InputError
        On sizes below 1, a scale that is not positive, `initial` without context, or another dtype.

    References
    ----------
    docs/notation.md.

    Examples
    --------
    >>> import jax
    >>> gaussian(jax.random.key(0), layers=3, width=4, context=2).injections.shape
    (3, 4, 2)
    """
    w, g, g0 = _random(key, layers, width, context, initial, dtype)
    factor = _positive("scale", scale) / math.sqrt(width)
    return LayerChain(w * jnp.asarray(factor, w.dtype), g, g0)


def orthogonal(
    key: Any,
    *,
    layers: int,
    width: int,
    context: int | None = None,
    scale: Any = 1.0,
    initial: bool = False,
    dtype: Any = None,
) -> LayerChain:
    r"""Make a chain of Haar-random orthogonal propagators times scale: every singular value is tied.

    Parameters
    ----------
    key, layers, width, context, scale, initial, dtype
        As in `gaussian`; scale is :math:`\sigma_1=\ldots=\sigma_D`.

    Returns
    -------
    LayerChain

    Raises
    ------
    InputError
        As `gaussian`.

    References
    ----------
    docs/notation.md.

    Examples
    --------
    >>> import jax
    >>> chain = orthogonal(jax.random.key(0), layers=2, width=3, scale=2.0)
    >>> [round(float(s), 5) for s in jax.numpy.linalg.svd(chain.propagators[0])[1]]
    [2.0, 2.0, 2.0]
    """
    w, g, g0 = _random(key, layers, width, context, initial, dtype)
    return LayerChain(haar_frames(w) * jnp.asarray(_positive("scale", scale), w.dtype), g, g0)


def residual(
    key: Any,
    *,
    layers: int,
    width: int,
    epsilon: Any,
    context: int | None = None,
    initial: bool = False,
    dtype: Any = None,
) -> LayerChain:
    r"""Make a chain of near-identity propagators, :math:`W_l = I + \varepsilon A_l`, entries of A :math:`N(0, 1/D)`.

    Parameters
    ----------
    key, layers, width, context, initial, dtype
        As in `gaussian`.
    epsilon : float
        :math:`\varepsilon`, positive; what a residual block adds to the identity.

    Returns
    -------
    LayerChain

    Raises
    ------
    InputError
        As `gaussian`, for epsilon in place of scale.

    References
    ----------
    docs/notation.md.

    Examples
    --------
    >>> import jax
    >>> residual(jax.random.key(0), layers=2, width=3, epsilon=0.1).propagators.shape
    (2, 3, 3)
    """
    w, g, g0 = _random(key, layers, width, context, initial, dtype)
    factor = _positive("epsilon", epsilon) / math.sqrt(width)
    return LayerChain(jnp.eye(width, dtype=w.dtype) + w * jnp.asarray(factor, w.dtype), g, g0)


def _positive(name: str, value: Any) -> Any:
    return checked_values(name, value, 1, above=0.0, hint=f"{name}=1.0")[0]


def _random(key: Any, layers: int, width: int, context: int | None, initial: bool, dtype: Any) -> tuple[Any, Any, Any]:
    """Draw standard normal (L, D, D), and unit injections (L, D, C) and (D, C) where wanted."""
    L, D = checked_size("layers", layers), checked_size("width", width)
    dtype = checked_dtype(dtype)
    if context is None:
        if initial:
            refuse("initial=True without a context", "a context size C >= 1", "context=8")
        return draw(key, dtype, (L, D, D))[0], None, None
    w, g = draw(key, dtype, (L, D, D), (L + 1, D, checked_size("context", context)))
    g = unit(g, axes=2)
    return w, g[:-1], g[-1] if initial else None


def growing_despite_rho_below_one(
    layers: int = 64, sigma: float = 3.0, kappa: float = 0.1, xi: float = 0.9, *, dtype: Any = None
) -> LayerChain:
    r"""Make the D=2 chain that grows as fast as its scalars allow.

    .. math:: W_l = \sigma\begin{pmatrix}\kappa & s\xi\\ s & -\kappa\xi\end{pmatrix},\qquad
        \lim_L \|W_L\cdots W_1\|^{1/L} = \sigma r^*,\quad
        r^* = \tfrac12\bigl[\kappa(1-\xi)+\sqrt{\kappa^2(1-\xi)^2+4\xi}\bigr]

    **Claim** sharp growth, tight: no bound from :math:`(\sigma_1, \kappa, \xi)` alone beats :math:`\sigma r^*`.

    Parameters
    ----------
    layers : int
        L, at least 1.
    sigma, kappa, xi : float
        The same in every layer; :math:`\rho = \sigma|\kappa|` may lie far below 1.
    dtype : float32 or float64, optional
        Default: JAX's default floating-point type.

    Returns
    -------
    LayerChain
        D = C = 2, every injection :math:`I/\sqrt2`.

    Raises
    ------
    InputError
        On values out of range.

    References
    ----------
    docs/theory, sharp growth.

    Examples
    --------
    >>> chain = growing_despite_rho_below_one(8)
    >>> bool(abs(jnp.linalg.eigvalsh(chain.propagators[0])).max() > 2.8)
    True
    """
    sigma, kappa, s, xi = _plane_scalars(sigma, kappa, xi)
    return _plane(layers, sigma * np.array([[kappa, s * xi], [s, -kappa * xi]]), dtype)


def rotating(
    layers: int = 64, sigma: float = 1.1, kappa: float = 0.5, xi: float = 0.9, *, dtype: Any = None
) -> LayerChain:
    r"""Make the D=2 chain whose state turns for ever once the misalignment is too large.

    .. math:: W_l = \sigma\begin{pmatrix}\kappa & -s\xi\\ s & \kappa\xi\end{pmatrix}

    **Claim** sharp attractor, tight: the eigenvalues are real, and one direction attracts, exactly while
    :math:`s \le (1-\xi)/(1+\xi)`.

    Parameters
    ----------
    layers, sigma, kappa, xi, dtype
        As in `growing_despite_rho_below_one`.

    Returns
    -------
    LayerChain
        D = C = 2, every injection :math:`I/\sqrt2`.

    Raises
    ------
    InputError
        On values out of range.

    References
    ----------
    docs/theory, sharp attractor.

    Examples
    --------
    >>> rotating(4).propagators.shape
    (4, 2, 2)
    """
    sigma, kappa, s, xi = _plane_scalars(sigma, kappa, xi)
    return _plane(layers, sigma * np.array([[kappa, -s * xi], [s, kappa * xi]]), dtype)


def aligned_but_impure(layers: int = 64, *, width: int = 16, context: int = 8, dtype: Any = None) -> LayerChain:
    """Make a chain that is stable, aligned and coherent, with the bulk at 0.9 of the leading value.

    Parameters
    ----------
    layers, width, context : int
        L, D >= 2, C >= 2.
    dtype : float32 or float64, optional
        Default: JAX's default floating-point type.

    Returns
    -------
    LayerChain

    Raises
    ------
    InputError
        On sizes too small.

    References
    ----------
    docs/theory, hypothesis H4.

    Examples
    --------
    >>> aligned_but_impure(4).propagators.shape
    (4, 16, 16)
    """
    return _example(layers, width, context, dtype, xi=0.9)


def coherent_but_sign_flipping(layers: int = 64, *, width: int = 16, context: int = 8, dtype: Any = None) -> LayerChain:
    """Make a chain that meets all hypotheses, except that every other injection pushes backwards.

    Parameters
    ----------
    layers, width, context, dtype
        As in `aligned_but_impure`.

    Returns
    -------
    LayerChain

    Raises
    ------
    InputError
        On sizes too small.

    References
    ----------
    docs/theory, hypothesis H3(c).

    Examples
    --------
    >>> coherent_but_sign_flipping(4).injections.shape
    (4, 16, 8)
    """
    signs = 1.0 - 2.0 * (np.arange(checked_size("layers", layers)) % 2)
    return _example(layers, width, context, dtype, signs=signs)


def tied(layers: int = 64, *, width: int = 16, context: int = 8, dtype: Any = None) -> LayerChain:
    r"""Make a chain with :math:`\sigma_1=\sigma_2` in every layer, above a weak rest.

    Parameters
    ----------
    layers, width, context, dtype
        As in `aligned_but_impure`.

    Returns
    -------
    LayerChain

    Raises
    ------
    InputError
        On sizes too small.

    References
    ----------
    docs/theory, ties and the top-K bound.

    Examples
    --------
    >>> [round(float(s), 3) for s in jnp.linalg.svd(tied(4).propagators[0])[1][:3]]
    [1.02, 1.02, 0.001]
    """
    bulk = np.where(np.arange(checked_size("width", width) - 1) == 0, 1.0, 5e-4)
    return _example(layers, width, context, dtype, xi=1.0, bulk=bulk)


class Counterexample(NamedTuple):
    """Hold a maker of chains and the finding to expect of the chain it makes by default."""

    make: Callable[..., LayerChain]
    finding: str


COUNTEREXAMPLES = {
    "growing_despite_rho_below_one": Counterexample(
        growing_despite_rho_below_one,
        "rho = 0.3 in every layer, so H1 is VIOLATED, yet products grow by a factor near 2.86 per layer: "
        "rho < 1 does not mean decay.",
    ),
    "rotating": Counterexample(
        rotating,
        "rho = 0.55 and H2 is VIOLATED; the misalignment exceeds (1-xi)/(1+xi), so no direction attracts while the "
        "state turns and grows by about 1.04 per layer: the regime is INDETERMINATE.",
    ),
    "aligned_but_impure": Counterexample(
        aligned_but_impure,
        "H1, H2 and H3 HOLD, H4 is VIOLATED: alignment alone does not bound the residual.",
    ),
    "coherent_but_sign_flipping": Counterexample(
        coherent_but_sign_flipping,
        "H1, H2 and H4 HOLD, H3 is VIOLATED through its part (c): the contributions cancel.",
    ),
    "tied": Counterexample(
        tied,
        "sigma_1 = sigma_2: u, v and kappa are not defined, verdicts on them are UNDECIDED, the bounds stay valid.",
    ),
}


def _example(layers: int, width: int, context: int, dtype: Any, **changes: Any) -> LayerChain:
    """Plant the chain on which every hypothesis holds at 64 layers, with some recipe entries changed."""
    recipe: dict[str, Any] = {"sigma": 1.02, "kappa": 1 - 1e-4, "xi": 5e-4, "gamma": 0.5, "coherence": 0.9} | changes
    return planted(jax.random.key(0), layers=layers, width=width, context=context, dtype=dtype, **recipe)


def _plane_scalars(sigma: float, kappa: float, xi: float) -> tuple[float, float, float, float]:
    """Check the scalars of a D=2 chain and add the misalignment."""
    sigma = float(checked_values("sigma", sigma, 1, above=0.0, hint="sigma=3.0")[0])
    kappa = float(checked_values("kappa", kappa, 1, low=-1.0, high=1.0, hint="kappa=0.1")[0])
    xi = float(checked_values("xi", xi, 1, low=0.0, high=1.0, hint="xi=0.9")[0])
    return sigma, kappa, math.sqrt((1 - kappa) * (1 + kappa)), xi


def _plane(layers: int, matrix: Any, dtype: Any) -> LayerChain:
    """Repeat one 2 by 2 propagator, with injections that reach both directions."""
    L, dtype = checked_size("layers", layers), checked_dtype(dtype)
    repeat = lambda a: jnp.broadcast_to(jnp.asarray(a, dtype), (L, 2, 2))
    return LayerChain(repeat(matrix), repeat(np.eye(2) / math.sqrt(2)))
