"""Scalars of the layers decide growth exactly where theory says so, and the reading "decay where ρ < 1" is often wrong.

Kind: tight.
Expected: every chain grows by at most σ r* and, in the cone, at least σ r₋ per layer; r* is attained.
Refuted by: a chain outside these rates by more than its error bar, or a certified regime that is not seen.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from spectral_theorem.batched import evaluate
from spectral_theorem.phase_figure import phase_figure
from spectral_theorem.planting import planted_with_answers
from spectral_theorem.regimes import phase
from spectral_theorem.types import Regime

WINS = math.log(10.0)  # nats between the first two singular values of the product: one direction has won
ATTAINS, TURNS = "attains r*", "turns"  # the plane chains; other tails are those of `planted`
PLANE = {ATTAINS: -1.0, TURNS: 1.0}
GRID = {
    "tail": (ATTAINS, "flat", "geometric"),
    "layers": (8, 64),
    "xi": (0.05, 0.3, 0.7),
    "sigma": tuple(float(x) for x in np.geomspace(0.4, 4.0, 21)),
    "kappa": tuple(math.cos(math.radians(90 * (i + 0.5) / 20)) for i in range(20)),
}


@dataclass(frozen=True)
class Config:
    """One chain of constant scalars: sigma > 0, 0 <= kappa <= 1, 0 <= xi <= 1; at least 3 layers."""

    sigma: float = 3.0
    kappa: float = 0.1
    xi: float = 0.3
    layers: int = 16
    width: int = 8
    tail: str = ATTAINS
    seed: int = 0


def cell(config: Config, key: Any) -> dict[str, Any]:
    """Measure the growth of one chain beside what its scalars say; all rates in nats per layer."""
    c, n = config, config.layers - 1
    matrices, v, u = _unit_chain(c, key)
    width, eps = matrices.shape[-1], jnp.finfo(matrices.dtype).eps

    def step(carry: Any, matrix: Any) -> Any:
        product, log = carry
        product = matrix @ product
        size = jnp.linalg.norm(product)
        return (product / size, log + jnp.log(size)), log + jnp.log(size)

    start = jnp.eye(width), jnp.zeros(())
    (product, log), before = jax.lax.scan(step, start, matrices)
    _, after = jax.lax.scan(step, start, jnp.swapaxes(matrices, 1, 2), reverse=True)
    values = jnp.linalg.svd(product, compute_uv=False)
    total = log + jnp.log(values[0])
    # to first order: layer j adds at most D² eps ‖M_j…M_1‖ twice, M_j itself and its product, and ‖M_L…M_{j+1}‖ follows
    around = jnp.append(0.0, before[:-1]) + jnp.append(after[1:], 0.0)
    relative = 4 * width**2 * eps * jnp.sum(jnp.exp(around - total))
    error = jnp.where(relative < 0.5, -jnp.log1p(-relative), jnp.inf) / n
    growth = jnp.log(c.sigma) + total / n
    out = product @ v
    angle = jnp.arctan2(jnp.linalg.norm(out - u * (u @ out)), jnp.abs(u @ out))
    s = jnp.sqrt((1 - c.kappa) * (1 + c.kappa))
    factor = c.xi * (1 + s) / (1 - s)  # of the cone's contraction, per coupling
    contraction = (n - 1) * jnp.log(factor) + 0.5 * jnp.log(factor * c.xi)
    said = phase(c.sigma, c.kappa, c.xi)
    attracts = (said.code == Regime.ATTRACTOR) & (contraction <= -WINS)
    return {
        "growth": growth,
        "growth_error": error,
        "gap": jnp.log(values[0] / values[1]),
        "angle": angle,
        "naive": jnp.log(c.sigma * c.kappa),
        "upper": jnp.log(said.growth_rate),
        "lower": jnp.log(said.cone_rate),
        "widest": jnp.arctan(c.xi * _aperture(c, s, n)),
        "disperses": said.code == Regime.DISPERSIVE,
        "attracts": attracts,
    }


def run(config: Config) -> list[dict[str, Any]]:
    """Measure one chain."""
    return [evaluate(cell, config)]


def reading(record: Mapping[str, Any]) -> tuple[str, str]:
    """Say of the naive and of the exact reading whether they are "right", "wrong" or "silent" about one chain."""
    if not abs(record["growth"]) > record["growth_error"]:
        return "undecided", "undecided"
    decays, one = record["growth"] < 0, record["gap"] >= WINS
    naive = decays if record["naive"] < 0 else not decays and one
    exact = decays if record["disperses"] else (not decays and one) if record["attracts"] else None
    words = {True: "right", False: "wrong", None: "silent"}
    return words[bool(naive)], words[None if exact is None else bool(exact)]


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Compare every chain with its rates; VIOLATED needs more than the error bar."""
    above = max(r["growth"] - r["upper"] - r["growth_error"] for r in records)
    inside = [r for r in records if not math.isnan(r["lower"])]
    below = max((r["lower"] - r["growth"] - r["growth_error"] for r in inside), default=-math.inf)
    wide = max((r["angle"] - r["widest"] for r in inside), default=-math.inf)
    naive, exact = zip(*map(reading, records), strict=True)
    wrong = exact.count("wrong")
    broken = above > 0 or below > 0 or wide > 1e-9 or wrong > 0
    unknown = any(not math.isfinite(r["growth"] + r["growth_error"]) for r in records) or "undecided" in exact
    decided = len(records) - exact.count("undecided")
    sentence = (
        f"{len(records)} chains: growth exceeds σr* by at most {above:.2g} and falls below σr₋ by at most {below:.2g} "
        f"nats per layer beyond its error bar (0 allowed); of {decided} decided ones the exact reading is wrong about "
        f"{wrong} and silent about {exact.count('silent')}, the reading by ρ is wrong about {naive.count('wrong')}"
    )
    return "VIOLATED" if broken else "UNDECIDED" if unknown else "HOLDS", sentence


def figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the diagram of the deepest chains, and count who is right."""
    read = [{**r, **dict(zip(("naive_reading", "exact_reading"), reading(r), strict=True))} for r in records]
    seen = {name: list(dict.fromkeys(r[name] for r in records)) for name in ("tail", "xi", "layers")}
    return phase_figure(read, tails=seen["tail"][:2], xis=sorted(seen["xi"])[:3], layers=max(seen["layers"]))


def _unit_chain(config: Config, key: Any) -> tuple[Any, Any, Any]:
    """Make a chain of layers with largest singular value 1, its first v and its last u."""
    kappa, xi, n = config.kappa, config.xi, config.layers
    if config.tail in PLANE:
        s, sign = jnp.sqrt((1 - kappa) * (1 + kappa)), PLANE[config.tail]
        matrix = jnp.asarray([[kappa, -sign * s * xi], [s, sign * kappa * xi]])
        return jnp.broadcast_to(matrix, (n, 2, 2)), jnp.asarray([1.0, 0.0]), jnp.asarray([kappa, s])
    rest = {"context": 1, "gamma": 1.0, "coherence": 1.0, "bulk": config.tail}
    chain, known = planted_with_answers(key, layers=n, width=config.width, sigma=1.0, kappa=kappa, xi=xi, **rest)
    return chain.propagators, known.v[0], known.u[-1]


def _aperture(config: Config, s: Any, steps: int) -> Any:
    """Track the cone's aperture from v of the first layer to the last; NaN beyond the cone."""
    forward = lambda _, t: (s + config.kappa * config.xi * t) / (config.kappa - s * config.xi * t)
    inside = s < (1 - config.xi) / (1 + config.xi)
    return jnp.where(inside, jax.lax.fori_loop(0, steps, forward, jnp.zeros_like(s)), jnp.nan)
