"""λ tells hallucinated from surviving clips better than the average log-probability does.

Kind: finding.
Expected: no: the average log-probability is the better of the two.
Refuted by: an interval of the difference of AUROCs below 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spectral_theorem.prediction import prediction_section
from spectral_theorem.sections import as_columns
from spectral_theorem.study import CLEAN
from spectral_theorem.trials import CARRIED, judged, trial_clips, trial_model, trial_rows


@dataclass(frozen=True)
class Config:
    """Which model, on which recordings; numbers are small enough to try."""

    model: str = CARRIED
    audio: str = CARRIED
    digits: int = 0
    clips: int = 6
    stress: str = "noise=0"
    talkers: str = ""
    steps: str = "2"
    dtype: str = "float64"
    seed: int = 0


def run(config: Config) -> list[dict[str, Any]]:
    """Measure clips, clean and stressed; a row per clip."""
    model = trial_model(config.model, config.dtype)
    clips = trial_clips(config.audio, digits=config.digits, count=config.clips, seed=config.seed)
    _, scores = trial_rows(
        model, clips, stress=config.stress, steps=config.steps, talkers=config.talkers, seed=config.seed
    )
    return scores


def stressed(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Leave out clean clips, which nobody needs to tell apart."""
    return [record for record in records if record["condition"] != CLEAN]


def verdict(records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Judge the claim by intervals over clips."""
    return judged(prediction_section(as_columns(stressed(records))))
