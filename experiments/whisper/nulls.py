"""Neighbouring blocks of a trained decoder are better aligned than blocks turned at random.

Kind: finding.
Expected: hardly: |κ| near its chance level.
Refuted by: an interval of the paired difference of |κ| below 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectral_theorem.chance import chance_section
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
    draws: int = 1
    dtype: str = "float64"
    seed: int = 0


def run(config: Config) -> list[dict[str, Any]]:
    """Measure clips, clean and stressed; a row per chain and its nulls."""
    model = trial_model(config.model, config.dtype)
    clips = trial_clips(config.audio, digits=config.digits, count=config.clips, seed=config.seed)
    rows = trial_details(
        model,
        clips,
        topics=("chance",),
        stress=config.stress,
        steps=config.steps,
        talkers=config.talkers,
        seed=config.seed,
        draws=config.draws,
    )
    return rows


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Judge the claim by intervals over clips."""
    return judged(chance_section(as_columns(records)))
