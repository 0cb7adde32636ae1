"""The sign of the mean λ does not depend on LayerNorm, the identity, the cut into layers or the precision.

Kind: finding.
Expected: one sign throughout.
Refuted by: a variant whose interval lies on the other side of 0.
"""

from dataclasses import dataclass
from typing import Any

from spectral_theorem.ablations import ablation_section
from spectral_theorem.sections import Section, as_columns
from spectral_theorem.trials import CloseTrial, Records, close_rows, figure_of, verdict_of


@dataclass(frozen=True)
class Config(CloseTrial):
    """Which model, on which recordings; `sequences` of them are decomposed whole as well."""

    sequences: int = 0


def run(config: Config) -> list[dict[str, Any]]:
    """Measure clips with one thing changed at a time; a row per variant."""
    return close_rows(config, "ablations", sequences=config.sequences)


def section(records: Records) -> Section:
    """Read the mean λ of every variant, paired by clip."""
    return ablation_section(as_columns(records))


verdict, figure = verdict_of(section), figure_of(section)
