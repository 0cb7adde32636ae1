r"""Measure every generated token of one clip: transcript → factors at all its positions → one sweep.

Tokens go in groups, each group's leading vectors started from those of the token before it.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from .audio import load_audio
from .engine import BUCKET, Sweep, sweep_tokens
from .provenance import free_memory
from .steps import chosen_steps
from .summary import to_plain
from .tokenwise import Granularity, chain_layers
from .types import Thresholds, refuse
from .whisper import Dims, Transcription, WhisperModel, encode_audio, greedy, token_factors, transcriptions
from .whisper.contexts import DIRECTIONS, Context, context_directions

GROUP = 16  # tokens at once: enough for matrix products, few enough for the caches of a processor


@dataclasses.dataclass(frozen=True)
class ClipMeasurement:
    """Hold what was found at several generated tokens of one clip.

    Attributes
    ----------
    transcription : the greedy transcript.
    steps : generated tokens measured, from 0, end-of-text included.
    granularity : as asked for.
    names : what each layer is.
    sweep : what was found, NumPy arrays with a leading axis for the steps.
    context_size : numbers in the context that enter: frames * D, or the directions chosen.
    """

    transcription: Transcription
    steps: tuple[int, ...]
    granularity: str
    names: tuple[str, ...]
    sweep: Sweep
    context_size: int

    def to_dicts(self) -> dict[int, dict[str, Any]]:
        """Return, per step, the verification as plain values with what belongs to the token."""
        t, found = self.transcription, {}
        for i, step in enumerate(self.steps):
            at = lambda leaf, i=i: leaf[i]
            plain = to_plain(jax.tree.map(at, self.sweep.verification))
            for index, layer in enumerate(plain["layers"]):
                layer |= self._injection(i, index)
            spread = float(self.sweep.log_residual_error[i]), float(self.sweep.log_residual_spectral[i])
            plain["path"] |= {"log_residual_error": spread[0], "log_residual_spectral": spread[1]}
            found[step] = plain | {
                "transcript": t.text,
                "token": t.sequence[t.prompt_length + step],
                "avg_logprob": t.avg_logprob,
                "tokens": list(t.tokens),
                "duration": t.duration,
                "step": step,
                "position": t.position(step),
                "names": list(self.names),
                "context_size": self.context_size,
            }
        return found

    def _injection(self, token: int, layer: int) -> dict[str, Any]:
        s = self.sweep
        sigma = [float(x) for x in s.injection_sigma[token, layer]]
        known = np.isfinite(sigma[0])
        return {
            "injection_norm": float(s.injection_norm[token, layer]),
            "injection_sigma1": sigma[0] if known else None,
            "injection_sigma2": sigma[1] if known else None,
            "injection_error": float(s.injection_residual[token, layer]) if known else None,
        }


def measure_steps(
    model: WhisperModel,
    audio: Any,
    *,
    steps: str | Sequence[int] = "all",
    granularity: Granularity = "block",
    thresholds: Thresholds | None = None,
    tolerance: float | None = None,
    context: Context = "encoder",
    basis: Any = None,
    group: int = GROUP,
    memory: float | None = None,
) -> ClipMeasurement:
    r"""Transcribe a clip and check the theorem at several or all generated tokens.

    Parameters
    ----------
    model : WhisperModel in float32 or float64, which is the precision of every number.
    audio : a sound file, or (n,) samples at 16 kHz, at most one window.
    steps : "all", a list such as "0,2,5-7", or numbers; generated tokens from 0, end-of-text included.
    granularity : "block" or "sub-block".
    thresholds, tolerance : as in `sweep_tokens`.
    context, basis : what counts as the context, as in `context_directions`. Default the whole encoder output; a
        spectrogram or waveform, or any `basis`, enters through so many directions.
    group : tokens at once.
    memory : bytes that may be used beside the model; default what the machine has free.

    Returns
    -------
    ClipMeasurement

    Raises
    ------
    InputError
        Unusable audio, no steps, a step beyond the transcript, a half-precision model, non-finite activations, a
        tolerance below rounding, or more memory than allowed (with a group that would fit).

    Notes
    -----
    The encoder output enters whole; nothing of its size times D is formed. Triplets are proven where the gap allows
    (`certified`), estimates elsewhere.

    References
    ----------
    docs/theory/whisper.md (token scope), docs/theory/rigour.md.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=8, mels=4, frames=10, vocabulary=6, positions=9, encoder_layers=1, encoder_heads=2,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=2, decoder_hidden=8)
    >>> found = measure_steps(random_model(jax.random.key(0), dims), np.zeros(3200, np.float32), steps="0,1")
    >>> found.steps, found.to_dicts()[1]["claims"]["identity"]["verdict"]
    ((0, 1), 'HOLDS')
    """
    if np.dtype(model.dtype).itemsize < 4:
        refuse(f"a model in {np.dtype(model.dtype)}", "float32 or float64, in which the theory is checked", "float32")
    encoded, seconds = encode_audio(model, audio)
    transcription = transcriptions(model, greedy(model, encoded[None]), [seconds])[0]
    wanted = chosen_steps(steps, transcription.steps)
    group = _affordable(model.dims, np.dtype(model.dtype).itemsize, granularity, group, memory)
    directions = None
    if context != "encoder" or basis is not None:
        samples = load_audio(audio)[0] if isinstance(audio, str | os.PathLike) else np.asarray(audio)
        directions = context_directions(model, samples, context, DIRECTIONS if basis is None else basis)
    found, start = [], None
    for first in range(0, len(wanted), group):
        some = wanted[first : first + group]
        positions = [transcription.position(step) for step in some]
        # few shapes are compiled: the last token stands in for what is missing to a multiple
        more = -len(some) % BUCKET
        factors = token_factors(model, encoded, transcription.sequence, positions + positions[-1:] * more)
        bad = [i + 1 for i, f in enumerate(factors) if not bool(np.isfinite(np.asarray(f.state)).all())]
        if bad:
            refuse(f"non-finite activations after block {bad[0]}", "finite numbers", "a checkpoint without NaN")
        one = sweep_tokens(
            factors, granularity, thresholds, tolerance=tolerance, start=start, count=len(some), directions=directions
        )
        start = one.verification.triplets.v[-1]
        found.append(jax.device_get(one))
    layers = chain_layers(model.dims.decoder_layers, granularity)
    return ClipMeasurement(
        transcription=transcription,
        steps=wanted,
        granularity=granularity,
        names=tuple(f"block {x.block + 1}" + ("" if x.part == "block" else f" {x.part}") for x in layers),
        sweep=jax.tree.map(lambda *leaves: np.concatenate(leaves), *found),
        context_size=model.dims.frames * model.dims.width if directions is None else directions.shape[0],
    )


def sweep_bytes(dims: Dims, itemsize: int, granularity: Granularity, tokens: int) -> int:
    """Estimate the memory of a sweep beside the model, in bytes: what grows with D squared or with tokens."""
    d, layers = dims.width, len(chain_layers(dims.decoder_layers, granularity))
    blocks, size = dims.decoder_layers, dims.width // dims.decoder_heads
    token = blocks * (dims.decoder_heads * dims.frames + 2 * d * size + dims.decoder_heads * d + dims.decoder_hidden)
    krylov = 4 * 192 * d  # the longest basis, and what stands beside it while it grows
    shared = blocks * (blocks + 1) // 2 * d * d + 2 * blocks * dims.frames * d
    dense = layers * 6 * d * d + (blocks * (blocks + 1) // 2 + 3 * blocks) * d * d + 3 * dims.frames * d
    return itemsize * (tokens * (token + krylov) + shared + dense)


def _affordable(dims: Dims, itemsize: int, granularity: Granularity, group: int, memory: float | None) -> int:
    """Return the group if it fits into memory; refuse it with one that does otherwise."""
    if group < 1:
        refuse(f"group={group}", "at least one token at once", f"group={GROUP}")
    limit = free_memory() if memory is None else memory
    # a group is filled up to a multiple
    need = lambda tokens: sweep_bytes(dims, itemsize, granularity, -(-tokens // BUCKET) * BUCKET)
    if need(group) <= limit:
        return group
    fits = [tokens for tokens in range(BUCKET, group, BUCKET) if need(tokens) <= limit]
    hint = f"--group {fits[-1]}" if fits else f"--dtype float32, or {need(BUCKET) / 1e9:.2g} GB for --group {BUCKET}"
    refuse(
        f"{group} tokens at once, which take about {need(group) / 1e9:.2g} GB",
        f"at most {limit / 1e9:.2g} GB",
        hint,
    )
