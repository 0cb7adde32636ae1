r"""Families of chains as smooth maps from unconstrained numbers: what a gradient search walks on.

Orthogonal factors are products of Householder reflections, angles are angles, and singular values come from maps that
cannot leave their range. So every point is a chain whose triplets are known without a decomposition, every
hypothesis that a family keeps holds at every point, and all of it can be differentiated.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .planting import complement, turned, unit
from .triplets import assemble
from .types import LayerChain, Thresholds, refuse

# H1 in two parts, H2, H3 in three, H4: what the theorem assumes, one name each
HYPOTHESES = ("gain", "cumulative_gain", "alignment", "projection", "directionality", "signs", "purity")
_INSIDE = 1 - 1e-9  # rounding must not carry a value over its threshold
_SPREAD = 1.6  # gains of a free layer lie between exp(-1.6) and exp(1.6)


@dataclasses.dataclass(frozen=True)
class Family:
    """Say which chains: a shape, and the hypotheses that every one of them meets.

    Parameters
    ----------
    layers, width, context : L >= 2, D >= 2, C >= 1.
    keep : names out of `HYPOTHESES`; all others are free. None free is where the theorem speaks.
    held : the scalars are given, the same in every layer (`Scalars`), and the rest is free; then nothing is kept.
    """

    layers: int = 5
    width: int = 3
    context: int = 2
    keep: frozenset[str] = frozenset()
    held: bool = False

    def __post_init__(self) -> None:
        for name, least in (("layers", 2), ("width", 2), ("context", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                refuse(f"{name}={value!r}", f"a whole number >= {least}", f"{name}={max(least, 3)}")
        if unknown := sorted(self.keep - set(HYPOTHESES)):
            refuse(f"hypothesis {unknown[0]!r}", f"one of {', '.join(HYPOTHESES)}", "keep=frozenset({'purity'})")
        if self.held and self.keep:
            refuse(f"held scalars and keep={sorted(self.keep)}", "one or the other", "keep=frozenset()")


class Scalars(NamedTuple):
    r"""Hold the scalars of every layer and injection of a family that holds them; all injections have norm 1.

    Attributes
    ----------
    sigma, kappa, xi : :math:`\sigma_1 > 0`, :math:`\kappa\in[0,1]`, :math:`\xi\in[0,1]`.
    gamma : :math:`\|v_{k+1}^\top G_k\|` in (0, 1].
    tail : :math:`\sigma_{i+1}/\sigma_i` from i = 2 on; a negative number leaves them free.
    """

    sigma: Any
    kappa: Any
    xi: Any
    gamma: Any
    tail: Any = -1.0


def draw(key: Any, family: Family, scalars: Scalars | None = None) -> dict[str, Any]:
    """Draw the numbers of one chain from the prior: uniform directions, wide scalars, corners now and then.

    Parameters
    ----------
    key : PRNG key.
    family : Family
    scalars : of a family that holds them; no gradient reaches them.

    Returns
    -------
    dict of arrays, unconstrained.

    Examples
    --------
    >>> numbers = draw(jax.random.key(0), Family())
    >>> numbers["phi"].shape
    (4,)
    """
    L, D, C = family.layers, family.width, family.context
    shapes = {
        "left": (L, D, D),
        "right": (L, D, D),
        "aside": (L - 1, D - 1),
        "start": (D,),
        "phi": (L - 1,),
        "gain": (L,),
        "ratio": (L, D - 1),
        "eta": (L - 1,),
        "theta": (L - 1,),
        "row": (L - 1, C),
        "psi": (C,),
        "sign": (L - 1,),
        "bulk": (L - 1, D - 1, C),
        "size": (L - 1,),
    }
    keys = jax.random.split(key, len(shapes) + 3)
    numbers = {n: jax.random.normal(k, s) for k, (n, s) in zip(keys, shapes.items(), strict=False)}
    # one chain in three has the same scalars in every layer, one in three has a spectrum near its corners
    same, corner = jax.random.uniform(keys[-1]) < 1 / 3, jax.random.uniform(keys[-2]) < 1 / 3
    for name in ("phi", "gain", "ratio", "eta", "theta", "size"):
        x = numbers[name]
        numbers[name] = jnp.where(same, jnp.broadcast_to(x[:1], x.shape), x)
    numbers["phi"] = numbers["phi"] * 1.5
    numbers["ratio"] = numbers["ratio"] * jnp.where(corner, 4.0, 1.0)
    if family.held:
        assert scalars is not None
        numbers["held"] = jnp.stack([jnp.asarray(x, numbers["phi"].dtype) for x in scalars])
    return numbers


def build(numbers: dict[str, Any], family: Family) -> tuple[LayerChain, Any]:
    r"""Make the chain that the numbers stand for, with its triplets.

    .. math:: W_l = U_l\,\mathrm{diag}(\sigma_{\cdot,l})\,V_l^\top,\quad
       v_{l+1} = \cos\varphi_l\,u_l+\sin\varphi_l\,w_l,\quad
       G_k = v_{k+1}\gamma_kg_k^\top+\sqrt{1-\gamma_k^2}\,V_{\perp,k+1}B_k

    Parameters
    ----------
    numbers : as `draw` gives them.
    family : Family

    Returns
    -------
    chain : LayerChain, the last injection 0, since nothing reads it.
    triplets : Triplets, exact but for rounding.

    Notes
    -----
    Differentiable and vmap-able. No decomposition: what a step of the search costs is arithmetic.

    Examples
    --------
    >>> family = Family(keep=frozenset(HYPOTHESES))
    >>> chain, triplets = jax.jit(lambda key: build(draw(key, family), family))(jax.random.key(1))
    >>> import spectral_theorem as st
    >>> all(row.verdict.name == "HOLDS" for _, row in st.check_conditions(chain, triplets).items())
    True
    """
    L, D = family.layers, family.width
    kept, t = family.keep, Thresholds()
    x = numbers
    square = lambda y: jnp.sin(y) ** 2

    phi = x["phi"]
    if "alignment" in kept:
        phi = math.acos(1 - t.alignment / L) * _INSIDE * jnp.sin(phi)
    elif "gain" in kept:
        phi = 1.4 * jnp.sin(phi)  # a gain of 1 over a right angle has no finite sigma
    kappa, s = jnp.cos(phi), jnp.sin(phi)
    held = Scalars(*jax.lax.stop_gradient(x["held"])) if family.held else None
    if held is not None:
        kappa, s = (jnp.broadcast_to(y, phi.shape) for y in (held.kappa, complement(held.kappa)))

    above = 1 + 2 * jax.nn.sigmoid(2 * x["gain"] - 3)  # near 1, where hypotheses are tight
    free = jnp.exp(_SPREAD * jnp.tanh(x["gain"]))
    inner = above / _INSIDE if "gain" in kept or "cumulative_gain" in kept else free
    if "gain" in kept:
        inner = inner / jnp.abs(jnp.concatenate([kappa, jnp.ones((1,), kappa.dtype)]))
    last = above / _INSIDE if "cumulative_gain" in kept else free
    sigma = jnp.concatenate([inner[:-1], last[-1:]]) if held is None else jnp.full((L,), held.sigma)

    if "projection" in kept:
        eta = math.acos(t.gamma_min) * _INSIDE * square(x["eta"])
    else:
        eta = x["eta"]
    gamma, rest = jnp.abs(jnp.cos(eta)) + 1e-3 * (1 - jnp.abs(jnp.cos(eta))), jnp.sin(eta)
    size = jnp.hypot(gamma, rest)
    gamma, rest = gamma / size, rest / size

    share = jax.nn.sigmoid(x["ratio"])
    xi = share[:, 0] * (t.purity * jnp.min(gamma) / L * _INSIDE if "purity" in kept else 1.0)
    if held is not None:
        gamma, rest = (jnp.broadcast_to(y, eta.shape) for y in (held.gamma, complement(held.gamma)))
        xi, share = jnp.full((L,), held.xi), jnp.where(held.tail < 0, share, held.tail)
    lower = xi[:, None] * jnp.concatenate([jnp.ones((L, 1)), jnp.cumprod(share[:, 1:], axis=1)], axis=1)
    values = sigma[:, None] * jnp.concatenate([jnp.ones((L, 1)), lower], axis=1)

    left = _frames(x["left"])
    u, u_perp = left[..., 0], left[..., 1:]
    aside = jnp.einsum("lij,lj->li", u_perp[:-1], unit(x["aside"]))
    v = jnp.concatenate([unit(x["start"])[None], unit(kappa[:, None] * u[:-1] + s[:, None] * aside)])
    right = turned(_frames(x["right"]), v)
    propagators = jnp.einsum("lij,lj,lkj->lik", left, values, right)

    row = unit(x["row"])
    if kept & {"directionality", "signs"}:
        psi = unit(x["psi"])
        widest = math.acos(t.coherence) * _INSIDE if "directionality" in kept else math.pi / 2 * _INSIDE
        theta = widest * square(x["theta"])
        off = unit(row - (row @ psi)[:, None] * psi)
        row = unit(jnp.cos(theta)[:, None] * psi + jnp.sin(theta)[:, None] * off)
        if "signs" not in kept:
            row = row * jnp.where(x["sign"] < 0, -1.0, 1.0)[:, None]
    # injection k meets v_{k+1}; its path goes through the couplings after it
    turn = jnp.where(kappa[1:] < 0, -1.0, 1.0)
    sign = jnp.concatenate([jnp.flip(jnp.cumprod(jnp.flip(turn))), jnp.ones((1,))])
    along = (sign * gamma)[:, None] * row
    bulk = rest[:, None, None] * unit(x["bulk"], axes=2)
    inside = jnp.concatenate([along[:, None], bulk], axis=1)
    norms = jnp.exp(1.5 * jnp.tanh(x["size"])) if held is None else jnp.ones((L - 1,))
    injections = norms[:, None, None] * jnp.einsum("lij,ljc->lic", right[1:], inside)
    injections = jnp.concatenate([injections, jnp.zeros_like(injections[:1])])

    count = min(2, D)
    padded = jnp.concatenate([values, jnp.zeros((L, 2))], axis=1)
    eps = float(jnp.finfo(values.dtype).eps)
    triplets = assemble(
        padded,
        padded[:, : count + 1],
        left[:, :, :count],
        right[:, :, :count],
        residual=jax.lax.stop_gradient(4 * D * eps * sigma),
        certified=jnp.ones((L,), bool),
    )
    return LayerChain(propagators, injections), triplets


def _frames(vectors: Any) -> Any:
    """Return products of Householder reflections, (n, D, D) from (n, D, D), one reflection per row."""
    n, D, _ = vectors.shape
    frame = jnp.broadcast_to(jnp.eye(D, dtype=vectors.dtype), (n, D, D))
    for i in range(D):
        x = unit(vectors[:, i])
        frame = frame - 2 * jnp.einsum("lij,lj,lk->lik", frame, x, x)
    return frame


def scalars(triplets: Any) -> np.ndarray:
    """Return log sigma, |kappa| and xi of couplings and layers, (L-1, 3): what tells cases apart up to rotations."""
    sigma, kappa, xi = (np.asarray(x) for x in (triplets.sigma[:, 0], triplets.kappa, triplets.xi))
    return np.stack([np.log(np.maximum(sigma[:-1], 1e-300)), np.abs(kappa), xi[:-1]], axis=1)


def distance(triplets: Any, others: Any) -> float:
    """Return the root mean square distance of two chains' scalars, layer by layer, the shorter one repeated."""
    a, b = scalars(triplets), scalars(others)
    return float(np.sqrt(np.mean((a - np.resize(b, (len(a), 3))) ** 2)))
