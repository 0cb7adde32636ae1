"""Stress lowers the effective rank of what cross-attention adds, on the same clips and at as many positions.

Kind: finding.
Expected: a fall by some per cent, as the paper's table 1 has it for its models.
Refuted by: intervals of the change above 0, with all positions and with as many on both sides.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_theorem.gathered import passing
from spectral_theorem.spectra import spectra_change
from spectral_theorem.spectral_sections import changes_of, corrected_changes, fallen
from spectral_theorem.study import CLEAN, STRESSED

COMPONENT, QUANTITY = "cross_attention", "effective_rank_percent"


@dataclass(frozen=True)
class Config:
    """Which model, on which recordings; numbers are small enough to try."""

    model: str = "carried"
    audio: str = "carried"
    only: str = ""
    digits: int = 0
    orders: int = 5
    clips: int = 0
    stress: str = "noise=0"
    talkers: str = ""
    modes: int = 10
    steps: str = "1"
    dtype: str = "float32"
    seed: int = 0


def run(config: Config) -> list[dict[str, Any]]:
    """Pool the same clips clean and under stress; a row per component, layer and quantity."""
    asked = {name: getattr(config, name) for name in ("only", "digits", "orders", "clips", "stress", "talkers", "seed")}
    with passing(config.model, config.audio, steps=config.steps, dtype=config.dtype, **asked) as study:
        pairs = study.pairs(CLEAN, STRESSED)
        found = spectra_change(pairs, [config.modes], seed=config.seed)
        alike = changes_of(spectra_change(pairs, [config.modes], alike=True, seed=config.seed))
    p = corrected_changes(changes_of(found), config.modes)
    rows = []
    for place, change in found.items():
        for quantity, c in change.changes[config.modes].items():
            same = alike[place][config.modes][quantity]
            rows.append(
                {
                    "component": place.component,
                    "layer": place.layer,
                    "quantity": quantity,
                    "change": c.value,
                    "low": c.interval.low,
                    "high": c.interval.high,
                    "alike": same.value,
                    "alike_low": same.interval.low,
                    "alike_high": same.interval.high,
                    "p": c.p,
                    "p_corrected": p[place, quantity],
                    "detectable": c.smallest_detectable,
                    "clips": len(pairs),
                    "clusters": c.n,
                }
            )
    return rows


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Judge the claim by a test that exchanges conditions, and by both intervals, averaged over layers."""
    rows = [row for row in records if (row["component"], row["quantity"]) == (COMPONENT, QUANTITY)]
    mean = {
        name: float(np.mean([row[name] for row in rows])) for name in rows[0] if name not in ("component", "quantity")
    }
    least = min(row["p_corrected"] for row in rows)
    sentence = (
        f"N_eff of cross-attention changes by {mean['change']:.3g} [{mean['low']:.3g}, {mean['high']:.3g}] %, with "
        f"as many positions by {mean['alike']:.3g} [{mean['alike_low']:.3g}, {mean['alike_high']:.3g}] %, mean over "
        f"{len(rows)} layers, {rows[0]['clips']} clips in {rows[0]['clusters']} clusters; least corrected p when "
        f"conditions are exchanged {least:.2g}; a change of {abs(mean['detectable']):.2g} % would have been seen"
    )
    ends = [(mean["low"], mean["high"]), (mean["alike_low"], mean["alike_high"])]
    return fallen(ends, least), sentence
