r"""Measure the theorem on a Whisper decoder: audio → transcript → layers at one token → verification.

Here theory and model meet. A decoder token is linearised in token scope (the past frozen), the
injections are described exactly for the full encoder output by Whisper's own structure, and the
chain is carried over to an isometric basis of the context in which every norm is unchanged.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .linearization import OperatorChain, operators
from .profile import depth_profile
from .tokenwise import Granularity
from .types import LayerChain, Thresholds
from .verification import Verification, verify
from .whisper import Transcription, WhisperModel, encode_audio, greedy, transcriptions
from .whisper.chain import TokenLayers, token_layers
from .whisper.injection import cross_factors, injection_gram_pairs

PARTS = 3  # self-attention, cross-attention, MLP
CROSS = 1
SCOPE = (
    "Token scope: keys and values of earlier positions are held fixed, so this is an exact chain for the map with the "
    "past frozen; the total derivative can differ by tens of per cent."
)


@dataclasses.dataclass(frozen=True)
class TokenMeasurement:
    """Hold what was found at one generated token of one clip.

    Attributes
    ----------
    transcription : the greedy transcript.
    step, position : generated token (from 0, end-of-text included) and its residual position.
    names : what each layer is.
    chain : the layers in an isometric context basis of `rank` directions.
    verification : of that chain.
    rank : number of context directions kept, of `context_size` = frames * D.
    gram_error : relative error of squared norms that the change of basis may have brought.
    row_check : largest relative difference between ||v_{k+1}^T G_k|| by the structured formula and by
        one vector-Jacobian product of the model itself.
    profile : bounds and residual by depth, plain lists.
    """

    transcription: Transcription
    step: int
    position: int
    names: tuple[str, ...]
    chain: LayerChain
    verification: Verification
    rank: int
    context_size: int
    gram_error: float
    row_check: float
    profile: dict[str, list[Any]]

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping: the verification with what belongs to the recording."""
        t = self.transcription
        width = self.verification.triplets.u.shape[1]
        return self.verification.to_dict() | {
            "transcript": t.text,
            "avg_logprob": t.avg_logprob,
            "tokens": list(t.tokens),
            "duration": t.duration,
            "step": self.step,
            "position": self.position,
            "names": list(self.names),
            "chance_kappa": chance_alignment(width),
            "context_size": self.context_size,
            "context_rank": self.rank,
            "gram_error": self.gram_error,
            "row_check": self.row_check,
            "profile": self.profile,
            "note": SCOPE,
        }


def chance_alignment(width: int) -> float:
    r"""Return the expected :math:`|\kappa|` of two independent random directions in R^D.

    .. math:: \mathbb E|\kappa| = \frac{\Gamma(D/2)}{\sqrt\pi\,\Gamma((D+1)/2)} \approx \sqrt{2/(\pi D)}

    Examples
    --------
    >>> round(chance_alignment(384), 4), round(chance_alignment(1), 4)
    (0.0407, 1.0)
    """
    return math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi)


def measure_token(
    model: WhisperModel,
    audio: Any,
    *,
    step: int = 0,
    granularity: Granularity = "block",
    thresholds: Thresholds | None = None,
) -> TokenMeasurement:
    r"""Transcribe a clip and check the theorem on the decoder at one generated token.

    .. math:: W_l = \partial h_l/\partial h_{l-1},\qquad G_l = \partial h_l/\partial c,\quad c = \text{encoder output}

    Parameters
    ----------
    model : WhisperModel; its dtype is the chain's (float64 or float32).
    audio : a sound file, or (n,) samples at 16 kHz, at most one window.
    step : generated token n, from 0, end-of-text included; its residual position is len(prompt)-1+n.
    granularity : "block", or "sub-block" for self-attention, cross-attention and MLP apart.
    thresholds : as in `verify`.

    Returns
    -------
    TokenMeasurement

    Raises
    ------
    InputError
        Unusable audio, a step beyond the transcript, a bfloat16 model, non-finite activations.

    Notes
    -----
    The chain ends before the final LayerNorm. G (D x frames*D) is never formed: its Gram matrices
    follow from attention weights and values, O(frames D^2) per pair of layers.

    References
    ----------
    docs/theory/whisper.md (token scope, structured injection, isometric context basis).

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=8, mels=4, frames=10, vocabulary=6, positions=9, encoder_layers=1, encoder_heads=2,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=2, decoder_hidden=8)
    >>> found = measure_token(random_model(jax.random.key(0), dims), np.zeros(3200, np.float32))
    >>> found.names, found.verification.claims["identity"].verdict.name
    (('block 1', 'block 2'), 'HOLDS')
    """
    context, seconds = encode_audio(model, audio)
    transcription = transcriptions(model, greedy(model, context[None]), [seconds])[0]
    position = transcription.position(step)
    sequence = transcription.sequence
    tokens = token_layers(model, context, sequence, position, granularity)
    chain = operators(tokens.layers, tokens.state, tokens.context)
    grams = injection_gram_pairs(cross_factors(model, context, sequence, position))
    if granularity == "block":
        parts = token_layers(model, context, sequence, position, "sub-block")
        grams = _after_mlp(parts, grams)
    else:
        grams = _among_parts(grams)
    short = chain.compress(grams)
    found = verify(short.chain, thresholds)
    return TokenMeasurement(
        transcription=transcription,
        step=step,
        position=position,
        names=tokens.names,
        chain=short.chain,
        verification=found,
        rank=short.rank,
        context_size=chain.context_size,
        gram_error=short.error,
        row_check=_row_check(chain, short.chain, found),
        profile=depth_profile(short.chain, found.triplets).to_dict(chain.depth),
    )


@jax.jit
def _jacobian(layer: Any, h: Any, c: Any) -> Any:
    return jax.jacfwd(layer)(h, c)


def _after_mlp(parts: TokenLayers, grams: Any) -> Any:
    """Turn Gram matrices of cross-attention into those of whole blocks: W_mlp (.) W_mlp^T."""
    h, maps = parts.state, []
    for index, layer in enumerate(parts.layers):
        if index % PARTS == PARTS - 1:
            maps.append(_jacobian(layer, h, parts.context))
        h = layer(h, parts.context)
    w = jnp.stack(maps)
    return jnp.einsum("kab,klbc,ldc->klad", w, grams, w, precision="highest")


def _among_parts(grams: Any) -> Any:
    """Place Gram matrices of cross-attention among sub-blocks whose own injections are zero."""
    depth, _, width, _ = grams.shape
    whole = jnp.zeros((PARTS * depth, PARTS * depth, width, width), grams.dtype)
    cross = np.arange(depth) * PARTS + CROSS
    return whole.at[np.ix_(cross, cross)].set(grams)


def _row_check(chain: OperatorChain, short: Any, found: Verification) -> float:
    """Compare the sizes of v_{k+1}^T G_k by structure and by the model's own VJP."""
    if chain.depth < 2:
        return 0.0
    v = found.triplets.v
    exact = jnp.linalg.norm(chain.vt_g(v), axis=1)
    ours = jnp.linalg.norm(jnp.einsum("ld,ldr->lr", v[1:], short.injections[:-1]), axis=1)
    return float(jnp.max(jnp.where(exact > 0, jnp.abs(ours - exact) / jnp.where(exact > 0, exact, 1.0), ours)))
