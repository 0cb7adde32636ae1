"""Under the same stress, hallucinated and survived clips differ in the effective rank of what cross-attention adds.

Kind: finding.
Expected: not known: the paper compares stress with clean speech, never failure with success under stress.
Refuted by: an interval that holds 0 although the change that the paper reports would have been seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spectral_theorem.gathered import passing
from spectral_theorem.paper_tables import PAPER
from spectral_theorem.spectra import LEAST_POOLED, spectra_difference
from spectral_theorem.spectral_sections import LEVEL
from spectral_theorem.statistics import corrected
from spectral_theorem.study import STRESSED

COMPONENT, QUANTITY = "cross_attention", "effective_rank_percent"
REPORTED = abs(PAPER[10]["cross_attention"]["tiny"][0] or 0.0)  # per cent


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
    """Label clips under stress by audio and texts, and pool each group; a row per component and layer."""
    asked = {name: getattr(config, name) for name in ("only", "digits", "orders", "clips", "stress", "talkers", "seed")}
    with passing(config.model, config.audio, steps=config.steps, dtype=config.dtype, **asked) as study:
        groups = {
            label: [cell for cell in study.of(STRESSED) if cell.behaviour.label == label]
            for label in ("survived", "hallucinated", "omitted")
        }
        counts = {label: len(cells) for label, cells in groups.items()}
        if min(counts["survived"], counts["hallucinated"]) < LEAST_POOLED:
            return [{"component": "", "layer": 0, **counts}]
        found = spectra_difference(groups["survived"], groups["hallucinated"], [config.modes], seed=config.seed)
    p = corrected([by[config.modes][QUANTITY].p for by in found.values()])
    rows = []
    for (place, by), adjusted in zip(found.items(), p, strict=True):
        c = by[config.modes][QUANTITY]
        ends = {
            "difference": c.value,
            "low": c.interval.low,
            "high": c.interval.high,
            "detectable": c.smallest_detectable,
        }
        rows.append(
            {"component": place.component, "layer": place.layer, "p_corrected": float(adjusted), **ends, **counts}
        )
    return rows


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Judge the claim by a test that exchanges labels, and by the interval averaged over layers."""
    said = ", ".join(f"{records[0][label]} {label}" for label in ("hallucinated", "survived", "omitted"))
    rows = [row for row in records if row["component"] == COMPONENT]
    if not rows:
        return "UNDECIDED", f"{said}: it takes {LEAST_POOLED} of each of the first two"
    mean = {name: float(np.mean([row[name] for row in rows])) for name in ("difference", "low", "high", "detectable")}
    least = min(row["p_corrected"] for row in rows)
    sentence = (
        f"N_eff of cross-attention differs by {mean['difference']:.3g} [{mean['low']:.3g}, {mean['high']:.3g}] %, "
        f"mean over {len(rows)} layers, {said} clips; least corrected p when labels are exchanged {least:.2g}; a "
        f"difference of {abs(mean['detectable']):.2g} % would have been seen (the paper's change under stress: "
        f"{REPORTED} %)"
    )
    apart = mean["low"] > 0 or mean["high"] < 0
    if least <= LEVEL and apart:
        return "HOLDS", sentence
    return ("VIOLATED" if not apart and abs(mean["detectable"]) < REPORTED else "UNDECIDED"), sentence
