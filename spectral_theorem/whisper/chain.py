r"""Take the decoder apart at one token: layers as pure functions (h, c) -> h'.

The state is the residual stream of one position, the context is the encoder output, and the keys
and values of earlier positions are held constant: an exact chain for the map with the past frozen.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..types import container, refuse
from . import blocks
from .blocks import Cache, Parameters
from .model import WhisperModel
from .passes import Record, decoder_records

Layer = Callable[[Float[Array, " width"], Float[Array, "frames width"]], Float[Array, " width"]]
_BUCKET = 32


@dataclasses.dataclass(frozen=True)
class TokenLayers:
    """Hold one decoder token's layers, with the point at which to linearise them.

    Attributes
    ----------
    layers : functions (h, c) -> h', in order. Each is a `jax.tree_util.Partial` of one function
        shared by all layers of its kind, so it may be passed *into* a jitted function, which then
        compiles once for all of them.
    names : what each layer is, such as "block 1" or "block 1 cross-attention"; blocks count from 1.
    state : (D,)  residual stream before the first block.
    context : (F, D)  encoder output.
    position : place of the token in the sequence, from 0.
    """

    layers: tuple[Layer, ...]
    names: tuple[str, ...]
    state: Float[Array, " width"]
    context: Float[Array, "frames width"]
    position: int


def _block(
    parameters: Parameters, cache: Cache, h: Float[Array, " width"], c: Float[Array, "frames width"]
) -> Float[Array, " width"]:
    return blocks.decoder_block(parameters, h, c, cache)


def _self(
    parameters: Parameters, cache: Cache, h: Float[Array, " width"], c: Float[Array, "frames width"]
) -> Float[Array, " width"]:
    return blocks.self_attention(parameters, h, cache)


def _cross(
    parameters: Parameters, cache: Cache, h: Float[Array, " width"], c: Float[Array, "frames width"]
) -> Float[Array, " width"]:
    return blocks.cross_attention(parameters, h, c, cache.keys.shape[-2])


def _mlp(
    parameters: Parameters, cache: Cache, h: Float[Array, " width"], c: Float[Array, "frames width"]
) -> Float[Array, " width"]:
    return blocks.mlp(parameters, h)


KINDS: dict[str, tuple[tuple[str, Any], ...]] = {
    "block": (("", _block),),
    "sub-block": ((" self-attention", _self), (" cross-attention", _cross), (" MLP", _mlp)),
}


def token_layers(
    model: WhisperModel,
    encoder_output: Array,
    tokens: Sequence[int],
    position: int,
    granularity: str = "block",
) -> TokenLayers:
    r"""Return the decoder's layers at one position, the past frozen.

    .. math:: h_l = F_l(h_{l-1}, c; K_{<t}, V_{<t}), \qquad h_0 = E_{x_t} + P_t

    Parameters
    ----------
    model : any Whisper; its dtype is the dtype of the chain.
    encoder_output : (F, D)  c, from `encode_audio` or `model.encode`.
    tokens : the sequence, prompt first; tokens after `position` are not used.
    position : t, from 0. The generated token n is predicted at len(prompt) - 1 + n.
    granularity : "block", or "sub-block" for self-attention, cross-attention and MLP apart.

    Returns
    -------
    TokenLayers
        L layers, or 3L.

    Raises
    ------
    InputError
        If the position is not in the sequence, a token is not in the vocabulary, the sequence is
        longer than the model allows, or the encoder output has another shape or dtype than the model's.

    Notes
    -----
    One decoder run over the sequence, padded to a multiple of 32 positions so that positions and
    clips share compiled code. Keys and values of earlier positions depend on c too; that
    dependence is not part of these layers, and the total derivative may differ by tens of per cent.

    References
    ----------
    docs/theory: Whisper's chain, token scope.

    Examples
    --------
    >>> from spectral_theorem.whisper import Dims, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=2, decoder_heads=1, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> chain = token_layers(model, jnp.ones((5, 4), jnp.float32), [4, 1, 2], 1)
    >>> chain.names, chain.layers[0](chain.state, chain.context).shape
    (('block 1', 'block 2'), (4,))
    """
    if granularity not in KINDS:
        refuse(f"granularity={granularity!r}", " or ".join(map(repr, KINDS)), "granularity='block'")
    run = run_tokens(model, encoder_output, tokens, position)
    decoder, length = model.parameters["decoder"], jnp.asarray(position, jnp.int32)
    layers, names = [], []
    for index in range(model.dims.decoder_layers):
        cache = Cache(run.keys[index], run.values[index], length)
        for name, function in KINDS[granularity]:
            layers.append(jax.tree_util.Partial(function, decoder["layers"][index], cache))
            names.append(f"block {index + 1}{name}")
    return TokenLayers(tuple(layers), tuple(names), run.residual[0, position], jnp.asarray(encoder_output), position)


@container
class TokenRun:
    """Hold what the layers of a token need of a decoder run.

    Attributes
    ----------
    residual : (L+1, n, D)  residual stream before the first block and after each.
    keys, values : (L, n, H, D/H)  self-attention's, per block.
    """

    residual: Float[Array, "L1 n width"]
    keys: Float[Array, "L n heads size"]
    values: Float[Array, "L n heads size"]


def run_tokens(model: WhisperModel, encoder_output: Array, tokens: Sequence[int], position: int) -> TokenRun:
    """Run the decoder up to a position, after checking what a user passed.

    Returns
    -------
    TokenRun
        Of a padded sequence; rows beyond `position` mean nothing.
    """
    dims, padded = model.dims, padded_tokens(model, encoder_output, tokens, position)
    wanted = Record(residual=True, keys_values=True)
    return TokenRun(
        **decoder_records(model.parameters["decoder"], padded, encoder_output, heads=dims.decoder_heads, record=wanted)
    )


def padded_tokens(
    model: WhisperModel, encoder_output: Array, tokens: Sequence[int], position: int
) -> Int[Array, " padded"]:
    """Return the sequence up to a position, padded to a length that many share, after checking what a user passed."""
    dims = model.dims
    ids = [int(token) for token in tokens]
    if not 0 <= position < len(ids):
        refuse(f"position {position}", f"0 to {len(ids) - 1}, a place in the sequence", "Transcription.position(step)")
    ids = ids[: position + 1]
    if len(ids) > dims.positions:
        refuse(f"position {position}", f"less than {dims.positions}, the model's positions", "an earlier step")
    strange = [token for token in ids if not 0 <= token < dims.vocabulary]
    if strange:
        refuse(f"token {strange[0]}", f"0 to {dims.vocabulary - 1}", "the tokens of this model's transcript")
    shape, dtype = tuple(encoder_output.shape), encoder_output.dtype
    if shape != (dims.frames, dims.width) or dtype != model.dtype:
        refuse(
            f"encoder output of shape {shape}, {dtype}",
            f"({dims.frames}, {dims.width}), {model.dtype}",
            "encode_audio(model, audio)[0]",
        )
    padded = np.zeros(min(-(-len(ids) // _BUCKET) * _BUCKET, dims.positions), np.int32)
    padded[: len(ids)] = ids
    return jnp.asarray(padded)
