"""The layer explains at least half of the variance of λ; step, clip and stress share the rest.

Kind: finding.
Expected: less than half: λ is mostly a matter of the token in hand.
Refuted by: an interval of the layer's share below one half.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectral_theorem.layerwise import variance_section
from spectral_theorem.sections import as_columns
from spectral_theorem.trials import CARRIED, judged, trial_clips, trial_model, trial_rows


@dataclass(frozen=True)
class Config:
    """Which model, on which recordings; numbers are small enough to try."""

    model: str = CARRIED
    audio: str = CARRIED
    digits: int = 0
    clips: int = 4
    stress: str = "noise=0"
    talkers: str = ""
    steps: str = "2"
    dtype: str = "float64"
    seed: int = 0


def run(config: Config) -> list[dict[str, Any]]:
    """Measure clips, clean and stressed; a row per step and layer."""
    model = trial_model(config.model, config.dtype)
    clips = trial_clips(config.audio, digits=config.digits, count=config.clips, seed=config.seed)
    layers, _ = trial_rows(
        model, clips, stress=config.stress, steps=config.steps, talkers=config.talkers, seed=config.seed
    )
    return layers


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Judge the claim by intervals over clips."""
    return judged(variance_section(as_columns(records)))
