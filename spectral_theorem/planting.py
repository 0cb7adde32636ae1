"""Plant chains whose answers are known exactly.

A planted chain prescribes every scalar of the theorem exactly and is random in all else. The
checker never sees what was planted: it gets the arrays and must find the scalars again.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .types import LayerChain, refuse

BULKS = ("flat", "linear", "geometric")


class PlantedVectors(NamedTuple):
    """Hold what was planted: u, v (L, D) and psi (C,). Tests look; the checker never does."""

    u: Any
    v: Any
    psi: Any


def planted(
    key: Any,
    *,
    layers: int,
    width: int,
    context: int,
    sigma: Any,
    kappa: Any,
    xi: Any,
    gamma: Any,
    coherence: Any,
    signs: Any = None,
    bulk: Any = "flat",
    injection_norm: Any = 1.0,
    misalignment: Any = None,
    initial: bool = False,
    dtype: Any = None,
) -> LayerChain:
    r"""Make a chain with prescribed gains, alignments, gaps, injection shares and coherence.

    .. math::

        W_l = \sigma_l\bigl(u_l v_l^\top + \xi_l\, U_{\perp,l}\,\mathrm{diag}(b)\,V_{\perp,l}^\top\bigr),\quad
        v_{l+1} = \kappa_l u_l + s_l w_l,\quad
        v_{k+1}^\top G_k = \pm_k\,\gamma_k\|G_k\|_F\,\mathrm{sign}(A_{L,k})\,g_k,\quad
        g_k = c_k\psi + \sqrt{1-c_k^2}\,t_k

    Parameters
    ----------
    key : PRNG key
        Frames, the directions :math:`w_l \perp u_l`, :math:`\psi`, :math:`t_k \perp \psi` and the rest
        of every injection are Haar-random or Gaussian.
    layers, width, context : int
        L, D, C, each at least 1.
    sigma : scalar or (L,)
        :math:`\sigma_{1,l} > 0`.
    kappa : scalar or (L-1,)
        :math:`\kappa_l = v_{l+1}^\top u_l` in [-1, 1].
    xi : scalar or (L,)
        :math:`\sigma_{2,l}/\sigma_{1,l}` in [0, 1]; without effect when D=1.
    gamma : scalar, (L-1,) or (L,)
        :math:`\|v_{k+1}^\top G_k\|/\|G_k\|_F` in (0, 1]. In the (L,) form the last entry stands beside
        :math:`G_L`, which no :math:`v_{L+1}` meets, and has no effect; the same holds for the next two.
    coherence : scalar, (L-1,) or (L,)
        :math:`c_k = \langle g_k, \psi\rangle` in [-1, 1] for the planted unit :math:`\psi`; the best
        direction does at least as well.
    signs : scalar, (L-1,) or (L,) of +1 or -1, optional
        The factors :math:`\pm_k`. Default: all +1, so that hypothesis H3(c) holds.
    bulk : {"flat", "linear", "geometric"} or (D-1,)
        The factors b of :math:`\sigma_3 \ldots \sigma_D` over :math:`\sigma_2`, with largest entry 1. "flat":
        all 1. "linear": :math:`1 - i/(D-1)`, i = 0…D-2. "geometric": :math:`2^{-i}`.
    injection_norm : scalar or (L,)
        :math:`\|G_k\|_F \ge 0`.
    misalignment : scalar or (L-1,), optional
        :math:`s_l \ge 0`, where it is too small for kappa to tell it: kappa=1, misalignment=1e-9.
        Default: :math:`\sqrt{(1-\kappa)(1+\kappa)}`.
    initial : bool
        Let :math:`h_0` depend on the context: adds :math:`G_0`, with gamma, coherence, sign and norm
        of injection 1, coupled to :math:`v_1`.
    dtype : float32 or float64, optional
        Default: JAX's default floating-point type.

    Returns
    -------
    LayerChain
        propagators (L, D, D), injections (L, D, C), and initial (D, C) if asked for.

    Raises
    ------
    InputError
        On sizes below 1, values out of range or of the wrong shape, an unknown bulk or dtype; when
        D=1 and :math:`|\kappa| \ne 1` or :math:`\gamma \ne 1`; when C=1 and :math:`|c| \ne 1`. Traced
        values are checked for shape only.

    Notes
    -----
    Cost: two QR factorisations of (D, D) per layer, all layers at once; :math:`O(LD^3 + LDC)`. The
    scalars are met to rounding in `dtype`. Two limits come from rounding and not from here: the
    vectors of a W are recoverable from its entries only to eps/(1-xi), and where kappa=0 the sign of
    :math:`A_{L,k}` is taken as +1. Jit- and vmap-able over key and over every real parameter.

    References
    ----------
    docs/notation.md (symbols); docs/theory (hypotheses H1-H4).

    Examples
    --------
    >>> import jax
    >>> chain = planted(jax.random.key(0), layers=3, width=4, context=2, sigma=2.0, kappa=0.9, xi=0.25,
    ...                 gamma=0.5, coherence=0.9)
    >>> [round(float(s), 5) for s in jax.numpy.linalg.svd(chain.propagators[1])[1]]
    [2.0, 0.5, 0.5, 0.5]
    """
    chain, _ = planted_with_answers(
        key,
        layers=layers,
        width=width,
        context=context,
        sigma=sigma,
        kappa=kappa,
        xi=xi,
        gamma=gamma,
        coherence=coherence,
        signs=signs,
        bulk=bulk,
        injection_norm=injection_norm,
        misalignment=misalignment,
        initial=initial,
        dtype=dtype,
    )
    return chain


def planted_with_answers(
    key: Any,
    *,
    layers: int,
    width: int,
    context: int,
    sigma: Any,
    kappa: Any,
    xi: Any,
    gamma: Any,
    coherence: Any,
    signs: Any = None,
    bulk: Any = "flat",
    injection_norm: Any = 1.0,
    misalignment: Any = None,
    initial: bool = False,
    dtype: Any = None,
) -> tuple[LayerChain, PlantedVectors]:
    """Plant a chain and return it together with u, v and psi."""
    L, D, C = checked_size("layers", layers), checked_size("width", width), checked_size("context", context)
    dtype = checked_dtype(dtype)
    sigma = checked_values("sigma", sigma, L, above=0.0, hint="sigma=1.02")
    xi = checked_values("xi", xi, L, low=0.0, high=1.0, hint="xi=0.01")
    kappa = checked_values("kappa", kappa, L - 1, low=-1.0, high=1.0, hint="kappa=0.9999")
    gamma = checked_values("gamma", gamma, L, shorter=True, above=0.0, high=1.0, hint="gamma=0.5")
    coherence = checked_values("coherence", coherence, L, shorter=True, low=-1.0, high=1.0, hint="coherence=0.9")
    signs = checked_values(
        "signs", 1.0 if signs is None else signs, L, shorter=True, low=-1.0, high=1.0, hint="signs=1"
    )
    norms = checked_values("injection_norm", injection_norm, L, low=0.0, hint="injection_norm=1.0")
    b = _bulk(bulk, D)
    s = complement(kappa) if misalignment is None else _misalignment(misalignment, kappa, L, dtype)
    _only("signs", signs, lambda x: abs(x) == 1.0, "+1 or -1 everywhere", "signs=1")
    if D == 1:
        _only("kappa", kappa, lambda x: abs(x) == 1.0, "kappa=1 or -1 when width=1", "kappa=1.0")
        _only("misalignment", s, lambda x: x == 0.0, "misalignment=0 when width=1", "misalignment=0.0")
        _only("gamma", gamma, lambda x: x == 1.0, "gamma=1 when width=1", "gamma=1.0")
    if C == 1:
        _only("coherence", coherence, lambda x: abs(x) == 1.0, "coherence=1 or -1 when context=1", "coherence=1.0")
    parts = (sigma, kappa, s, xi, b, gamma, complement(gamma), coherence, complement(coherence), signs, norms)
    w, g, g0, vectors = _assemble(key, *(jnp.asarray(x, dtype) for x in parts), context=C)
    return LayerChain(w, g, g0 if initial else None), vectors


@functools.partial(jax.jit, static_argnames=("context",))
def _assemble(
    key: Any,
    sigma: Any,
    kappa: Any,
    s: Any,
    xi: Any,
    b: Any,
    gamma: Any,
    rest: Any,
    c: Any,
    c_rest: Any,
    signs: Any,
    norms: Any,
    *,
    context: int,
) -> tuple[Any, Any, Any, PlantedVectors]:
    """Build propagators, injections, the initial Jacobian and the planted vectors from checked arrays."""
    L, D, dtype = sigma.shape[0], b.shape[0] + 1, sigma.dtype
    noise = draw(
        key, dtype, (2 * L, D, D), (L - 1, D - 1), (D,), (context,), (L, context), (L, D - 1, context), (D, context)
    )
    frames, aside, v1, psi, t, bulk, last = noise

    # One call for both sets of frames: two independent batched LAPACK calls in one program can
    # block each other for ever in XLA's CPU thread pool.
    left, right = jnp.split(haar_frames(frames), 2)
    u, u_perp = left[..., 0], left[..., 1:]
    # w inside the span of u_perp is orthogonal to u to rounding, however small the random part is.
    w = jnp.einsum("lij,lj->li", u_perp[:-1], unit(aside), precision="highest")
    v = jnp.concatenate([unit(v1)[None], unit(kappa[:, None] * u[:-1] + s[:, None] * w)])
    right = turned(right, v)

    spectrum = jnp.concatenate([jnp.ones((L, 1), dtype), xi[:, None] * b], axis=1)
    scaled = left * (sigma[:, None] * spectrum)[:, None, :]
    propagators = jnp.matmul(scaled, right.mT, precision="highest")

    # Injection k meets v_{k+1}, which is row k of v; k = 0 is the initial Jacobian.
    shared = lambda x: jnp.concatenate([x[:1], x[:-1]])
    turn = jnp.where(kappa < 0, -1.0, 1.0).astype(dtype)
    amplitude_sign = jnp.concatenate([jnp.cumprod(turn[::-1])[::-1], jnp.ones((1,), dtype)])
    psi = unit(psi)
    for _ in range(2):  # one projection leaves a relative error of eps over what survives it
        t = t - (t @ psi)[:, None] * psi
    g = shared(c)[:, None] * psi + shared(c_rest)[:, None] * unit(t)
    row = (shared(signs) * amplitude_sign * shared(gamma))[:, None] * g
    inside = jnp.concatenate([row[:, None], shared(rest)[:, None, None] * unit(bulk, axes=2)], axis=1)
    planted_g = jnp.matmul(right, shared(norms)[:, None, None] * inside, precision="highest")
    injections = jnp.concatenate([planted_g[1:], norms[-1] * unit(last, axes=2)[None]])
    return propagators, injections, planted_g[0], PlantedVectors(u, v, psi)


def draw(key: Any, dtype: Any, *shapes: Any) -> list[Any]:
    """Draw independent standard normal arrays from one stream, which compiles once instead of seven times."""
    sizes = [math.prod(shape) for shape in shapes]
    flat = jax.random.normal(key, (sum(sizes),), dtype)
    starts = np.cumsum([0, *sizes])
    return [flat[i : i + n].reshape(shape) for i, n, shape in zip(starts, sizes, shapes, strict=False)]


def haar_frames(gaussian: Any) -> Any:
    """Return Haar-random orthogonal matrices from Gaussian ones, (n, D, D)."""
    q, r = jnp.linalg.qr(gaussian)
    diagonal = jnp.diagonal(r, axis1=-2, axis2=-1)
    return q * jnp.where(diagonal < 0, -1.0, 1.0).astype(q.dtype)[..., None, :]


def turned(frames: Any, first: Any) -> Any:
    """Reflect frames (n, D, D) so that their first column becomes `first` (n, D), up to its sign, then set it."""
    q = frames[..., 0]
    # The reflection to the farther of +first and -first: |z| >= sqrt(2), so nothing cancels.
    side = jnp.where(jnp.sum(q * first, axis=-1, keepdims=True) < 0, -1.0, 1.0).astype(q.dtype)
    z = q + side * first
    scale = 2 / jnp.sum(z * z, axis=-1)
    rest = frames[..., 1:]
    along = jnp.einsum("lj,ljk->lk", z, rest, precision="highest")
    rest = rest - (scale[:, None] * z)[:, :, None] * along[:, None, :]
    return jnp.concatenate([first[..., None], rest], axis=-1)


def unit(x: Any, axes: int = 1) -> Any:
    """Scale the last `axes` axes to Euclidean norm 1; an all-zero block stays zero."""
    norm = jnp.sqrt(jnp.sum(x * x, axis=tuple(range(-axes, 0)), keepdims=True))
    return x / jnp.where(norm > 0, norm, 1)


def complement(x: Any) -> Any:
    """Return sqrt(1 - x**2) without the cancellation near 1, on the host where x is known."""
    return (jnp if isinstance(x, Tracer) else np).sqrt((1 - x) * (1 + x))


def checked_size(name: str, value: Any) -> int:
    """Accept a whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        refuse(f"{name}={value!r}", f"a whole number {name} >= 1", f"{name}=8")
    return int(value)


def checked_dtype(dtype: Any) -> Any:
    """Accept float32, float64 with JAX's 64-bit mode on, or None for JAX's default."""
    try:
        chosen = jnp.result_type(float) if dtype is None else jnp.dtype(dtype)
    except TypeError:
        refuse(f"dtype {dtype!r}", "float32 or float64", "dtype='float32'")
    if chosen not in (jnp.dtype("float32"), jnp.dtype("float64")):
        refuse(f"dtype {chosen}", "float32 or float64", "dtype='float32'")
    if chosen == jnp.dtype("float64") and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        refuse(
            "dtype float64 while JAX's 64-bit mode is off",
            "the 64-bit mode",
            "jax.config.update('jax_enable_x64', True)",
        )
    return chosen


def checked_values(
    name: str,
    value: Any,
    length: int,
    *,
    shorter: bool = False,
    low: float = -np.inf,
    above: float = -np.inf,
    high: float = np.inf,
    hint: str,
) -> Any:
    """Check a scalar or vector parameter and spread it to `length` entries; one less may be given if `shorter`."""
    traced = isinstance(value, Tracer)
    try:
        x = value if traced else np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        refuse(f"{name}={value!r}", f"a number or a list of numbers {name}", hint)
    lengths = (length, length - 1) if shorter else (length,)
    if x.ndim > 1 or (x.ndim == 1 and x.shape[0] not in lengths):
        wanted = " or ".join(f"({n},)" for n in lengths)
        refuse(f"{name} with shape {tuple(x.shape)}", f"a scalar or shape {wanted}", hint)
    if not traced:
        bad = ~np.isfinite(x) | (x < low) | (x <= above) | (x > high)
        if bad.any():
            bounds = [f"{name} finite", f">= {low:g}", f"> {above:g}", f"<= {high:g}"]
            keep = [True, np.isfinite(low), np.isfinite(above), np.isfinite(high)]
            refuse(f"{name}={x[bad][0]:g}", " and ".join(b for b, k in zip(bounds, keep, strict=True) if k), hint)
    xp = jnp if traced else np
    if x.ndim == 1 and x.shape[0] == length - 1:
        return xp.concatenate([x, x[-1:] if x.shape[0] else xp.ones(1)])
    return xp.broadcast_to(x, (length,))


def _only(name: str, value: Any, holds: Callable[[Any], Any], expected: str, hint: str) -> None:
    """Refuse a known value that breaks a rule; a traced one passes."""
    if not isinstance(value, Tracer) and not np.all(holds(value)):
        bad = value[~holds(value)][0]
        refuse(f"{name}={bad:g}", expected, hint)


def _misalignment(misalignment: Any, kappa: Any, L: int, dtype: Any) -> Any:
    s = checked_values("misalignment", misalignment, L - 1, low=0.0, high=1.0, hint="misalignment=1e-9")
    if not isinstance(s, Tracer) and not isinstance(kappa, Tracer):
        off = np.abs(np.hypot(s, kappa) - 1) > 4 * float(jnp.finfo(dtype).eps)
        if off.any():
            refuse(
                f"misalignment={s[off][0]:g} beside kappa={kappa[off][0]:g}",
                "kappa**2 + misalignment**2 = 1",
                "misalignment=None, which derives it from kappa",
            )
    return s


def _bulk(bulk: Any, D: int) -> Any:
    i = np.arange(D - 1)
    if isinstance(bulk, str):
        shapes = {"flat": np.ones(D - 1), "linear": 1 - i / max(D - 1, 1), "geometric": 0.5**i}
        if bulk not in shapes:
            refuse(f"bulk={bulk!r}", f"one of {', '.join(BULKS)}, or an array (D-1,)", "bulk='flat'")
        return shapes[bulk]
    b = checked_values("bulk", bulk, D - 1, low=0.0, high=1.0, hint="bulk='flat'")
    if not isinstance(b, Tracer) and D > 1 and b.max() != 1.0:
        refuse(f"bulk with largest entry {b.max():g}", "largest entry 1, so that xi is sigma_2/sigma_1", "bulk='flat'")
    return b
