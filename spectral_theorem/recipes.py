"""Name chains for property tests: a kind, a shape and a seed say which chain is meant.

The kinds cover the middle of every range, its corners, and the two certified regimes.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .ensembles import gaussian, planted, residual
from .planting import checked_dtype, checked_size
from .types import LayerChain, refuse

# (L, D, C). Few, because every shape compiles once for the chain and once for the claim.
SHAPES = (
    (1, 1, 1),
    (1, 3, 2),
    (2, 1, 2),
    (2, 2, 1),
    (3, 3, 2),
    (4, 2, 3),
    (6, 8, 3),
    (16, 4, 5),
    (64, 2, 2),
    (24, 16, 6),
    (8, 64, 12),
    (64, 64, 16),
)
PLAIN_KINDS = ("plain", "constant", "gaussian", "residual")
ADVERSARIAL_KINDS = (
    "rank_one",
    "tie",
    "near_tie",
    "nearly_aligned",
    "orthogonal_step",
    "v_aligned",
    "v_blind",
    "silent",
    "sign_flips",
    "extreme_gain",
    "mixed",
)
ATTRACTOR_KINDS = ("attractor", "attractor_at_the_edge", "attractor_nearly_exact")
DISPERSIVE_KINDS = ("contracting", "contracting_mixed", "growing_layers_that_decay")
KINDS = (*PLAIN_KINDS, *ADVERSARIAL_KINDS, *ATTRACTOR_KINDS, *DISPERSIVE_KINDS)


def recipe(kind: str, *, shape: tuple[int, int, int], seed: int, dtype: Any = None) -> dict[str, np.ndarray]:
    r"""Return what `ensembles.planted` is to plant, one number per layer.

    Parameters
    ----------
    kind : one of `KINDS`, "gaussian" and "residual" apart, which plant nothing.
    shape : (L, D, C).
    seed : int >= 0
        Draws the numbers; the same for every dtype but for the size of extreme gains.
    dtype : float32 or float64, optional
        Default: JAX's default floating-point type.

    Returns
    -------
    dict
        sigma, xi, gamma, coherence, signs, injection_norm (L,); kappa, misalignment (L-1,); bulk (D-1,).
        Arrays only, so recipes of one shape can be stacked and `planted` mapped over them by `jax.vmap`.

    Raises
    ------
    InputError
        On an unknown kind, a shape with an entry below 1, or another dtype.

    References
    ----------
    docs/notation.md.

    Examples
    --------
    >>> recipe("rank_one", shape=(3, 4, 2), seed=0)["xi"].tolist()
    [0.0, 0.0, 0.0]
    """
    L, D, C = (checked_size(name, n) for name, n in zip(("layers", "width", "context"), shape, strict=True))
    if kind not in KINDS or kind in ("gaussian", "residual"):
        refuse(f"kind={kind!r}", f"one of {', '.join(k for k in KINDS if k not in PLAIN_KINDS[2:])}", "kind='plain'")
    rng = np.random.default_rng([KINDS.index(kind), seed])
    r = _ordinary(rng, L, D)
    if kind in ATTRACTOR_KINDS:
        r |= _attractor(rng, L, kind)
    elif kind in DISPERSIVE_KINDS:
        r |= (_mixed(rng, L) if kind == "contracting_mixed" else {}) | {"sigma": rng.uniform(0.3, 0.98, L)}
        if kind == "growing_layers_that_decay":
            r |= _decaying(rng, L)
    else:
        r |= _edge(rng, L, kind, checked_dtype(dtype))
    if "misalignment" not in r:
        r["misalignment"] = np.sqrt((1 - r["kappa"]) * (1 + r["kappa"]))
    if D == 1:
        r |= {"kappa": np.where(r["kappa"] < 0, -1.0, 1.0), "misalignment": np.zeros(L - 1), "gamma": np.ones(L)}
    if C == 1:
        r["coherence"] = np.where(r["coherence"] < 0, -1.0, 1.0)
    return r


def make_chain(
    kind: str, *, shape: tuple[int, int, int], seed: int, initial: bool = False, dtype: Any = None
) -> LayerChain:
    """Make the chain that kind, shape and seed name.

    Parameters
    ----------
    kind : one of `KINDS`.
    shape : (L, D, C).
    seed : int from 0 to 2**32-1.
    initial : bool
        Let the first state depend on the context.
    dtype : float32 or float64, optional
        Default: JAX's default floating-point type.

    Returns
    -------
    LayerChain

    Raises
    ------
    InputError
        As `recipe`.

    Notes
    -----
    One compilation per shape and dtype, whatever the kind; "gaussian" and "residual" share another.

    References
    ----------
    docs/notation.md.

    Examples
    --------
    >>> make_chain("sign_flips", shape=(3, 4, 2), seed=0).injections.shape
    (3, 4, 2)
    """
    key = jax.random.key(seed)
    L, D, C = shape
    sizes: dict[str, Any] = {"layers": L, "width": D, "context": C, "initial": initial, "dtype": dtype}
    if kind == "gaussian":
        return gaussian(key, scale=0.5 + seed % 4 / 4, **sizes)
    if kind == "residual":
        return residual(key, epsilon=10.0 ** -(seed % 4), **sizes)
    return planted(key, **recipe(kind, shape=shape, seed=seed, dtype=dtype), **sizes)


def _ordinary(rng: np.random.Generator, L: int, D: int) -> dict[str, np.ndarray]:
    """Draw everything from the middle of its range, layer by layer."""
    steps = np.concatenate([np.ones(min(D - 1, 1)), np.sort(rng.uniform(0, 1, max(D - 2, 0)))[::-1]])
    return {
        "sigma": np.exp(rng.uniform(-0.5, 0.5, L)),
        "kappa": rng.uniform(-1, 1, L - 1),
        "xi": rng.uniform(0, 1, L),
        "gamma": rng.uniform(0.05, 1, L),
        "coherence": rng.uniform(-1, 1, L),
        "signs": np.ones(L),
        "injection_norm": rng.uniform(0.5, 2, L),
        "bulk": np.ones(D - 1) if rng.random() < 0.5 else steps,
    }


def _edge(rng: np.random.Generator, L: int, kind: str, dtype: Any) -> dict[str, np.ndarray]:
    """Replace what makes a kind of layer_chains special."""
    some = lambda n: rng.random(n) < 0.5
    sign = lambda n: np.where(some(n), 1.0, -1.0)
    if kind == "constant":
        one = _ordinary(rng, 2, 1)
        return {name: np.repeat(one[name][:1], L - (name == "kappa")) for name in ("sigma", "kappa", "xi", "gamma")}
    if kind == "mixed":
        return _mixed(rng, L)
    if kind == "nearly_aligned":
        return {"kappa": sign(L - 1), "misalignment": np.full(L - 1, 1e-9)}
    if kind == "extreme_gain":
        # The product over all layers, and its fourth power, stay inside the range of dtype.
        decades = 0.2 * math.log10(float(jnp.finfo(dtype).max)) / L
        return {"sigma": 10.0 ** (sign(1) * rng.uniform(0.5, 1, L) * decades)}
    return {
        "plain": lambda: {},
        "rank_one": lambda: {"xi": np.zeros(L)},
        "tie": lambda: {"xi": np.where(some(L), 1.0, rng.uniform(0, 1, L))},
        "near_tie": lambda: {"xi": np.full(L, 1 - 1e-9)},
        "orthogonal_step": lambda: {"kappa": np.where(some(L - 1), 0.0, rng.uniform(-1, 1, L - 1))},
        "v_aligned": lambda: {"gamma": np.ones(L)},
        "v_blind": lambda: {"gamma": np.full(L, 1e-9)},
        "silent": lambda: {"injection_norm": np.where(some(L), 0.0, 1.0)},
        "sign_flips": lambda: {"signs": sign(L), "coherence": np.full(L, 0.9)},
    }[kind]()


def _mixed(rng: np.random.Generator, L: int) -> dict[str, np.ndarray]:
    """Draw every layer's scalars from the corners of their ranges, and sometimes from between."""
    pick = lambda n, *corners: np.where(rng.random(n) < 0.3, rng.uniform(0, 1, n), rng.choice(corners, n))
    s = pick(L - 1, 0.0, 1e-9, 1e-4, 1.0)
    return {
        "kappa": np.sqrt((1 - s) * (1 + s)) * rng.choice([-1.0, 1.0], L - 1),
        "misalignment": s,
        "xi": pick(L, 0.0, 1e-9, 1 - 1e-9, 1.0),
        "gamma": np.maximum(pick(L, 1e-9, 1.0, 1.0), 1e-9),
        "coherence": pick(L, -1.0, 0.0, 1.0),
        "signs": rng.choice([-1.0, 1.0], L),
        "injection_norm": pick(L, 0.0, 1e-6, 1.0),
    }


def _attractor(rng: np.random.Generator, L: int, kind: str) -> dict[str, np.ndarray]:
    """Keep 1-|kappa|, xi and gamma inside the default thresholds, by a tenth at the least."""
    share = {"attractor": rng.uniform(0, 0.9), "attractor_at_the_edge": 0.9, "attractor_nearly_exact": 0.0}[kind]
    gamma = rng.uniform(0.12, 1, L) if rng.random() < 0.7 else np.ones(L)
    defect = 0.1 * share / L * rng.uniform(0.5, 1, L - 1)
    r = {"kappa": (1 - defect) * rng.choice([-1.0, 1.0], L - 1)}
    if kind == "attractor_nearly_exact":
        r["misalignment"] = np.full(L - 1, 1e-9)
    return r | {
        "sigma": (1.005 + rng.uniform(0, 0.3) * rng.uniform(0, 1, L)) / (1 - 0.1 * share / L),
        "xi": 0.1 * share / L * gamma.min() * rng.uniform(0.5, 1, L),
        "gamma": gamma,
        "coherence": rng.uniform(0.75, 1, L),
        "signs": np.full(L, rng.choice([-1.0, 1.0])),
    }


def _decaying(rng: np.random.Generator, L: int) -> dict[str, np.ndarray]:
    """Choose constant scalars with sigma above 1 where sigma times the sharp growth rate allows it."""
    kappa, xi = rng.uniform(0, 0.5), rng.uniform(0, 0.3) * (rng.random() < 0.8)
    rate = 0.5 * (kappa * (1 - xi) + math.sqrt((kappa * (1 - xi)) ** 2 + 4 * xi))
    # A short chain must not grow along its dominant path either, or it is an attractor for its few layers.
    path = kappa ** (-(L - 2) / (L - 1)) if L > 2 and kappa > 0 else math.inf
    sigma = min(5.0, math.exp(-rng.uniform(0.03, 0.2)) / rate, 0.95 * path)
    signs = rng.choice([-1.0, 1.0], L - 1)
    return {"sigma": np.full(L, sigma), "kappa": kappa * signs, "xi": np.full(L, xi)}
