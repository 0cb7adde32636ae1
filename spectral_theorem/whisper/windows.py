"""Transcribe audio of any length: windows one after another, several clips at a time."""

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from ..audio import SAMPLE_RATE, load_audio, log_mel
from ..types import refuse
from .decode import decode, language_probabilities
from .model import WhisperModel
from .options import DecodingOptions
from .parallel import over_clips, replicate
from .passes import encode
from .prompts import prompt_head, prompt_tail
from .stitch import pieces
from .transcript import Segment, Transcript, Transcription, transcriptions, written

Audio = str | os.PathLike[str] | Array | np.ndarray
FORGET_ABOVE = 0.5
BUCKET = 32
_DEFAULT = DecodingOptions()


def encode_audio(model: WhisperModel, audio: Audio) -> tuple[Float[Array, "frames width"], float]:
    """Return the encoder output of one clip, and the clip's length in seconds.

    Parameters
    ----------
    model : any Whisper.
    audio : a sound file, or (n,) samples at 16 kHz.

    Returns
    -------
    context : (F, D), in the model's dtype.
    seconds : float

    Raises
    ------
    InputError
        If the audio cannot be used, or is longer than one window of the model (30 s).

    Notes
    -----
    The spectrogram is computed in float64 when JAX's 64-bit mode is on, whatever the model's dtype.
    """
    samples = read_samples(audio)
    window = model.dims.window_samples
    if samples.size > window:
        refuse(
            f"{audio if isinstance(audio, str | os.PathLike) else 'audio'} of {samples.size / SAMPLE_RATE:.2f} s",
            f"at most one window, {window / SAMPLE_RATE:g} s",
            "cutting it into windows",
        )
    return model.encode(_mel(model, samples)), samples.size / SAMPLE_RATE


def transcribe(
    model: WhisperModel,
    audio: Audio,
    options: DecodingOptions = _DEFAULT,
    *,
    key: Key[Array, ""] | None = None,
) -> Transcript:
    """Transcribe one clip of any length.

    Parameters
    ----------
    model : any Whisper.
    audio : a sound file, or (n,) samples at 16 kHz.
    options : how to decode; by default the likeliest token at every step.
    key : PRNG key; needed when a temperature is positive.

    Returns
    -------
    Transcript

    Raises
    ------
    InputError
        If the audio cannot be used, the options do not fit the model, or a key is missing.

    Notes
    -----
    Audio longer than one window (30 s) is read window by window. Where the model predicts
    timestamps, a window starts where the last whole segment ended, else behind the window before.
    Every window has its own spectrogram, clamped 8 below its own maximum; reference
    implementations clamp below the maximum of the whole recording.

    References
    ----------
    A. Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2022, section 4.5.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=1, decoder_heads=1, decoder_hidden=8)
    >>> found = transcribe(random_model(jax.random.key(0), dims), np.zeros(2000, np.float32))
    >>> found.duration, len(found.windows)
    (0.125, 2)
    """
    return transcribe_many(model, [audio], options, keys=None if key is None else [key])[0]


def transcribe_many(
    model: WhisperModel,
    clips: Sequence[Audio],
    options: DecodingOptions = _DEFAULT,
    *,
    keys: Sequence[Key[Array, ""]] | None = None,
    batch: int = 8,
    mesh: Mesh | None = None,
) -> list[Transcript]:
    """Transcribe clips, several windows at a time.

    Parameters
    ----------
    model : any Whisper.
    clips : sound files or (n,) samples at 16 kHz; at least one.
    options : how to decode, the same for all.
    keys : one PRNG key per clip; needed when a temperature is positive.
    batch : most windows decoded together; a clip decodes alone as in a batch, up to rounding.
    mesh : devices to share each batch, from `clip_mesh`.

    Returns
    -------
    list of Transcript
        In the order of the clips.

    Raises
    ------
    InputError
        As `transcribe`. All clips are read before the first is decoded.
    """
    if batch < 1:
        refuse(f"batch={batch}", "at least 1", "batch=8")
    if max(options.temperatures) > 0 and keys is None:
        refuse(f"temperatures={options.temperatures} without a key", "a PRNG key", "key=jax.random.key(0)")
    if keys is not None and len(keys) != len(clips):
        refuse(f"{len(keys)} keys for {len(clips)} clips", "one per clip", "jax.random.split(key, len(clips))")
    return _Job(model, [read_samples(clip) for clip in clips], options, keys, batch, mesh).run()


@dataclasses.dataclass
class _Clip:
    """Hold one clip and what has been heard of it so far."""

    samples: np.ndarray
    timestamps: bool
    language: str | None
    language_prob: float | None = None
    earlier: list[int] = dataclasses.field(default_factory=list)
    windows: dict[int, Transcription] = dataclasses.field(default_factory=dict)
    segments: dict[int, list[Segment]] = dataclasses.field(default_factory=dict)


class _Job:
    """Run clips through one model: take windows that can be decoded now, decode them together, go on."""

    def __init__(
        self,
        model: WhisperModel,
        clips: Sequence[np.ndarray],
        options: DecodingOptions,
        keys: Sequence[Key[Array, ""]] | None,
        batch: int,
        mesh: Mesh | None,
    ) -> None:
        generation, window = model.generation, model.dims.window_samples
        self.model, self.options, self.keys, self.batch, self.mesh = model, options, keys, batch, mesh
        prompt_tail(generation, language=options.language, task=options.task, timestamps=bool(options.timestamps))
        can = generation.first_timestamp is not None
        wanted = lambda n: (can and n > window) if options.timestamps is None else options.timestamps
        language = (options.language or generation.language) if generation.multilingual else None
        self.clips = [_Clip(samples, wanted(samples.size), language) for samples in clips]
        if options.initial_prompt and model.tokenizer:
            spoken = model.tokenizer.encode(" " + options.initial_prompt.strip())
            for clip in self.clips:
                clip.earlier.extend(spoken)
        self.parameters = replicate(model.parameters, mesh)
        self.chained = options.condition_on_previous
        # A prompt of earlier text takes half of the positions at most, so that a window of new text fits behind it.
        self.room = model.dims.positions // 2 if self.chained or options.initial_prompt else 0

    def run(self) -> list[Transcript]:
        """Decode everything."""
        window = self.model.dims.window_samples
        queue: collections.deque[tuple[int, int]] = collections.deque()
        for number, clip in enumerate(self.clips):
            ahead = clip.timestamps or self.chained
            queue.extend((number, at) for at in ([0] if ahead else range(0, clip.samples.size, window)))
        while queue:
            now = [queue.popleft() for _ in range(min(self.batch, len(queue)))]
            for tails in self._alike(now):
                for number, at, step in self._decode(tails):
                    clip = self.clips[number]
                    after = at + step
                    if (clip.timestamps or self.chained) and after < clip.samples.size:
                        queue.append((number, after))
        return [self._whole(clip) for clip in self.clips]

    def _alike(self, items: Sequence[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
        """Split windows by whether they get timestamps: that is two different loops."""
        for timestamps in (False, True):
            if chosen := [item for item in items if self.clips[item[0]].timestamps == timestamps]:
                yield chosen

    def _decode(self, items: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
        """Decode windows (clip, first sample), keep them, and return how far each clip may advance."""
        options, window = self.options, self.model.dims.window_samples
        sounds = [self.clips[number].samples[at : at + window] for number, at in items]
        context = self._encode(sounds)
        self._detect(items, context)
        timestamps = self.clips[items[0][0]].timestamps
        accepted: dict[int, Transcription] = {}
        for attempt, temperature in enumerate(options.temperatures):
            rows = [row for row in range(len(items)) if row not in accepted]
            last = attempt == len(options.temperatures) - 1
            for row, found in zip(
                rows, self._attempt(items, context, rows, attempt, temperature, timestamps), strict=True
            ):
                if last or not needs_fallback(found, options):
                    accepted[row] = found
            if len(accepted) == len(items):
                break
        return [self._keep(number, at, accepted[row]) for row, (number, at) in enumerate(items)]

    def _encode(self, sounds: Sequence[np.ndarray]) -> Float[Array, "batch frames width"]:
        model = self.model
        mels = jnp.stack([_mel(model, sound) for sound in _filled(sounds)]).astype(model.dtype)
        return over_clips(_Encoder(model.dims.encoder_heads), self.mesh, self.parameters["encoder"], mels)

    def _detect(self, items: Sequence[tuple[int, int]], context: Array) -> None:
        """Find the language of clips that are new, if nobody has said it."""
        if not self.model.generation.multilingual:
            return
        if all(self.clips[number].language is not None for number, _ in items):
            return
        codes = [code for code, _ in self.model.generation.languages]
        for (number, _), row in zip(items, np.asarray(language_probabilities(self.model, context)), strict=False):
            clip = self.clips[number]
            if clip.language is None:
                clip.language, clip.language_prob = codes[int(row.argmax())], float(row.max())

    def _attempt(
        self,
        items: Sequence[tuple[int, int]],
        context: Array,
        rows: Sequence[int],
        attempt: int,
        temperature: float,
        timestamps: bool,
    ) -> list[Transcription]:
        """Decode some rows at one temperature."""
        model, options = self.model, self.options
        generation, window = model.generation, model.dims.window_samples
        chosen = [items[row] for row in rows]
        prompts, tail = [], 0
        for number, at in chosen:
            clip = self.clips[number]
            ending = prompt_tail(generation, language=clip.language, task=options.task, timestamps=timestamps)
            tail = len(ending)
            earlier = clip.earlier if self.chained or at == 0 else ()
            prompts.append((*prompt_head(generation, earlier, self.room), *ending))
        longest = max(map(len, prompts))
        new = min(generation.longest, model.dims.positions - self.room) - tail
        new = new if options.longest is None else min(new, options.longest)
        places = np.asarray(_filled(rows))
        draws = None
        if temperature > 0 and self.keys is not None:
            fold = jax.random.fold_in
            draws = [fold(fold(self.keys[number], at), attempt) for number, at in (items[row] for row in places)]
            draws = jnp.stack(draws)
        decoded = decode(
            model,
            context[places],
            _filled(prompts),
            tail=tail,
            # Few widths, few compilations.
            width=min(-(-(longest - tail) // BUCKET) * BUCKET, self.room) + tail,
            new=new,
            timestamps=timestamps,
            max_initial_timestamp=options.max_initial_timestamp,
            temperature=temperature,
            keys=draws,
            mesh=self.mesh,
            parameters=self.parameters["decoder"],
        )
        ends = [min(at + window, self.clips[number].samples.size) for number, at in chosen]
        seconds = [(end - at) / SAMPLE_RATE for (_, at), end in zip(chosen, ends, strict=True)]
        kept = jax.tree.map(lambda x: x[: len(rows)], decoded)
        starts = [at / SAMPLE_RATE for _, at in chosen]
        return transcriptions(model, kept, seconds, temperature=temperature, starts=starts)

    def _keep(self, number: int, at: int, found: Transcription) -> tuple[int, int, int]:
        model, options, clip = self.model, self.options, self.clips[number]
        first = model.generation.first_timestamp if clip.timestamps else None
        cut, step = pieces(found.tokens, first, found.duration, model.dims.window_samples / SAMPLE_RATE)
        clip.windows[at], clip.segments[at] = found, []
        if _silent(found, options):
            return number, at, model.dims.window_samples
        for piece in cut:
            text = written(model, piece.tokens)
            if text:
                # A model may well name a time behind the end of the sound.
                start, end = (found.start + min(at, found.duration) for at in (piece.start, piece.end))
                clip.segments[at].append(Segment(start, end, text, piece.tokens, 0))
        if self.chained:
            if found.temperature > FORGET_ABOVE:
                clip.earlier.clear()
            else:
                clip.earlier.extend(id for piece in cut for id in piece.tokens)
        return number, at, round(step * SAMPLE_RATE)

    def _whole(self, clip: _Clip) -> Transcript:
        order = sorted(clip.windows)
        segments = [
            dataclasses.replace(segment, window=place)
            for place, at in enumerate(order)
            for segment in clip.segments[at]
        ]
        return Transcript(
            # As one, so that the vocabulary's own spaces stand between segments, or none where a language has none.
            text=written(self.model, [id for segment in segments for id in segment.tokens]),
            windows=tuple(clip.windows[at] for at in order),
            segments=tuple(segments),
            language=clip.language,
            language_prob=clip.language_prob,
            duration=clip.samples.size / SAMPLE_RATE,
        )


def needs_fallback(found: Transcription, options: DecodingOptions) -> bool:
    """Say whether a result is to be decoded again at the next temperature.

    Parameters
    ----------
    found : what was decoded.
    options : its limits.

    Returns
    -------
    bool
        True where the text repeats itself or is unlikely, unless the window is taken to be silent.
    """
    repeats = options.max_compression_ratio is not None and found.compression_ratio > options.max_compression_ratio
    unlikely = options.min_avg_logprob is not None and found.avg_logprob < options.min_avg_logprob
    return (repeats or unlikely) and not _silent(found, options)


def _silent(found: Transcription, options: DecodingOptions) -> bool:
    if options.no_speech_threshold is None or found.no_speech_prob is None:
        return False
    likely = options.min_avg_logprob is not None and found.avg_logprob >= options.min_avg_logprob
    return found.no_speech_prob > options.no_speech_threshold and not likely


def _filled(rows: Sequence[Any]) -> list[Any]:
    """Repeat the last row up to a power of two: few batch sizes, few compilations."""
    wanted = 1 << (len(rows) - 1).bit_length()
    return [*rows, *([rows[-1]] * (wanted - len(rows)))]


@dataclasses.dataclass(frozen=True)
class _Encoder:
    """Encode, as a function that is found again by its heads."""

    heads: int

    def __call__(self, parameters: Any, mel: Array) -> Array:
        return encode(parameters, mel, heads=self.heads)


def read_samples(audio: Audio) -> np.ndarray:
    """Return what a user passed as audio as samples at 16 kHz, (n,).

    Raises
    ------
    InputError
        If it cannot be read, or is empty, not finite, or of another shape.
    """
    if isinstance(audio, str | os.PathLike):
        return load_audio(Path(audio))[0]
    samples = np.asarray(audio)
    if samples.dtype not in (np.float32, np.float64) or samples.ndim != 1:
        refuse(f"audio of shape {samples.shape}, {samples.dtype}", "(n,) float samples at 16 kHz", "load_audio(path)")
    if samples.size == 0 or not np.isfinite(samples).all():
        refuse("audio that is empty or not finite", "finite samples", "load_audio(path)")
    return samples


def _mel(model: WhisperModel, samples: np.ndarray) -> Float[Array, "mels frames"]:
    """Return the spectrogram of one window; one length, so that one program serves every clip."""
    window = model.dims.window_samples
    widest = np.float64 if jax.config.jax_enable_x64 else np.float32  # pyright: ignore[reportAttributeAccessIssue]
    padded = np.zeros(window, widest)
    padded[: samples.size] = samples
    return log_mel(padded, model.dims.mels, length=window)
