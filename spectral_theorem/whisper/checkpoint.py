"""Load a Whisper checkpoint of any format, and distrust it until its sizes agree with each other.

Sizes are compared before anything is allocated: header with file, shapes with config. What every
format has to deliver is one mapping from parameter paths (`decoder/layers/0/fc1/kernel`) to
arrays (`formats`); `build` turns it into a model.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from ..types import refuse
from . import hub
from .dims import Dims
from .formats import Checkpoint, open_checkpoint, reader
from .generation import Generation, read_generation
from .layouts import ParameterPath, stored_name
from .model import WhisperModel
from .published import ControlTokens, generation_by_names, published_special
from .tensors import read_json
from .tokenizer import Tokenizer

_COMPUTE = ("float32", "bfloat16", "float16", "float64")


def load(
    path: str | os.PathLike[str],
    dtype: Any = jnp.float32,
    *,
    language: str | None = None,
    task: str = "transcribe",
) -> WhisperModel:
    """Load a Whisper model of any published format.

    Parameters
    ----------
    path : one of

        - a folder with `config.json` and weights: `model.safetensors` or `flax_model.msgpack`, whole
          or as shards with their index; `tokenizer.json` and `generation_config.json` if there are any;
        - one `.safetensors` or `.msgpack` file beside its `config.json`;
        - an OpenAI `.pt`, a `tokenizer.json` beside it if there is one;
        - a name on the Hugging Face Hub, `owner/model` or `owner/model@revision`: from the local cache,
          else by download.
    dtype : float32, bfloat16, float16 or float64; weights are kept in it and the model computes in it.
    language, task : for the prompt, as in `read_generation`.

    Returns
    -------
    WhisperModel
        Its tokenizer is None where none came with the weights; control tokens then have the numbers
        of the published vocabulary of that size.

    Raises
    ------
    InputError
        If a file is missing, damaged, of absurd size or contradicts another; if a tensor is
        missing, unexpected, of the wrong shape, or holds a value that is not finite; if a pickle asks
        for anything but tensors, which is not run; if the Hub does not have the model or cannot be
        reached; if float64 is asked for while JAX's 64-bit mode is off.

    Notes
    -----
    Tensors are read one at a time: peak memory is the model plus a few times its largest tensor.

    Examples
    --------
    >>> load("/nowhere")
    Traceback (most recent call last):
        ...
    spectral_theorem.types.InputError: got /nowhere, which is not a folder, a file, or a name on the Hub;
    expected a Whisper model; try a folder with config.json and model.safetensors, or openai/whisper-tiny
    """
    dtype = compute_dtype(dtype)
    place, name = Path(path), os.fspath(path)
    if hub.is_name(name) and not place.exists():
        place = hub.fetch(name)
        label = f"{name.partition('@')[0]}@{place.name[:8]}"
    else:
        label = place.resolve().name
    checkpoint = open_checkpoint(place)
    # Names and shapes first: they tell a wrong folder best.
    read = reader(checkpoint, parameter_shapes(checkpoint.dims))
    words = checkpoint.folder / "tokenizer.json"
    tokenizer = Tokenizer(words) if words.exists() else None
    return build(
        checkpoint.dims,
        read,
        dtype,
        generation=_generation(checkpoint, tokenizer, language, task),
        tokenizer=tokenizer,
        label=label,
    )


def _generation(checkpoint: Checkpoint, tokenizer: Tokenizer | None, language: str | None, task: str) -> Generation:
    """Read how to decode from what lies beside the weights, else from the names of control tokens."""
    dims = checkpoint.dims
    names = tokenizer or ControlTokens(published_special(dims.vocabulary))
    beside = checkpoint.folder / "generation_config.json"
    if checkpoint.config is None:
        described = generation_by_names(names.special, dims)
        if described["decoder_start_token_id"] is None:
            refuse(
                f"{checkpoint.path} of {dims.vocabulary} tokens, no published vocabulary, without a tokenizer",
                "names of the control tokens",
                f"a tokenizer.json beside {checkpoint.path.name}",
            )
    else:
        described = read_json(beside) if beside.exists() else checkpoint.config
    return read_generation(described, dims, names, language=language, task=task)


def compute_dtype(dtype: Any) -> Any:
    """Return the compute dtype asked for, or refuse it."""
    try:
        name = jnp.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _COMPUTE:
        refuse(f"dtype={name}", " or ".join(_COMPUTE), "dtype='float32'")
    if name == "float64" and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        refuse(
            "dtype=float64 while JAX's 64-bit mode is off",
            "the 64-bit mode",
            "jax.config.update('jax_enable_x64', True)",
        )
    return jnp.dtype(name)


def parameter_shapes(dims: Dims) -> dict[ParameterPath, jax.ShapeDtypeStruct]:
    """Return the path and shape of every parameter; nothing is allocated.

    Examples
    --------
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=1, decoder_heads=1, decoder_hidden=8)
    >>> parameter_shapes(dims)["encoder", "conv1", "kernel"].shape
    (3, 3, 4)
    """
    # All blocks of a stack are alike: one of each is made, so that a file that claims hundreds costs nothing.
    one = dataclasses.replace(dims, encoder_layers=1, decoder_layers=1)
    shapes: dict[ParameterPath, jax.ShapeDtypeStruct] = {}
    blocks: dict[ParameterPath, jax.ShapeDtypeStruct] = {}
    last = Generation((0,), 0)
    for path, leaf in [*_leaves(WhisperModel(one, dtype=jnp.float32, generation=last).parameters), ((), None)]:
        if "layers" in path:
            blocks[path] = leaf
            continue
        if blocks:
            side = str(next(iter(blocks))[0])
            count = getattr(dims, f"{side}_layers")
            shapes |= {(side, "layers", i, *at[3:]): block for i in range(count) for at, block in blocks.items()}
            blocks = {}
        if path:
            shapes[path] = leaf
    return shapes


def _leaves(tree: Mapping[Any, Any], prefix: ParameterPath = ()) -> Iterator[tuple[ParameterPath, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def build(
    dims: Dims,
    read: Callable[[ParameterPath], np.ndarray | Array],
    dtype: Any,
    *,
    generation: Generation,
    tokenizer: Tokenizer | None,
    label: str,
) -> WhisperModel:
    """Make a model from a function that delivers each parameter by its path.

    Parameters
    ----------
    dims : sizes.
    read : path to array, in this project's layout: kernels (in, out), convolutions (3, in, out).
    dtype : compute dtype; arrays are converted to it one at a time.
    generation, tokenizer, label : as in WhisperModel.

    Raises
    ------
    InputError
        If an array holds a value that is not finite, before or after conversion.
    """
    model = WhisperModel(dims, dtype=dtype, generation=generation, tokenizer=tokenizer, label=label)

    def fill(tree: Mapping[Any, Any], prefix: ParameterPath = ()) -> dict[Any, Any]:
        return {
            key: fill(value, (*prefix, key)) if isinstance(value, Mapping) else parameter((*prefix, key))
            for key, value in tree.items()
        }

    def parameter(path: ParameterPath) -> Array:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
            array = np.ascontiguousarray(np.asarray(read(path)), dtype=dtype)
        if not np.isfinite(array).all():
            refuse(
                f"{stored_name(path)} with NaN or infinity", f"finite weights in {dtype}", "another checkpoint or dtype"
            )
        return jnp.asarray(array)

    # Released one by one as they are read: nothing holds a NumPy copy beside the array of JAX.
    state = nnx.state(model, nnx.Param)
    nnx.replace_by_pure_dict(state, fill(model.parameters))
    nnx.update(model, state)
    return model


def random_model(
    key: Array, dims: Dims, *, dtype: Any = jnp.float32, generation: Generation | None = None
) -> WhisperModel:
    """Make a Whisper with random weights: plumbing for tests and demonstrations, nothing more.

    Parameters
    ----------
    key : PRNG key.
    dims : sizes, as small as you like.
    dtype : float32, bfloat16, float16 or float64.
    generation : prompt and ends; by default the last two ids are start and end.

    Returns
    -------
    WhisperModel
        Without tokenizer; its label says that the weights are random.

    Notes
    -----
    Kernels and embeddings are normal with variance 1/inputs, biases normal with deviation 0.02,
    LayerNorm scales near 1. Nothing a trained model does can be read off it.

    Examples
    --------
    >>> import jax
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=1, decoder_heads=1, decoder_hidden=8)
    >>> random_model(jax.random.key(0), dims).label
    'random weights (plumbing only)'
    """
    dtype = compute_dtype(dtype)
    if dims.vocabulary < 3:
        refuse(f"vocabulary={dims.vocabulary}", "at least 3 tokens", "vocabulary=16")
    shapes = {path: leaf.shape for path, leaf in parameter_shapes(dims).items()}
    # One draw for all weights: a draw per shape would compile a generator per shape.
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    noise = np.asarray(jax.random.normal(key, (int(ends[-1]),), jnp.promote_types(dtype, jnp.float32)))
    pieces = dict(zip(shapes, np.split(noise, ends[:-1]), strict=True))

    def draw(path: ParameterPath) -> np.ndarray:
        piece = pieces[path].reshape(shapes[path])
        if path[-1] == "kernel":
            return piece / math.sqrt(math.prod(piece.shape[:-1]))
        if path[-1] == "embedding":
            return piece / math.sqrt(piece.shape[-1])
        return 0.02 * piece + (1.0 if path[-1] == "scale" else 0.0)

    start, end = dims.vocabulary - 2, dims.vocabulary - 1
    generation = generation or Generation((start,), end, suppress=(start,), longest=dims.positions)
    return build(dims, draw, dtype, generation=generation, tokenizer=None, label="random weights (plumbing only)")
