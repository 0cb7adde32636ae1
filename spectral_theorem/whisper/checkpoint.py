"""Read a Whisper checkpoint, and distrust it until its sizes agree with each other.

Sizes are compared before anything is allocated: header with file, shapes with config. What every
format has to deliver is one mapping from parameter paths (`decoder/layers/0/fc1/kernel`) to
arrays; `build` turns it into a model.
"""

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
from .dims import Dims
from .generation import Generation, read_generation
from .model import WhisperModel
from .tensors import Stored, read_folder, read_json, some
from .tokenizer import Tokenizer

_COMPUTE = ("float32", "bfloat16", "float64")
_TIED = "proj_out.weight"

ParameterPath = tuple[str | int, ...]


def load(
    path: str | os.PathLike[str],
    dtype: Any = jnp.float32,
    *,
    language: str | None = None,
    task: str = "transcribe",
) -> WhisperModel:
    """Load a Whisper model from a Hugging Face folder.

    Parameters
    ----------
    path : folder with `config.json`, `model.safetensors` (or a sharded index), `tokenizer.json`,
        and `generation_config.json` if there is one.
    dtype : float32, bfloat16 or float64; weights are converted to it and the model computes in it.
    language, task : for the prompt, as in `read_generation`.

    Returns
    -------
    WhisperModel

    Raises
    ------
    InputError
        If a file is missing, damaged, of absurd size or contradicts another; if a tensor is
        missing, unexpected, of the wrong shape, or holds a value that is not finite; if float64
        is asked for while JAX's 64-bit mode is off.

    Notes
    -----
    Tensors are read one at a time: peak memory is the model plus its largest tensor.

    Examples
    --------
    >>> load("/nowhere")
    Traceback (most recent call last):
        ...
    spectral_theorem.types.InputError: got /nowhere, which is not a folder; expected the folder of a Whisper
    model; try a folder with config.json and model.safetensors
    """
    dtype = compute_dtype(dtype)
    folder = Path(path)
    if not folder.is_dir():
        refuse(
            f"{folder}, which is not a folder",
            "the folder of a Whisper model",
            "a folder with config.json and model.safetensors",
        )
    config = read_json(folder / "config.json")
    dims = Dims.from_config(config)
    stored = read_folder(folder)
    tokenizer = Tokenizer(folder / "tokenizer.json")
    described = folder / "generation_config.json"
    generation = read_generation(
        read_json(described) if described.exists() else config, dims, tokenizer, language=language, task=task
    )
    read = _match(stored, dims, folder)
    return build(dims, read, dtype, generation=generation, tokenizer=tokenizer, label=folder.resolve().name)


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


def stored_name(path: ParameterPath) -> str:
    """Return the name under which PyTorch checkpoints keep a parameter.

    Examples
    --------
    >>> stored_name(("decoder", "layers", 0, "fc1", "kernel"))
    'model.decoder.layers.0.fc1.weight'
    """
    last = "bias" if path[-1] == "bias" else "weight"
    return ".".join(["model", *map(str, path[:-1]), last])


def _stored_shape(path: ParameterPath, shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[::-1] if path[-1] == "kernel" else shape


def _match(stored: dict[str, Stored], dims: Dims, folder: Path) -> Callable[[ParameterPath], np.ndarray]:
    """Check the names and shapes of a PyTorch-layout checkpoint; return its reader."""
    if stored and not any(name.startswith("model.") for name in stored):
        stored = {f"model.{name}" if name != _TIED else name: tensor for name, tensor in stored.items()}
    wanted = {stored_name(path): _stored_shape(path, leaf.shape) for path, leaf in parameter_shapes(dims).items()}
    for kind, names in (
        ("without", set(wanted) - set(stored)),
        ("with unexpected", set(stored) - set(wanted) - {_TIED}),
    ):
        if names:
            refuse(
                f"{folder} {kind} {some(sorted(names))}", "the tensors its config.json describes", "another checkpoint"
            )
    for name, shape in wanted.items():
        if stored[name].shape != shape:
            refuse(
                f"{name} of shape {stored[name].shape}", f"{shape} by config.json", "config and weights of one model"
            )
    if _TIED in stored:
        embedding = stored["model.decoder.embed_tokens.weight"]
        if stored[_TIED].shape != embedding.shape or not np.array_equal(stored[_TIED].read(), embedding.read()):
            refuse(f"{_TIED} unlike the token embedding", "tied output weights", "an unmodified Whisper checkpoint")

    def read(path: ParameterPath) -> np.ndarray:
        array = stored[stored_name(path)].read()
        return array.T if path[-1] == "kernel" else array

    return read


def parameter_shapes(dims: Dims) -> dict[ParameterPath, jax.ShapeDtypeStruct]:
    """Return the path and shape of every parameter; nothing is allocated.

    Examples
    --------
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=1, decoder_heads=1, decoder_hidden=8)
    >>> parameter_shapes(dims)["encoder", "conv1", "kernel"].shape
    (3, 3, 4)
    """
    return dict(_leaves(WhisperModel(dims, dtype=jnp.float32, generation=Generation((0,), 0)).parameters))


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
    dtype : float32, bfloat16 or float64.
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
