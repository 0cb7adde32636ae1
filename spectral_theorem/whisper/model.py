"""Hold Whisper as Flax NNX modules, and run it whole.

Modules hold parameters under the names of the published checkpoints; what they compute is in
`blocks`, as pure functions of those parameters.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ..types import container, refuse
from . import blocks
from .blocks import Parameters
from .dims import Dims
from .generation import Generation
from .tokenizer import Tokenizer


class Linear(nnx.Module):
    """Hold a kernel, (in, out) or (3, in, out) for a convolution, and a bias unless told otherwise."""

    def __init__(self, *shape: int, bias: bool = True, dtype: Any) -> None:
        self.kernel = _empty(*shape, dtype=dtype)
        if bias:
            self.bias = _empty(shape[-1], dtype=dtype)


class LayerNorm(nnx.Module):
    """Hold the scale and bias of a LayerNorm."""

    def __init__(self, width: int, *, dtype: Any) -> None:
        self.scale = _empty(width, dtype=dtype)
        self.bias = _empty(width, dtype=dtype)


class Embed(nnx.Module):
    """Hold a table of vectors."""

    def __init__(self, rows: int, width: int, *, dtype: Any) -> None:
        self.embedding = _empty(rows, width, dtype=dtype)


def _empty(*shape: int, dtype: Any) -> nnx.Param:
    return nnx.Param(jax.ShapeDtypeStruct(shape, dtype))


class Attention(nnx.Module):
    """Hold the four projections of one attention; keys have no bias."""

    def __init__(self, width: int, *, dtype: Any) -> None:
        self.q_proj = Linear(width, width, dtype=dtype)
        self.k_proj = Linear(width, width, bias=False, dtype=dtype)
        self.v_proj = Linear(width, width, dtype=dtype)
        self.out_proj = Linear(width, width, dtype=dtype)


class EncoderLayer(nnx.Module):
    """Hold one encoder block."""

    def __init__(self, width: int, hidden: int, *, dtype: Any) -> None:
        self.self_attn = Attention(width, dtype=dtype)
        self.self_attn_layer_norm = LayerNorm(width, dtype=dtype)
        self.fc1 = Linear(width, hidden, dtype=dtype)
        self.fc2 = Linear(hidden, width, dtype=dtype)
        self.final_layer_norm = LayerNorm(width, dtype=dtype)


class DecoderLayer(EncoderLayer):
    """Hold one decoder block: an encoder block with cross-attention in the middle."""

    def __init__(self, width: int, hidden: int, *, dtype: Any) -> None:
        super().__init__(width, hidden, dtype=dtype)
        self.encoder_attn = Attention(width, dtype=dtype)
        self.encoder_attn_layer_norm = LayerNorm(width, dtype=dtype)


class Encoder(nnx.Module):
    """Hold the audio side: two convolutions, positions, blocks, a last LayerNorm."""

    def __init__(self, dims: Dims, *, dtype: Any) -> None:
        self.conv1 = Linear(3, dims.mels, dims.width, dtype=dtype)
        self.conv2 = Linear(3, dims.width, dims.width, dtype=dtype)
        self.embed_positions = Embed(dims.frames, dims.width, dtype=dtype)
        layers = [EncoderLayer(dims.width, dims.encoder_hidden, dtype=dtype) for _ in range(dims.encoder_layers)]
        self.layers = nnx.List(layers)
        self.layer_norm = LayerNorm(dims.width, dtype=dtype)


class Decoder(nnx.Module):
    """Hold the text side: tokens (also the output matrix), positions, blocks, a last LayerNorm."""

    def __init__(self, dims: Dims, *, dtype: Any) -> None:
        self.embed_tokens = Embed(dims.vocabulary, dims.width, dtype=dtype)
        self.embed_positions = Embed(dims.positions, dims.width, dtype=dtype)
        layers = [DecoderLayer(dims.width, dims.decoder_hidden, dtype=dtype) for _ in range(dims.decoder_layers)]
        self.layers = nnx.List(layers)
        self.layer_norm = LayerNorm(dims.width, dtype=dtype)


class WhisperModel(nnx.Module):
    """Hold a whole Whisper: encoder, decoder, and what is needed to use them.

    Parameters
    ----------
    dims : sizes, from the checkpoint.
    dtype : of the weights and of every computation.
    generation : prompt, suppressed tokens, length.
    tokenizer : ids to text and back, or None for a model without a vocabulary.
    label : what this model is, for reports; says so when weights are random.

    Notes
    -----
    A new model holds shapes only and allocates nothing; `load` and `random_model` fill it.
    """

    def __init__(
        self, dims: Dims, *, dtype: Any, generation: Generation, tokenizer: Tokenizer | None = None, label: str = ""
    ) -> None:
        self.encoder = Encoder(dims, dtype=dtype)
        self.decoder = Decoder(dims, dtype=dtype)
        self.dims = dims
        self.dtype = dtype
        self.generation = generation
        self.tokenizer = tokenizer
        self.label = label

    @property
    def parameters(self) -> dict[str, Any]:
        """All weights as nested dicts of arrays; layers are keyed by their number, from 0."""
        return nnx.to_pure_dict(nnx.state(self, nnx.Param))

    def encode(self, mel: Array) -> Float[Array, "*batch frames width"]:
        """Return the encoder output of log-mel windows, (mels, 2F) each.

        Raises
        ------
        InputError
            If the window has another shape than the checkpoint's.
        """
        wanted = (self.dims.mels, 2 * self.dims.frames)
        if mel.shape[-2:] != wanted:
            refuse(
                f"log-mel of shape {tuple(mel.shape)}", f"(..., {wanted[0]}, {wanted[1]})", "log_mel(samples, n_mels)"
            )
        return encode(self.parameters["encoder"], mel.astype(self.dtype), heads=self.dims.encoder_heads)

    def logits(
        self, tokens: Int[Array, "*batch n"], context: Float[Array, "*batch frames width"]
    ) -> Float[Array, "*batch n vocabulary"]:
        """Return the logits after every token of a given sequence, without any suppression."""
        one = functools.partial(decoder_pass, self.parameters["decoder"], heads=self.dims.decoder_heads)
        run = lambda t, c: one(t, c).logits
        for _ in range(tokens.ndim - 1):
            run = jax.vmap(run)
        return run(tokens, context)

    def __call__(
        self, mel: Float[Array, "*batch mels frames2"], tokens: Int[Array, "*batch n"]
    ) -> Float[Array, "*batch n vocabulary"]:
        """Return the logits of a token sequence given a log-mel window."""
        return self.logits(tokens, self.encode(mel))


def over_batch(function: Any, rank: int, x: Any) -> Any:
    """Map a function of one example over whatever leading axes x has."""
    for _ in range(x.ndim - rank):
        function = jax.vmap(function)
    return function(x)


@jax.jit
def _stem(parameters: Parameters, mel: Float[Array, "*batch mels frames2"]) -> Float[Array, "*batch frames width"]:
    return over_batch(functools.partial(blocks.encoder_stem, parameters), 2, mel)


@functools.partial(jax.jit, static_argnames="heads")
def _encoder_block(
    parameters: Parameters, x: Float[Array, "*batch frames width"], heads: int
) -> Float[Array, "*batch frames width"]:
    return over_batch(functools.partial(blocks.encoder_block, parameters, heads=heads), 2, x)


_norm = jax.jit(blocks.layer_norm)


def encode(
    parameters: Parameters, mel: Float[Array, "*batch mels frames2"], *, heads: int
) -> Float[Array, "*batch frames width"]:
    """Run the encoder on log-mel windows.

    Parameters
    ----------
    parameters : of the encoder.
    mel : (..., mels, 2F), in the dtype of the parameters.
    heads : attention heads per block.

    Returns
    -------
    context : (..., F, D), after the last LayerNorm; what the decoder sees.

    Notes
    -----
    One compiled block serves all layers, so compile time does not grow with depth.
    """
    x = _stem({name: parameters[name] for name in ("conv1", "conv2", "embed_positions")}, mel)
    for index in sorted(parameters["layers"]):
        x = _encoder_block(parameters["layers"][index], x, heads)
    return _norm(parameters["layer_norm"], x)


@container
class DecoderPass:
    """Hold a decoder run over a whole token sequence.

    Attributes
    ----------
    residual : (L+1, n, D)  residual stream before the first block and after each.
    keys, values : (L, n, H, D/H)  self-attention's, per layer.
    self_attention, cross_attention, mlp : (L, n, D)  what each sub-block added.
    logits : (n, vocabulary)
    """

    residual: Float[Array, "*batch L1 n width"]
    keys: Float[Array, "*batch L n heads size"]
    values: Float[Array, "*batch L n heads size"]
    self_attention: Float[Array, "*batch L n width"]
    cross_attention: Float[Array, "*batch L n width"]
    mlp: Float[Array, "*batch L n width"]
    logits: Float[Array, "*batch n vocabulary"]


@jax.jit
def embed(parameters: Parameters, token: Any, position: Any) -> Float[Array, "*rows width"]:
    """Return the first residual state of tokens at positions."""
    return parameters["embed_tokens"]["embedding"][token] + parameters["embed_positions"]["embedding"][position]


def read_out(parameters: Parameters, h: Float[Array, "*rows width"]) -> Float[Array, "*rows vocabulary"]:
    """Return the logits of residual states after the last block."""
    y = blocks.layer_norm(parameters["layer_norm"], h)
    # Not a product with the transpose: in half precision XLA would keep a second, transposed float32 table on the CPU.
    return jnp.einsum("...d,vd->...v", y, parameters["embed_tokens"]["embedding"], precision=blocks.precision(y.dtype))


@functools.partial(jax.jit, static_argnames="heads")
def _decoder_block(
    parameters: Parameters, x: Float[Array, "n width"], c: Float[Array, "frames width"], heads: int
) -> tuple[Float[Array, "n width"], dict[str, Any]]:
    return blocks.decoder_block_sequence(parameters, x, c, heads)


def decoder_pass(
    parameters: Parameters, tokens: Int[Array, " n"], context: Float[Array, "frames width"], *, heads: int
) -> DecoderPass:
    """Run the decoder over a given token sequence and keep everything.

    Parameters
    ----------
    parameters : of the decoder.
    tokens : (n,) ids, prompt first; n at most the model's positions.
    context : (F, D) encoder output.
    heads : attention heads per block.

    Returns
    -------
    DecoderPass

    Notes
    -----
    One compiled block serves all layers, as in `encode`.
    """
    tables = {name: parameters[name] for name in ("embed_tokens", "embed_positions")}
    x = embed(tables, tokens, np.arange(tokens.shape[0]))
    records, first = [], x
    for index in sorted(parameters["layers"]):
        x, record = _decoder_block(parameters["layers"][index], x, context, heads)
        records.append(record)
    return _gather({name: parameters[name] for name in ("layer_norm", "embed_tokens")}, first, records)


@jax.jit
def _gather(parameters: Parameters, first: Float[Array, "n width"], records: list[dict[str, Any]]) -> DecoderPass:
    stacked = {name: jnp.stack([record[name] for record in records]) for name in records[0]}
    residual = jnp.concatenate([first[None], stacked.pop("residual")])
    return DecoderPass(residual=residual, logits=read_out(parameters, residual[-1]), **stacked)
