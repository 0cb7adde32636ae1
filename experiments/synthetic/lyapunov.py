"""Lyapunov exponents of products known in closed form are found again within three standard errors.

Kind: finding.
Expected: every exponent of every solvable ensemble lies within 3 standard errors of its closed form.
Refuted by: an exponent more than 5 standard errors off, which chance gives once in a million or less.
"""

import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_theorem.deep import batch_means, stream
from spectral_theorem.solvable import ENSEMBLES, solvable

NEAR, FAR = 3.0, 5.0  # standard errors
_BLOCK = 4096  # matrices drawn at once


@dataclass(frozen=True)
class Config:
    """One chain per ensemble ("all" or names) of that many layers; `streamed` also takes it through `stream`."""

    ensembles: tuple[str, ...] = ("all",)
    layers: int = 4096
    streamed: bool = False
    seed: int = 0


def run(config: Config) -> list[dict[str, Any]]:
    """Return a row per exponent."""
    names = tuple(ENSEMBLES) if config.ensembles == ("all",) else config.ensembles
    return [row for name in names for row in _rows(name, config)]


def _rows(name: str, config: Config) -> list[dict[str, Any]]:
    ensemble = solvable(name)
    if config.streamed:
        found = stream((w for block in _draws(name, config) for w in block), exponents=ensemble.width, chunk=256)
        means, errors, batches = np.asarray(found.exponents), found.exponents_error, found.batches
    else:
        frame, logs = np.linalg.qr(np.random.default_rng(0).standard_normal((ensemble.width, ensemble.width)))[0], []
        for block in _draws(name, config):
            for w in block:
                frame, r = np.linalg.qr(w @ frame)
                logs.append(np.log(np.abs(np.diagonal(r))))
        means, errors, batches = batch_means(logs)
    # where nothing fluctuates, rounding of the factors is all there is
    errors = np.hypot(errors, 16 * np.finfo(float).eps * math.sqrt(ensemble.width))
    return [
        {
            "ensemble": name,
            "index": i + 1,
            "exponent": float(means[i]),
            "standard_error": float(errors[i]),
            "exact": ensemble.exponents[i],
            "deviation": float((means[i] - ensemble.exponents[i]) / errors[i]),
            "batches": batches,
            "layers": config.layers,
        }
        for i in range(ensemble.width)
    ]


def _draws(name: str, config: Config) -> Any:
    """Yield blocks of matrices; every ensemble has a stream of its own."""
    rng = np.random.default_rng([config.seed, zlib.crc32(name.encode())])
    for start in range(0, config.layers, _BLOCK):
        yield solvable(name).draw(rng, min(_BLOCK, config.layers - start))


def within(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return for every ensemble the largest deviation of its exponents, in standard errors."""
    worst: dict[str, float] = {}
    for row in records:
        value = abs(row["deviation"]) if math.isfinite(row["deviation"]) else math.inf
        worst[row["ensemble"]] = max(worst.get(row["ensemble"], 0.0), value)
    return worst


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Count ensembles all of whose exponents are near."""
    worst = within(records)
    near = sum(value <= NEAR for value in worst.values())
    # by chance alone, at Student's t of these batches
    from scipy.stats import t

    expected = sum(2 * t.sf(NEAR, max(row["batches"] - 1, 1)) for row in records)
    name = max(worst, key=lambda key: worst[key])
    sentence = (
        f"{near} of {len(worst)} ensembles have all exponents within {NEAR:g} standard errors of their closed forms "
        f"({len(records)} exponents; by chance {expected:.2f} would miss); the worst is {name} at {worst[name]:.2f}"
    )
    broken = any(value > FAR for value in worst.values())
    return "VIOLATED" if broken else "HOLDS" if near == len(worst) else "UNDECIDED", sentence


def figure(records: Sequence[Mapping[str, Any]]) -> Any:
    """Draw deviations in standard errors, an ensemble per line."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["ensemble"] for row in records))
    made = Figure(figsize=(6.5, 1.2 + 0.2 * len(names)), layout="constrained")
    axes = made.subplots()
    axes.axvspan(-NEAR, NEAR, color="0.9", label=f"within {NEAR:g} standard errors")
    axes.axvline(0, color="0.5", linewidth=0.8)
    y = [names.index(row["ensemble"]) for row in records]
    axes.plot([row["deviation"] for row in records], y, "o", markersize=3, color="#0072b2", label="one exponent")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("found minus closed form (standard errors)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=7)
    return made
