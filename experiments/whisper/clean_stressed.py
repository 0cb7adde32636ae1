"""Stress lowers the effective rank of what cross-attention adds, on the same clips and at as many positions.

Kind: finding.
Expected: a fall by some per cent, as the paper's table 1 has it for its models.
Refuted by: intervals of the change above 0, with all positions and with as many on both sides.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spectral_theorem.spectra import spectra_change
from spectral_theorem.spectral_sections import changes_of, corrected_changes, fallen
from spectral_theorem.study import CLEAN, STRESSED
from spectral_theorem.trials import PairTrial, bars_of, paired

COMPONENT, QUANTITY = "cross_attention", "effective_rank_percent"


Config = PairTrial


def run(config: Config) -> list[dict[str, Any]]:
    """Pool the same clips clean and under stress; a row per component, layer and quantity."""
    with paired(config) as study:
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
    wanted = ("change", "low", "high", "alike", "alike_low", "alike_high", "detectable")
    mean = {name: float(np.mean([row[name] for row in rows])) for name in wanted}
    least = min(row["p_corrected"] for row in rows)
    sentence = (
        f"N_eff of cross-attention changes by {mean['change']:.3g} [{mean['low']:.3g}, {mean['high']:.3g}] %, with "
        f"as many positions by {mean['alike']:.3g} [{mean['alike_low']:.3g}, {mean['alike_high']:.3g}] %, mean over "
        f"{len(rows)} layers, {rows[0]['clips']} clips in {rows[0]['clusters']} clusters; least corrected p when "
        f"conditions are exchanged {least:.2g}; a change of {abs(mean['detectable']):.2g} % would have been seen"
    )
    ends = [(mean["low"], mean["high"]), (mean["alike_low"], mean["alike_high"])]
    return fallen(ends, least), sentence


def figure(records: Sequence[Mapping[str, Any]]) -> Any:
    """Draw the changes of cross-attention, layer by layer, with all positions and with as many."""
    rows = [row for row in records if (row["component"], row["quantity"]) == (COMPONENT, QUANTITY)]
    sides = (("all positions", ("change", "low", "high")), ("as many positions", ("alike", "alike_low", "alike_high")))
    bars = [(f"{side}, layer {row['layer']}", *(row[name] for name in names)) for side, names in sides for row in rows]
    return bars_of(bars, "ΔN_eff of cross-attention, stressed minus clean (%)")
