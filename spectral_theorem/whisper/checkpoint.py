"""Read a Whisper checkpoint, and distrust it until its sizes agree with each other.

Sizes are compared before anything is allocated: header with file, shapes with config. What every
format has to deliver is one mapping from parameter paths (`decoder/layers/0/fc1/kernel`) to
arrays; `build` turns it into a model.
"""

import dataclasses
import functools
import json
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
from .model import Generation, WhisperModel
from .tokenizer import Tokenizer

_LARGEST_JSON = 1 << 26
_STORED = {"F16": np.dtype(np.float16), "BF16": np.dtype(jnp.bfloat16), "F32": np.dtype(np.float32), "F64": np.dtype(np.float64)}
_COMPUTE = ("float32", "bfloat16", "float64")
_NO_SPEECH = ("<|nospeech|>", "<|nocaptions|>")
_TIED = "proj_out.weight"

ParameterPath = tuple[str | int, ...]


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Say where one tensor lies: file, place of its first byte, dtype, shape."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self) -> np.ndarray:
        count = math.prod(self.shape)
        return np.fromfile(self.file, dtype=self.dtype, count=count, offset=self.offset).reshape(self.shape)


def load(path: str | os.PathLike[str], dtype: Any = jnp.float32) -> WhisperModel:
    """Load a Whisper model from a Hugging Face folder.

    Parameters
    ----------
    path : folder with `config.json`, `model.safetensors` (or a sharded index), `tokenizer.json`,
        and `generation_config.json` if there is one.
    dtype : float32, bfloat16 or float64; weights are converted to it and the model computes in it.

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
    spectral_theorem.types.InputError: got /nowhere, which is not a folder; expected the folder of a Whisper model; try a folder with config.json and model.safetensors
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
    stored = _index(folder)
    tokenizer = Tokenizer(folder / "tokenizer.json")
    described = folder / "generation_config.json"
    generation = read_generation(read_json(described) if described.exists() else config, dims, tokenizer)
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
        refuse("dtype=float64 while JAX's 64-bit mode is off", "the 64-bit mode", "jax.config.update('jax_enable_x64', True)")
    return jnp.dtype(name)


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object from a file of sane size."""
    if not path.is_file():
        refuse(f"{path.parent} without {path.name}", "the folder of a Whisper model", f"a folder with {path.name}")
    size = path.stat().st_size
    if size > _LARGEST_JSON:
        refuse(f"{path} of {size} bytes", f"at most {_LARGEST_JSON}", f"the model's own {path.name}")
    return _parse(path.read_bytes(), path)


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(f"{path}, not JSON ({str(error)[:80]})", "a JSON object", "another copy of the file")
    if not isinstance(value, dict):
        refuse(f"{path} holding a {type(value).__name__}", "a JSON object", "another copy of the file")
    return value


def _index(folder: Path) -> dict[str, _Stored]:
    """Collect the tensors of a folder: one safetensors file, or the files its index names."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        return read_header(single)
    if not index.exists():
        refuse(f"{folder} without model.safetensors", "weights in safetensors form", "a folder with model.safetensors")
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        refuse(f"{index} without a weight_map of file names", "a safetensors index", "another copy of the file")
    tensors: dict[str, _Stored] = {}
    for name in sorted(set(weights.values())):
        if Path(name).name != name or "\\" in name:
            refuse(f"{index} naming {name!r}", "files inside the folder", "an index with plain file names")
        tensors |= read_header(folder / name)
    lost = sorted(set(weights) - set(tensors))
    if lost:
        refuse(f"shards without {_some(lost)}", "every tensor of the index", "all shards from one source")
    return tensors


def read_header(path: Path) -> dict[str, _Stored]:
    """Read and check the header of a safetensors file; no tensor is read.

    Raises
    ------
    InputError
        If the header does not fit the file: truncated, overlapping, of absurd size.
    """
    if not path.is_file():
        refuse(f"{path}, which is not a file", "a safetensors file", "all shards from one source")
    size = path.stat().st_size
    bad = functools.partial(refuse, expected="a whole safetensors file", hint="downloading it again")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, _LARGEST_JSON):
            bad(f"{path} of {size} bytes with a header of {length} bytes")
        header = _parse(file.read(length), path)
    header.pop("__metadata__", None)
    spans, tensors = [], {}
    for name, entry in header.items():
        tensor, end = _entry(path, name, entry, 8 + length, bad)
        spans.append((tensor.offset, end))
        tensors[name] = tensor
    reached = 8 + length
    for begin, end in sorted(spans):
        if begin != reached:
            bad(f"{path} with tensors that overlap or leave gaps")
        reached = end
    if reached != size:
        bad(f"{path} of {size} bytes whose header describes {reached}")
    return tensors


def _entry(path: Path, name: str, entry: Any, start: int, bad: Callable[[str], Any]) -> tuple[_Stored, int]:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sane = all(type(n) is int and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        sane, dtype, shape, begin, end = False, None, (), 0, 0
    if not sane:
        bad(f"{path} with a malformed entry for {name[:80]!r}")
    if dtype not in _STORED:
        refuse(f"{name} stored as {dtype}", " or ".join(_STORED), "a checkpoint that is not quantised")
    if math.prod(shape) * _STORED[dtype].itemsize != end - begin:
        bad(f"{path} where {name} of shape {shape} has {end - begin} bytes")
    return _Stored(path, start + begin, _STORED[dtype], shape), start + end


def _some(names: list[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


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


def _match(stored: dict[str, _Stored], dims: Dims, folder: Path) -> Callable[[ParameterPath], np.ndarray]:
    """Check the names and shapes of a PyTorch-layout checkpoint; return its reader."""
    if stored and not any(name.startswith("model.") for name in stored):
        stored = {f"model.{name}" if name != _TIED else name: tensor for name, tensor in stored.items()}
    wanted = {stored_name(path): _stored_shape(path, leaf.shape) for path, leaf in parameter_shapes(dims).items()}
    for kind, names in (("without", set(wanted) - set(stored)), ("with unexpected", set(stored) - set(wanted) - {_TIED})):
        if names:
            refuse(f"{folder} {kind} {_some(sorted(names))}", "the tensors its config.json describes", "another checkpoint")
    for name, shape in wanted.items():
        if stored[name].shape != shape:
            refuse(f"{name} of shape {stored[name].shape}", f"{shape} by config.json", "config and weights of one model")
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
    graph, state = nnx.split(model)

    def fill(path: Any, leaf: Any) -> Array:
        names = tuple(getattr(entry, "key", getattr(entry, "name", None)) for entry in path)
        names = names[:-1] if names[-1] == "value" else names
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused below
            array = np.ascontiguousarray(np.asarray(read(names)), dtype=dtype)
        if not np.isfinite(array).all():
            refuse(f"{stored_name(names)} with NaN or infinity", f"finite weights in {dtype}", "another checkpoint or dtype")
        return jnp.asarray(array)

    return nnx.merge(graph, jax.tree_util.tree_map_with_path(fill, state))


def read_generation(described: Mapping[str, Any], dims: Dims, tokenizer: Tokenizer) -> Generation:
    """Read prompt, suppressed tokens and length from a `generation_config.json`, already parsed.

    Raises
    ------
    InputError
        If a token id lies outside the vocabulary, or start or end are not named.
    """
    prompt = [described.get("decoder_start_token_id")]
    for _, token in sorted(map(tuple, described.get("forced_decoder_ids") or [])):
        prompt.append(token)
    special = tokenizer.special
    if len(prompt) == 1 or None in prompt[1:]:
        prompt[1:] = _default_prompt(special, multilingual=bool(described.get("is_multilingual")))
    no_speech = next((special[name] for name in _NO_SPEECH if name in special), None)
    longest = described.get("max_length") or dims.positions
    generation = Generation(
        prompt=tuple(prompt),
        end=described.get("eos_token_id"),  # pyright: ignore[reportArgumentType]
        suppress=tuple(described.get("suppress_tokens") or ()),
        suppress_first=tuple(described.get("begin_suppress_tokens") or ()),
        longest=min(longest, dims.positions) if isinstance(longest, int) else longest,
        no_speech=no_speech,
    )
    ids = {*generation.prompt, generation.end, *generation.suppress, *generation.suppress_first} | {no_speech or 0}
    strange = [id for id in ids if type(id) is not int or not 0 <= id < dims.vocabulary]
    if strange:
        refuse(
            f"token ids {strange[:3]} in the generation config",
            f"integers from 0 to {dims.vocabulary - 1}",
            "tokenizer, config and weights of one model",
        )
    if not isinstance(generation.longest, int) or generation.longest <= len(generation.prompt):
        refuse(f"max_length={generation.longest}", f"more than the prompt's {len(generation.prompt)}", "max_length=448")
    return generation


def _default_prompt(special: Mapping[str, int], *, multilingual: bool) -> list[int]:
    """Return the prompt after start-of-transcript: English, transcribe, no timestamps."""
    names = ["<|en|>", "<|transcribe|>"] if multilingual else []
    return [special[name] for name in [*names, "<|notimestamps|>"] if name in special]


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
    Kernels and embeddings are normal with variance 1/inputs, biases normal with deviation 0.02, LayerNorm scales near 1.
    Nothing a trained model does can be read off it.

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
    shapes = parameter_shapes(dims)
    keys = dict(zip(shapes, jax.random.split(key, len(shapes)), strict=True))
    wide = jnp.promote_types(dtype, jnp.float32)

    def draw(path: ParameterPath) -> Array:
        shape, noise = shapes[path].shape, jax.random.normal(keys[path], shapes[path].shape, wide)
        if path[-1] == "kernel":
            return noise / math.sqrt(math.prod(shape[:-1]))
        if path[-1] == "embedding":
            return noise / math.sqrt(shape[-1])
        return 0.02 * noise + (1.0 if path[-1] == "scale" else 0.0)

    start, end = dims.vocabulary - 2, dims.vocabulary - 1
    generation = generation or Generation((start,), end, suppress=(start,), longest=dims.positions)
    return build(dims, draw, dtype, generation=generation, tokenizer=None, label="random weights (plumbing only)")
