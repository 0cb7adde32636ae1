"""The dominant path of a Whisper decoder gains at every layer, λ > 0, on clean speech.

Kind: finding.
Expected: a negative λ at some layer, since directions of neighbouring blocks meet at chance level.
Refuted by: a layer at which the interval of the mean λ lies below 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectral_theorem.layerwise import lambda_map
from spectral_theorem.sections import as_columns
from spectral_theorem.study import CLEAN
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
    return judged(lambda_map(as_columns(records), CLEAN))
