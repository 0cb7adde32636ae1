"""Say how to decode: every choice that is the user's and not the checkpoint's."""

import dataclasses
import math

from ..types import refuse

FALLBACK = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TIMESTAMP_SECONDS = 0.02


@dataclasses.dataclass(frozen=True)
class DecodingOptions:
    """Hold the choices of one transcription; the defaults take the likeliest token at every step.

    Parameters
    ----------
    language : two- or three-letter code. None takes the language that was fixed at loading, and
        else detects it for every clip, if the model is multilingual.
    task : "transcribe", "translate" (into English), or None for the task of the model's prompt.
    timestamps : True has the model predict where segments start and end, False does not, None
        does so for audio longer than one window if the vocabulary has timestamps.
    temperatures : tried in turn until a result is accepted; 0 takes the likeliest token, a
        positive temperature draws. `FALLBACK` is the customary sequence.
    max_compression_ratio : a result whose text compresses better is not accepted: it repeats itself.
    min_avg_logprob : a result less likely on average is not accepted, in nats per token.
    no_speech_threshold : drop a window when the no-speech probability is above this and the average
        log-probability below `min_avg_logprob`; None never drops one. 0.6 is customary.
    condition_on_previous : give the model the text of earlier windows, except text that was drawn
        at a temperature above 0.5.
    initial_prompt : text to be taken for what was said before.
    max_initial_timestamp : the first timestamp is at most this, in seconds; None sets no limit.
    longest : most tokens to generate per window; None for what the model allows.

    Raises
    ------
    InputError
        If a number is out of range.

    Examples
    --------
    >>> DecodingOptions(temperatures=FALLBACK).temperatures[1]
    0.2
    >>> DecodingOptions(task="summarise")
    Traceback (most recent call last):
    ...
    spectral_theorem.types.InputError: got task='summarise'; expected transcribe or translate; try task='transcribe'
    """

    language: str | None = None
    task: str | None = None
    timestamps: bool | None = None
    temperatures: tuple[float, ...] = (0.0,)
    max_compression_ratio: float | None = 2.4
    min_avg_logprob: float | None = -1.0
    no_speech_threshold: float | None = None
    condition_on_previous: bool = False
    initial_prompt: str | None = None
    max_initial_timestamp: float | None = 1.0
    longest: int | None = None

    def __post_init__(self) -> None:
        if self.task not in (None, "transcribe", "translate"):
            refuse(f"task={self.task!r}", "transcribe or translate", "task='transcribe'")
        fine = [math.isfinite(t) and t >= 0 for t in self.temperatures]
        if not fine or not all(fine):
            refuse(f"temperatures={self.temperatures}", "one or more finite numbers >= 0", "temperatures=(0.0,)")
        limit = self.max_initial_timestamp
        if limit is not None and not limit >= 0:
            refuse(f"max_initial_timestamp={limit}", "seconds >= 0, or None", "max_initial_timestamp=1.0")
        if self.longest is not None and self.longest < 1:
            refuse(f"longest={self.longest}", "at least 1 token", "longest=224")
