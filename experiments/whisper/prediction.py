"""λ tells hallucinated from surviving clips better than the average log-probability does.

Kind: finding.
Expected: no: the average log-probability is the better of the two.
Refuted by: an interval of the difference of AUROCs below 0.
"""

from dataclasses import dataclass

from spectral_theorem.prediction import prediction_section
from spectral_theorem.sections import Section, as_columns
from spectral_theorem.study import CLEAN
from spectral_theorem.trials import Records, Trial, figure_of, score_rows, verdict_of


@dataclass(frozen=True)
class Config(Trial):
    """Which model, on which recordings: two more than elsewhere, for there must be two groups."""

    clips: int = 6


run = score_rows


def section(records: Records) -> Section:
    """Read AUROCs among stressed clips; clean ones nobody needs to tell apart."""
    return prediction_section(as_columns([record for record in records if record["condition"] != CLEAN]))


verdict, figure = verdict_of(section), figure_of(section)
