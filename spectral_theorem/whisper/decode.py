"""Transcribe: greedy decoding with a key-value cache, compiled once per shape."""

import dataclasses
import functools
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..audio import SAMPLE_RATE, load_audio, log_mel
from ..types import container, refuse
from . import blocks
from .blocks import Cache, Parameters
from .generation import Generation
from .model import WhisperModel, embed, read_out


@dataclasses.dataclass(frozen=True)
class Transcription:
    """Hold what a model made of one clip.

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


@container
class Decoded:
    """Hold a batch of greedily decoded sequences.

    Attributes
    ----------
    tokens : (B, T) int32  prompt, then generated tokens; end-of-text fills the rest.
    logprobs : (B, T)  log-probability of each generated token; 0 elsewhere.
    length : (B,) int32  tokens in use, end-of-text included if it was reached.
    finished : (B,) bool
    no_speech : (B,)  probability of the no-speech token, NaN when there is none.
    """

    tokens: Int[Array, "batch length"]
    logprobs: Float[Array, "batch length"]
    length: Int[Array, " batch"]
    finished: Bool[Array, " batch"]
    no_speech: Float[Array, " batch"]


def greedy(model: WhisperModel, context: Float[Array, "batch frames width"]) -> Decoded:
    """Decode a batch of encoder outputs, taking the likeliest token at every step.

    Parameters
    ----------
    model : prompt, suppressed tokens and longest length come from `model.generation`.
    context : (B, F, D) encoder outputs.

    Returns
    -------
    Decoded
        Log-probabilities are those after suppression.
    """
    dims = model.dims
    return _greedy(model.parameters["decoder"], context, generation=model.generation, heads=dims.decoder_heads)


@functools.partial(jax.jit, static_argnames=("generation", "heads"))
def _greedy(
    parameters: Parameters, context: Float[Array, "batch frames width"], *, generation: Generation, heads: int
) -> Decoded:
    layers = [parameters["layers"][index] for index in sorted(parameters["layers"])]
    cross = [jax.vmap(lambda c, p=p: blocks.cross_keys_values(p, c, heads))(context) for p in layers]
    batch, _, width = context.shape
    longest, prompt = generation.longest, generation.prompt
    vocabulary = parameters["embed_tokens"]["embedding"].shape[0]
    wide = jnp.promote_types(context.dtype, jnp.float32)
    never = _mask(vocabulary, generation.suppress, wide)
    first = never + _mask(vocabulary, generation.suppress_first, wide)

    def step(state: Any) -> Any:
        i, tokens, logprobs, finished, no_speech, caches = state
        h = embed(parameters, tokens[:, i], i)
        kept = []
        for p, (keys, values), kv in zip(layers, caches, cross, strict=True):
            h, (k, v) = jax.vmap(lambda h, k, v, p=p: blocks.self_attention_step(p, h, Cache(k, v, i)))(h, keys, values)
            kept.append((keys.at[:, i].set(k), values.at[:, i].set(v)))
            h = jax.vmap(lambda h, kv, p=p: blocks.cross_attention_rows(p, h[None], kv, heads)[0])(h, kv)
            h = blocks.mlp(p, h)
        logits = read_out(parameters, h).astype(wide)
        if generation.no_speech is not None:
            spoken = jax.nn.softmax(logits)[:, generation.no_speech]
            no_speech = jnp.where(i == 0, spoken, no_speech)
        scores = jax.nn.log_softmax(logits + jnp.where(i + 1 == len(prompt), first, never))
        choice = jnp.where(finished, generation.end, scores.argmax(-1)).astype(tokens.dtype)
        forced = i + 1 < len(prompt)
        chosen = jnp.where(forced, tokens[:, i + 1], choice)
        gained = jnp.take_along_axis(scores, chosen[:, None], axis=1)[:, 0]
        logprobs = logprobs.at[:, i + 1].set(jnp.where(forced | finished, 0.0, gained))
        finished = finished | (~forced & (chosen == generation.end))
        return i + 1, tokens.at[:, i + 1].set(chosen), logprobs, finished, no_speech, kept

    start = np.full(longest, generation.end, np.int32)
    start[: len(prompt)] = prompt
    empty = jnp.zeros((batch, longest, heads, width // heads), context.dtype)
    state = (
        jnp.asarray(0, jnp.int32),
        jnp.tile(jnp.asarray(start), (batch, 1)),
        jnp.zeros((batch, longest), wide),
        jnp.zeros(batch, bool),
        jnp.full(batch, jnp.nan, wide),
        [(empty, empty) for _ in layers],
    )
    going = lambda state: (state[0] + 1 < longest) & ~state[3].all()
    _, tokens, logprobs, finished, no_speech, _ = jax.lax.while_loop(going, step, state)
    generated = (tokens[:, len(prompt) :] != generation.end).sum(1).astype(jnp.int32)
    return Decoded(tokens, logprobs, len(prompt) + generated + finished, finished, no_speech)


def _mask(vocabulary: int, ids: Sequence[int], dtype: Any) -> Float[Array, " vocabulary"]:
    mask = np.zeros(vocabulary)
    mask[list(ids)] = -np.inf
    return jnp.asarray(mask, dtype)


def encode_audio(
    model: WhisperModel, audio: str | os.PathLike[str] | Array | np.ndarray
) -> tuple[Float[Array, "frames width"], float]:
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
    if isinstance(audio, str | os.PathLike):
        samples, _ = load_audio(Path(audio))
        name = str(audio)
    else:
        samples, name = np.asarray(audio), "audio"
        if samples.dtype not in (np.float32, np.float64) or samples.ndim != 1:
            refuse(
                f"{name} of shape {samples.shape}, {samples.dtype}", "(n,) float samples at 16 kHz", "load_audio(path)"
            )
        if samples.size == 0 or not np.isfinite(samples).all():
            refuse(f"{name} that is empty or not finite", "finite samples", "load_audio(path)")
    window = model.dims.window_samples
    if samples.size > window:
        refuse(
            f"{name} of {samples.size / SAMPLE_RATE:.2f} s",
            f"at most one window, {window / SAMPLE_RATE:g} s",
            "cutting it into windows",
        )
    widest = np.float64 if jax.config.jax_enable_x64 else np.float32  # pyright: ignore[reportAttributeAccessIssue]
    mel = log_mel(samples.astype(widest), model.dims.mels, length=window)
    return model.encode(mel), samples.size / SAMPLE_RATE


def transcribe(model: WhisperModel, audio: str | os.PathLike[str] | Array | np.ndarray) -> Transcription:
    """Transcribe one clip of at most one window (30 s), greedily.

    Parameters
    ----------
    model : any Whisper.
    audio : a sound file, or (n,) samples at 16 kHz.

    Returns
    -------
    Transcription

    Raises
    ------
    InputError
        If the audio cannot be used, or is longer than one window.
    """
    context, seconds = encode_audio(model, audio)
    return transcriptions(model, greedy(model, context[None]), [seconds])[0]


def transcriptions(model: WhisperModel, decoded: Decoded, durations: Sequence[float]) -> list[Transcription]:
    """Turn a decoded batch into transcripts.

    Parameters
    ----------
    model : the model that decoded it.
    decoded : of B clips.
    durations : B lengths in seconds.
    """
    start, results = len(model.generation.prompt), []
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(decoded)]
    for tokens, logprobs, length, finished, no_speech, seconds in zip(*arrays, durations, strict=True):
        sequence = tuple(map(int, tokens[:length]))
        kept = sequence[start : length - bool(finished)]
        text = model.tokenizer.decode(kept) if model.tokenizer else " ".join(f"<{id}>" for id in kept)
        scores = tuple(map(float, logprobs[start:length]))
        raw = text.encode()
        results.append(
            Transcription(
                text=text,
                tokens=kept,
                token_logprobs=scores,
                sequence=sequence,
                prompt_length=start,
                finished=bool(finished),
                avg_logprob=math.fsum(scores) / (len(kept) + 1),
                no_speech_prob=None if math.isnan(no_speech) else float(no_speech),
                compression_ratio=len(raw) / len(zlib.compress(raw)) if raw else 0.0,
                duration=float(seconds),
            )
        )
    return results
