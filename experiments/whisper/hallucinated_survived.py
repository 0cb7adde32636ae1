"""Under the same stress, hallucinated and survived clips differ in the effective rank of what cross-attention adds.

Kind: finding.
Expected: not known: the paper compares stress with clean speech, never failure with success under stress.
Refuted by: an interval that holds 0 although the change that the paper reports would have been seen.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spectral_theorem.paper_tables import PAPER
from spectral_theorem.spectra import LEAST_POOLED, spectra_difference
from spectral_theorem.spectral_sections import LEVEL
from spectral_theorem.statistics import corrected
from spectral_theorem.study import STRESSED
from spectral_theorem.trials import PairTrial, bars_of, paired

COMPONENT, QUANTITY = "cross_attention", "effective_rank_percent"
REPORTED = abs(PAPER[10]["cross_attention"]["tiny"][0] or 0.0)  # per cent


Config = PairTrial


def run(config: Config) -> list[dict[str, Any]]:
    """Label clips under stress by audio and texts, and pool each group; a row per component and layer."""
    with paired(config) as study:
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


def figure(records: Sequence[Mapping[str, Any]]) -> Any:
    """Draw the differences, component by component and layer by layer."""
    rows = [row for row in records if row["component"]]
    bars = [
        (f"{row['component'].replace('_', '-')}, layer {row['layer']}", row["difference"], row["low"], row["high"])
        for row in rows
    ]
    return bars_of(bars, "ΔN_eff, hallucinated minus survived (%)")
