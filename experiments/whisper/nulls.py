"""Neighbouring blocks of a trained decoder are better aligned than blocks turned at random.

Kind: finding.
Expected: hardly: |κ| near its chance level.
Refuted by: an interval of the paired difference of |κ| below 0.
"""

from dataclasses import dataclass
from typing import Any

from spectral_theorem.chance import chance_section
from spectral_theorem.sections import Section, as_columns
from spectral_theorem.trials import CloseTrial, Records, close_rows, figure_of, verdict_of


@dataclass(frozen=True)
class Config(CloseTrial):
    """Which model, on which recordings; `draws` of every random null."""

    draws: int = 1


def run(config: Config) -> list[dict[str, Any]]:
    """Measure chains and their nulls; a row for each."""
    return close_rows(config, "chance", draws=config.draws)


def section(records: Records) -> Section:
    """Read |κ| of trained blocks beside the same blocks turned, paired by clip."""
    return chance_section(as_columns(records))


verdict, figure = verdict_of(section), figure_of(section)
