"""Hold what a model made of a clip: windows, segments, and the statistics a transcript is judged by."""

import dataclasses
import math
import zlib
from collections.abc import Sequence

import jax
import numpy as np

from ..types import refuse
from .decode import Decoded
from .model import WhisperModel


@dataclasses.dataclass(frozen=True)
class Transcription:
    """Hold what a model made of one window.

    Attributes
    ----------
    text : the transcript; ids in angle brackets when the model has no tokenizer.
    tokens : generated ids, without prompt and end-of-text.
    token_logprobs : log-probability of each generated token, end-of-text included, in nats.
    sequence : prompt, generated ids, end-of-text if it was reached.
    prompt_length : tokens of the prompt.
    finished : whether end-of-text was reached before the length limit.
    avg_logprob : sum of token_logprobs over (number of tokens + 1), in nats.
    no_speech_prob : probability of the no-speech token after start-of-transcript, or None when
        the vocabulary has no such token.
    compression_ratio : bytes of the text over bytes of its zlib form; 0 for an empty text.
    duration : seconds of audio.
    temperature : at which the tokens were drawn; 0 where the likeliest was taken.
    start : where the window starts in its clip, in seconds.
    """

    text: str
    tokens: tuple[int, ...]
    token_logprobs: tuple[float, ...]
    sequence: tuple[int, ...]
    prompt_length: int
    finished: bool
    avg_logprob: float
    no_speech_prob: float | None
    compression_ratio: float
    duration: float
    temperature: float = 0.0
    start: float = 0.0

    @property
    def steps(self) -> int:
        """Number of generated tokens, end-of-text included."""
        return len(self.sequence) - self.prompt_length

    def position(self, step: int) -> int:
        """Return the residual position that predicts the generated token `step`, from 0.

        Raises
        ------
        InputError
            If the transcript has no such step.
        """
        if not 0 <= step < self.steps:
            refuse(f"step {step}", f"0 to {self.steps - 1}, the steps of this transcript", "--step 0")
        return self.prompt_length - 1 + step


@dataclasses.dataclass(frozen=True)
class Segment:
    """Hold one stretch of a transcript.

    Attributes
    ----------
    start, end : seconds in the clip.
    text, tokens : what is said there; tokens include timestamps.
    window : number of the window it comes from, from 0.
    """

    start: float
    end: float
    text: str
    tokens: tuple[int, ...]
    window: int


@dataclasses.dataclass(frozen=True)
class Transcript:
    """Hold what a model made of one clip of any length.

    Attributes
    ----------
    text : of all segments.
    windows : what was decoded, one entry per window, windows dropped as silent included.
    segments : the text with start and end; one per window where no timestamps were predicted.
    language : code of the language in the prompt, or None when the model is English-only.
    language_prob : how likely the detected language is, or None when it was given.
    duration : seconds of audio.
    """

    text: str
    windows: tuple[Transcription, ...]
    segments: tuple[Segment, ...]
    language: str | None
    language_prob: float | None
    duration: float

    @property
    def tokens(self) -> tuple[int, ...]:
        """Generated ids of all windows, without prompts and ends."""
        return tuple(id for window in self.windows for id in window.tokens)

    @property
    def token_logprobs(self) -> tuple[float, ...]:
        """Log-probability of each generated token of all windows, ends included, in nats."""
        return tuple(value for window in self.windows for value in window.token_logprobs)

    @property
    def avg_logprob(self) -> float:
        """Sum of `token_logprobs` over the number of tokens, plus one per window, in nats."""
        return math.fsum(self.token_logprobs) / (len(self.tokens) + len(self.windows))

    @property
    def no_speech_prob(self) -> float | None:
        """Smallest no-speech probability of the windows, or None when the vocabulary has no such token."""
        known = [window.no_speech_prob for window in self.windows if window.no_speech_prob is not None]
        return min(known) if known else None

    @property
    def compression_ratio(self) -> float:
        """Bytes of the whole text over bytes of its zlib form; 0 for an empty text."""
        return compression_ratio(self.text)

    @property
    def finished(self) -> bool:
        """Whether every window reached end-of-text before the length limit."""
        return all(window.finished for window in self.windows)

    @property
    def temperature(self) -> float:
        """Highest temperature that a window was accepted at."""
        return max(window.temperature for window in self.windows)


def compression_ratio(text: str) -> float:
    """Return the bytes of a text over the bytes of its zlib form; 0 for an empty text.

    Examples
    --------
    >>> compression_ratio("no " * 100) > 10, compression_ratio("")
    (True, 0.0)
    """
    raw = text.encode()
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0


def written(model: WhisperModel, ids: Sequence[int]) -> str:
    """Return ids as text, special tokens and timestamps left out; in angle brackets without tokenizer."""
    first = model.generation.first_timestamp
    kept = [id for id in ids if first is None or id < first]
    return model.tokenizer.decode(kept) if model.tokenizer else " ".join(f"<{id}>" for id in kept)


def transcriptions(
    model: WhisperModel,
    decoded: Decoded,
    durations: Sequence[float],
    *,
    temperature: float = 0.0,
    starts: Sequence[float] | None = None,
) -> list[Transcription]:
    """Turn a decoded batch into transcripts.

    Parameters
    ----------
    model : the model that decoded it.
    decoded : of B windows.
    durations : B lengths in seconds.
    temperature : at which it was decoded.
    starts : where each window starts in its clip, in seconds; 0 if absent.
    """
    results = []
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(decoded)]
    starts = [0.0] * len(durations) if starts is None else starts
    for tokens, logprobs, length, finished, no_speech, begin, pad, seconds, at in zip(
        *arrays, durations, starts, strict=True
    ):
        kept = tuple(map(int, tokens[begin : length - bool(finished)]))
        text = written(model, kept)
        scores = tuple(map(float, logprobs[begin:length]))
        results.append(
            Transcription(
                text=text,
                tokens=kept,
                token_logprobs=scores,
                sequence=tuple(map(int, tokens[pad:length])),
                prompt_length=int(begin - pad),
                finished=bool(finished),
                avg_logprob=math.fsum(scores) / (len(kept) + 1),
                no_speech_prob=None if math.isnan(no_speech) else float(no_speech),
                compression_ratio=compression_ratio(text),
                duration=float(seconds),
                temperature=float(temperature),
                start=float(at),
            )
        )
    return results
