"""The sign of the mean λ does not depend on LayerNorm, the identity, the cut into layers or the precision.

Kind: finding.
Expected: one sign throughout.
Refuted by: a variant whose interval lies on the other side of 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectral_theorem.ablations import ablation_section
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
    sequences: int = 0
    dtype: str = "float64"
    seed: int = 0


def run(config: Config) -> list[dict[str, Any]]:
    """Measure clips, clean and stressed; a row per variant."""
    model = trial_model(config.model, config.dtype)
    clips = trial_clips(config.audio, digits=config.digits, count=config.clips, seed=config.seed)
    rows = trial_details(
        model,
        clips,
        topics=("ablations",),
        stress=config.stress,
        steps=config.steps,
        talkers=config.talkers,
        seed=config.seed,
        sequences=config.sequences,
    )
    return rows


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Judge the claim by intervals over clips."""
    return judged(ablation_section(as_columns(records)))
