"""Make a Whisper to be trained: initial weights, and a vocabulary of whole words."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..storage import write_atomically
from ..types import refuse
from .checkpoint import build, parameter_shapes
from .dims import Dims
from .generation import Generation
from .layouts import ParameterPath
from .model import WhisperModel
from .tokenizer import Tokenizer

END, START, NO_TIMESTAMPS = "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"
_RESIDUAL = ("out_proj", "fc2")
_EMBEDDING_DEVIATION = 0.02


def write_word_tokenizer(path: Path, words: Sequence[str]) -> Tokenizer:
    """Write a `tokenizer.json` of whole words and three control tokens, and read it back.

    Parameters
    ----------
    path : the file to make.
    words : ids 0, 1, ... in this order; end, start and no-timestamps follow.

    Returns
    -------
    Tokenizer

    Raises
    ------
    InputError
        If a word is empty, comes twice, or holds anything but letters.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tokenizer = write_word_tokenizer(Path(folder) / "tokenizer.json", ["yes", "no"])
    >>> tokenizer.encode("no yes"), tokenizer.special
    ([1, 0], {'<|endoftext|>': 2, '<|startoftranscript|>': 3, '<|notimestamps|>': 4})
    """
    bad = [word for word in words if not word.isalpha()]
    if bad or len(set(words)) != len(words) or not words:
        refuse(f"the vocabulary {list(words)[:8]}", "different words of letters only", "vocabulary=('yes', 'no')")
    control = (END, START, NO_TIMESTAMPS)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": len(words) + i, "content": name, "special": True, **flags} for i, name in enumerate(control)]
    vocabulary = {word: id for id, word in enumerate((*words, *control))}
    described = {
        "version": "1.0",
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder")),
        "added_tokens": added,
        "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": END},
    }
    write_atomically(path, lambda file: file.write((json.dumps(described, indent=1) + "\n").encode()))
    return Tokenizer(path)


def word_generation(words: int, positions: int) -> Generation:
    """Return how a model with a vocabulary of whole words decodes: no control token, no empty transcript.

    Parameters
    ----------
    words : their number, control tokens apart.
    positions : longest sequence.
    """
    end, start, no_timestamps = words, words + 1, words + 2
    return Generation(
        prompt=(start, no_timestamps),
        end=end,
        suppress=(start, no_timestamps),
        suppress_first=(end,),
        longest=positions,
    )


def sinusoids(length: int, width: int) -> np.ndarray:
    r"""Return the encoder's fixed positions, as Whisper has them.

    .. math:: p_{t,i} = \sin(t\,10^{-4i/(n-1)}),\quad p_{t,n+i} = \cos(t\,10^{-4i/(n-1)}),\quad n=D/2

    Parameters
    ----------
    length, width : F and D; an odd D has one zero column.

    Returns
    -------
    (F, D) float64

    References
    ----------
    A. Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2022, section 2.2.

    Examples
    --------
    >>> sinusoids(2, 4).round(3).tolist()
    [[0.0, 0.0, 1.0, 1.0], [0.841, 0.0, 0.54, 1.0]]
    """
    half = width // 2
    rates = 10.0 ** (-4.0 * np.arange(half) / max(half - 1, 1))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles), np.zeros((length, width % 2))], axis=1)


def initial_model(
    key: Array, dims: Dims, *, generation: Generation, tokenizer: Tokenizer | None, label: str
) -> WhisperModel:
    """Make a Whisper with weights to start training from.

    Parameters
    ----------
    key : PRNG key.
    dims : sizes.
    generation, tokenizer, label : as in WhisperModel.

    Returns
    -------
    WhisperModel
        float32. Kernels are normal with variance 1/inputs, those that write into the residual stream
        divided by the root of their number, so that its variance does not grow with depth; biases 0,
        LayerNorm scales 1, embeddings of deviation 0.02, encoder positions sinusoids.

    Examples
    --------
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=1, decoder_heads=1, decoder_hidden=8)
    >>> model = initial_model(jax.random.key(0), dims, generation=word_generation(3, 7), tokenizer=None, label="new")
    >>> float(model.encoder.layers[0].fc1.bias[...].sum()), model.label
    (0.0, 'new')
    """
    shapes = {path: leaf.shape for path, leaf in parameter_shapes(dims).items()}
    noise = np.asarray(jax.random.normal(key, (sum(math.prod(shape) for shape in shapes.values()),), jnp.float32))
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    pieces = dict(zip(shapes, np.split(noise, ends[:-1]), strict=True))
    writers = {"encoder": 2 * dims.encoder_layers, "decoder": 3 * dims.decoder_layers}

    def draw(path: ParameterPath) -> Any:
        shape = shapes[path]
        if path[-1] == "kernel":
            spread = 1 / math.sqrt(math.prod(shape[:-1]))
            if path[-2] in _RESIDUAL:
                spread /= math.sqrt(writers[str(path[0])])
            return pieces[path].reshape(shape) * spread
        if path == ("encoder", "embed_positions", "embedding"):
            return sinusoids(*shape)
        if path[-1] == "embedding":
            return _EMBEDDING_DEVIATION * pieces[path].reshape(shape)
        return np.full(shape, float(path[-1] == "scale"))

    return build(dims, draw, jnp.float32, generation=generation, tokenizer=tokenizer, label=label)
