r"""Write down the propagators of a clip's tokens, as they are and with one thing about them changed.

What LayerNorm, the residual connection, the cut into layers, the past and the precision do to a number is asked by
measuring it with and without. The tokens stay those that the unchanged model wrote.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .chaingains import Gains, chain_gains
from .scopes import sequence_chain, sequence_triplets
from .steps import spaced_steps
from .types import LayerChain, refuse
from .whisper import (
    Transcription,
    WhisperModel,
    encode_audio,
    greedy,
    initial_model,
    sequence_maps,
    token_factors,
    token_jacobians,
    transcriptions,
)
from .whisper.checkpoint import build
from .whisper.sensitivity import NormFactors, propagators

VARIANTS = (
    "plain",
    "sub-block",
    "frozen LayerNorm",
    "no identity",
    "bfloat16 weights",
    "bfloat16",
)

SEQUENCE_TOLERANCE = 1e-8  # residual of the triplets of a whole sequence, relative to the largest singular value


@dataclasses.dataclass(frozen=True)
class ClipTokens:
    """Hold a clip as a model wrote it down, and at which of its tokens to look.

    Attributes
    ----------
    encoded : (F, D)  encoder output.
    transcription : greedy.
    steps : generated tokens, from 0, end of text included.
    samples : (n,) the clip at 16 kHz.
    """

    encoded: Any
    transcription: Transcription
    steps: tuple[int, ...]
    samples: Any

    @property
    def positions(self) -> list[int]:
        """Places of the steps in the sequence."""
        return [self.transcription.position(step) for step in self.steps]


def clip_tokens(model: WhisperModel, samples: Any, steps: str = "16") -> ClipTokens:
    """Transcribe a clip greedily and choose steps.

    Parameters
    ----------
    model : any Whisper. samples : (n,) at 16 kHz; beyond the model's window they are not heard.
    steps : as `spaced_steps` takes it.

    Raises
    ------
    InputError
        As `encode_audio`, or steps of which the transcript has none.
    """
    samples = samples[: model.dims.window_samples]
    encoded, seconds = encode_audio(model, samples)
    found = transcriptions(model, greedy(model, encoded[None]), [seconds])[0]
    chosen = spaced_steps(steps, found.steps)
    if not chosen:
        refuse(f"--steps {steps} for a transcript of {found.steps}", "at least one of its steps", "--steps 16")
    return ClipTokens(encoded, found, chosen, samples)


def token_propagators(model: WhisperModel, clip: ClipTokens, variant: str = "plain") -> Any:
    r"""Return dense propagators at the steps of a clip, with one thing changed.

    Parameters
    ----------
    model : the model that wrote the clip's tokens down, in float32 or float64.
    clip : from `clip_tokens`.
    variant : "plain"; "sub-block" (three layers per block); "frozen LayerNorm" (its deviation held constant, so that it
        only centres and scales); "no identity" (:math:`W-I`, what a block adds); "bfloat16 weights" (rounded weights,
        the same arithmetic); "bfloat16" (weights, activations and derivatives, the audio as well).

    Returns
    -------
    (T, L, D, D)
        In the dtype of the model, also for bfloat16.

    Raises
    ------
    InputError
        For an unknown variant.

    Notes
    -----
    Differences between variants are paired: the same tokens at the same places, the past of the model itself.

    References
    ----------
    docs/guides/sensitivity.md#ablations.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=8, mels=4, frames=10, vocabulary=6, positions=9, encoder_layers=1, encoder_heads=2,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=2, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> clip = clip_tokens(model, np.zeros(3200, np.float32), "1")
    >>> token_propagators(model, clip).shape, token_propagators(model, clip, "sub-block").shape
    ((1, 2, 8, 8), (1, 6, 8, 8))
    """
    if variant not in VARIANTS:
        refuse(f"variant={variant!r}", " or ".join(map(repr, VARIANTS)), "variant='plain'")
    tokens, encoded = clip.transcription.sequence, clip.encoded
    if variant.startswith("bfloat16"):
        narrow = in_dtype(model, jnp.bfloat16)
        if variant == "bfloat16 weights":
            narrow = in_dtype(narrow, model.dtype)
        found = token_jacobians(narrow, encode_audio(narrow, clip.samples)[0], tokens, clip.positions)
    elif variant == "frozen LayerNorm":
        factors = [_frozen(f) for f in token_factors(model, encoded, tokens, clip.positions)]
        found = jnp.stack([propagators(f) for f in factors])
    else:
        granularity = "sub-block" if variant == "sub-block" else "block"
        found = token_jacobians(model, encoded, tokens, clip.positions, granularity)
    found = jnp.swapaxes(found, 0, 1).astype(model.dtype)
    return found - jnp.eye(found.shape[-1], dtype=found.dtype) if variant == "no identity" else found


def _frozen(factors: Any) -> Any:
    """Take the change of the deviations out of a block's LayerNorms; centring is linear and stays."""
    norms = tuple(NormFactors(jnp.zeros_like(n.unit), n.scale) for n in factors.norms)
    return dataclasses.replace(factors, norms=norms)


def in_dtype(model: WhisperModel, dtype: Any) -> WhisperModel:
    """Return the same model with its weights rounded to another dtype, in which it computes."""
    parameters = model.parameters

    def read(path: Any) -> Any:
        leaf: Any = parameters
        for name in path:
            leaf = leaf[name]
        return leaf

    return build(
        model.dims, read, jnp.dtype(dtype), generation=model.generation, tokenizer=model.tokenizer, label=model.label
    )


def untrained(key: Any, model: WhisperModel) -> WhisperModel:
    """Return a model of the same shape with the weights that training starts from: the first null.

    Parameters
    ----------
    key : PRNG key. model : any Whisper; its dtype, vocabulary and prompt are kept.
    """
    fresh = initial_model(
        key,
        model.dims,
        generation=model.generation,
        tokenizer=model.tokenizer,
        label=f"untrained, shaped as {model.label}",
    )
    return in_dtype(fresh, model.dtype)


@jax.jit
def token_gains(w: Any) -> Gains:
    """Return the `Gains` of (T, L, D, D) propagators, a token at a time; every array gets a leading axis T."""
    return jax.lax.map(lambda one: chain_gains(LayerChain(one)), w)


def summarised(gains: Gains) -> dict[str, float]:
    r"""Return the headline numbers of a clip: means over tokens and layers.

    Parameters
    ----------
    gains : of T tokens, from `token_gains`.

    Returns
    -------
    dict
        `lam`, `kappa_abs`, `sigma1`, `xi`; `growth`, :math:`\log\|W_L\cdots W_1\|` of the whole decoder, nats;
        `unexplained`, by how much that exceeds the dominant path's; `resolved`, the share of couplings whose vectors
        are known. Couplings that are not resolved, and :math:`\kappa=0`, enter no mean.
    """
    resolved = np.asarray(gains.resolved)
    both = resolved[:, 1:] & resolved[:, :-1] & (np.asarray(gains.kappa_abs) > 0)
    mean = lambda x, keep: float(np.asarray(x)[keep].mean()) if keep.any() else float("nan")
    whole = np.asarray(gains.log_norm)[:, 0]
    paths = both.all(axis=1)
    return {
        "lam": mean(gains.lam, both),
        "kappa_abs": mean(gains.kappa_abs, both),
        "sigma1": float(np.mean(gains.sigma1)),
        "xi": float(np.mean(gains.xi)),
        "growth": float(whole.mean()),
        "unexplained": mean(whole - np.asarray(gains.log_dominant)[:, 0], paths),
        "resolved": float(both.mean()) if both.size else 1.0,
    }


def sequence_summary(model: WhisperModel, clip: ClipTokens) -> dict[str, float]:
    r"""Return `lam`, `kappa_abs`, `sigma1`, `xi` and `resolved` of the whole sequence's chain, nothing frozen.

    Parameters
    ----------
    model, clip : as in `token_propagators`; the sequence ends with the last step.

    Notes
    -----
    Converged estimates; layers that did not converge, and couplings whose vectors are not resolved, enter no mean. To a
    residual of 1e-8: angles then err by that over the gap, which no mean over clips could tell, at half the cost.
    """
    until = clip.transcription.sequence[: clip.positions[-1] + 1]
    tolerance = max(SEQUENCE_TOLERANCE, 64 * float(jnp.finfo(model.dtype).eps))
    t = sequence_triplets(sequence_chain(sequence_maps(model, clip.encoded, until)), tolerance=tolerance)
    known, resolved = np.isfinite(np.asarray(t.residual)), np.asarray(t.resolved)
    both = resolved[1:] & resolved[:-1] & (np.abs(np.asarray(t.kappa)) > 0)
    mean = lambda x, keep: float(np.asarray(x)[keep].mean()) if keep.any() else float("nan")
    return {
        "lam": mean(t.lam, both),
        "kappa_abs": mean(np.abs(np.asarray(t.kappa)), both),
        "sigma1": mean(t.sigma[:, 0], known),
        "xi": mean(t.xi, known),
        "resolved": float(both.mean()) if both.size else 1.0,
    }


def same_tokens(model: WhisperModel, clip: ClipTokens) -> ClipTokens:
    """Let another model of the same vocabulary hear a clip and be told the same tokens.

    Parameters
    ----------
    model : say, an untrained one. clip : of the model that wrote the tokens.
    """
    encoded, _ = encode_audio(model, clip.samples)
    return dataclasses.replace(clip, encoded=encoded)
