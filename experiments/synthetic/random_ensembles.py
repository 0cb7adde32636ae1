"""On random chains the certified regimes are never wrong, and they are silent where layers are neither pure nor small.

Kind: finding.
Expected: no chain certified as dispersive grows by more than its bound, and no certified attractor decays.
Refuted by: a certified chain whose measured growth lies on the other side of its certificate.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from spectral_theorem import ensembles
from spectral_theorem.batched import evaluate
from spectral_theorem.bounds import residual_bounds
from spectral_theorem.canvas import drawing
from spectral_theorem.phase_figure import count_readings
from spectral_theorem.regimes import classify, lyapunov_exponents
from spectral_theorem.triplets import decompose
from spectral_theorem.types import Regime, tolerance

WINS = math.log(10.0)  # nats between the first two exponents over the whole chain: one direction has won
GRID = {
    "ensemble": ("gaussian", "orthogonal", "residual"),
    "scale": tuple(float(x) for x in np.geomspace(0.05, 2.0, 12)),
    "layers": (8, 32),
    "seed": tuple(range(20)),
}


@dataclass(frozen=True)
class Config:
    """One chain: entries of size scale/sqrt(width), scale times a rotation, or scale beside the identity."""

    ensemble: str = "gaussian"
    scale: float = 0.3
    layers: int = 8
    width: int = 6
    seed: int = 0


def cell(config: Config, key: Any) -> dict[str, Any]:
    """Draw one chain, measure how it grows, and read its layers; rates in nats per layer.

    Growth is the largest finite-time exponent; its error is rounding at the size that the product could have had.
    """
    size: dict[str, Any] = {"layers": config.layers, "width": config.width}
    parameter = "epsilon" if config.ensemble == "residual" else "scale"
    chain = getattr(ensembles, config.ensemble)(key, **size, **{parameter: config.scale})
    triplets = decompose(chain)
    bounds = residual_bounds(chain, triplets)
    exponents = lyapunov_exponents(chain.propagators)
    found = classify(chain, triplets, bounds=bounds, lyapunov=exponents)
    n = config.layers
    # a short chain may be dispersive with room for K0; here decay is meant, so the bound itself must be below 1
    decays = bounds.log_total_norm < -tolerance(chain)
    exact = jnp.where(decays, Regime.DISPERSIVE, Regime.INDETERMINATE)
    return {
        "growth": exponents[0],
        "growth_error": tolerance(chain) * jnp.exp(jnp.sum(jnp.log(triplets.sigma[:, 0])) - n * exponents[0]) / n,
        "gap": n * (exponents[0] - exponents[1]),
        "bound": bounds.log_total_norm / n,
        "naive": found.naive_code,
        "exact": jnp.where(found.code == Regime.ATTRACTOR, Regime.ATTRACTOR, exact),
        "sigma": jnp.median(triplets.sigma[:, 0]),
        "xi": jnp.median(triplets.xi),
        "kappa": jnp.median(jnp.abs(triplets.kappa)),
    }


def run(config: Config) -> list[dict[str, Any]]:
    """Draw and measure one chain."""
    return [evaluate(cell, config)]


def reading(record: Mapping[str, Any], which: str) -> str:
    """Say whether a reading, "naive" or "exact", is "right", "wrong" or "silent" about one chain."""
    if record[which] == Regime.INDETERMINATE:
        return "silent"
    if not abs(record["growth"]) > record["growth_error"]:
        return "undecided"
    decays = record["growth"] < 0
    right = decays if record[which] == Regime.DISPERSIVE else not decays and record["gap"] >= WINS
    return "right" if right else "wrong"


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Count certified chains that do something else than certified."""
    exact, naive = (Counter(reading(r, which) for r in records) for which in ("exact", "naive"))
    above = max(r["growth"] - r["bound"] - r["growth_error"] for r in records)
    sentence = (
        f"{len(records)} chains: certified ones are right {exact['right']} times and wrong {exact['wrong']} times "
        f"(0 allowed), {exact['silent']} are left open; the reading by ρ is right {naive['right']} times, wrong "
        f"{naive['wrong']} times, silent {naive['silent']} times; growth exceeds its bound by at most {above:.2g} nats "
        "per layer beyond the error bar (0 allowed)"
    )
    if exact["wrong"] or above > 0:
        return "VIOLATED", sentence
    unknown = exact["undecided"] or any(not math.isfinite(r["growth"]) for r in records)
    return "UNDECIDED" if unknown else "HOLDS", sentence


def figure(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Count who is right, by ensemble and depth."""
    read = [
        {**r, "tail": r["ensemble"], **{f"{which}_reading": reading(r, which) for which in ("naive", "exact")}}
        for r in records
    ]
    with drawing(1.0 + 0.5 * len({(r["tail"], r["layers"]) for r in read})) as drawn:
        ax = drawn.subplots()
        drawn.subplots_adjust(left=0.17, right=0.93, top=0.9, bottom=0.14)
        count_readings(ax, read)
    return drawn
