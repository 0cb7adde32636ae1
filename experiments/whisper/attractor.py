"""A decoder answers a small change of the sound along u_L, as an attractor would.

Kind: finding.
Expected: no: |cos| above chance, and far below 1/√2.
Refuted by: an interval of |cos| below 1/√2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectral_theorem.attraction import attraction_section
from spectral_theorem.sections import as_columns
from spectral_theorem.trials import CARRIED, judged, trial_clips, trial_details, trial_model


@dataclass(frozen=True)
class Config:
    """Which model, on which recordings; numbers are small enough to try."""

    model: str = CARRIED
    audio: str = CARRIED
    digits: int = 0
    clips: int = 2
    stress: str = ""
    talkers: str = ""
    steps: str = "2"
    directions: int = 2
    dtype: str = "float64"
    seed: int = 0


def run(config: Config) -> list[dict[str, Any]]:
    """Measure clips, clean and stressed; a row per perturbation."""
    model = trial_model(config.model, config.dtype)
    clips = trial_clips(config.audio, digits=config.digits, count=config.clips, seed=config.seed)
    rows = trial_details(
        model,
        clips,
        topics=("attraction",),
        stress=config.stress,
        steps=config.steps,
        talkers=config.talkers,
        seed=config.seed,
        directions=config.directions,
    )
    return [row | {"width": model.dims.width} for row in rows]


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Judge the claim by intervals over clips."""
    return judged(attraction_section(as_columns(records), int(records[0]["width"])))
