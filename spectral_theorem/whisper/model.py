"""Hold Whisper as Flax NNX modules, and run it whole.

Modules hold parameters under the names of the published checkpoints; what they compute is in
`blocks` and `passes`, as pure functions of those parameters.
"""

import functools
import hashlib
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from ..types import refuse
from .dims import Dims
from .generation import Generation
from .passes import Record, decoder_records, encode
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
        heads = self.dims.decoder_heads
        wanted = Record(logits=True)
        one = functools.partial(decoder_records, self.parameters["decoder"], heads=heads, record=wanted)
        run = lambda t, c: one(t, c)["logits"]
        for _ in range(tokens.ndim - 1):
            run = jax.vmap(run)
        return run(tokens, context)

    def __call__(
        self, mel: Float[Array, "*batch mels frames2"], tokens: Int[Array, "*batch n"]
    ) -> Float[Array, "*batch n vocabulary"]:
        """Return the logits of a token sequence given a log-mel window."""
        return self.logits(tokens, self.encode(mel))


def model_digest(model: WhisperModel) -> str:
    """Return a digest of a model's weights, whatever file they came from."""
    found = hashlib.blake2b(digest_size=16)
    for path, leaf in jax.tree_util.tree_leaves_with_path(model.parameters):
        found.update(jax.tree_util.keystr(path).encode())
        found.update(np.ascontiguousarray(leaf).view(np.uint8).data)
    return found.hexdigest()
