"""A decoder answers a small change of the sound along u_L, as an attractor would.

Kind: finding.
Expected: no: |cos| above chance, and far below 1/√2.
Refuted by: an interval of |cos| below 1/√2.
"""

from dataclasses import dataclass
from typing import Any

from spectral_theorem.attraction import attraction_section
from spectral_theorem.sections import Section, as_columns
from spectral_theorem.trials import CloseTrial, Records, close_rows, figure_of, verdict_of


@dataclass(frozen=True)
class Config(CloseTrial):
    """Which model, on which recordings; random `directions` of every perturbation."""

    directions: int = 2


def run(config: Config) -> list[dict[str, Any]]:
    """Perturb states and sound; a row per kind and size."""
    return close_rows(config, "attraction", directions=config.directions)


def section(records: Records) -> Section:
    """Read |cos| of answers with u_L."""
    return attraction_section(as_columns(records), int(records[0]["width"]))


verdict, figure = verdict_of(section), figure_of(section)
