"""Open a checkpoint of any format: sizes, and where every parameter lies.

Each format has its own reader; all deliver the same, a mapping from parameter path to an array that
is read when it is asked for.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..types import refuse
from .dims import Dims
from .flaxfile import read_flax
from .layouts import FLAX, HUGGING_FACE, OPENAI, Layout, ParameterPath, with_prefix
from .tensors import Stored, read_header, read_json, read_shards, some
from .torchfile import read_torch

SAFETENSORS_FILE, FLAX_FILE, INDEX = "model.safetensors", "flax_model.msgpack", ".index.json"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Hold an opened checkpoint; no weight has been read yet.

    Parameters
    ----------
    path : what was opened, for messages.
    folder : where tokenizer and generation config would lie.
    dims : sizes.
    layout : names and orientation of the stored tensors.
    tensors : stored name to place.
    config : the parsed config.json, or None where the format has none.
    """

    path: Path
    folder: Path
    dims: Dims
    layout: Layout
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any] | None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a folder or a file by what it is called.

    Parameters
    ----------
    path : a folder with `config.json` and weights (safetensors before Flax), one `.safetensors` or
        `.msgpack` file beside its `config.json`, or an OpenAI `.pt`.

    Raises
    ------
    InputError
        If it is none of these, or damaged.
    """
    if path.is_dir():
        config = read_json(path / "config.json")
        weights = weights_of(path)
        if weights is None:
            refuse(f"{path} without {SAFETENSORS_FILE}", f"{SAFETENSORS_FILE} or {FLAX_FILE}", "a folder with weights")
        return _described(path, weights, config)
    if not path.is_file():
        refuse(
            f"{path}, which is not a folder, a file, or a name on the Hub",
            "a Whisper model",
            "a folder with config.json and model.safetensors, or openai/whisper-tiny",
        )
    if path.suffix == ".pt":
        dims, tensors = read_torch(path)
        return Checkpoint(path, path.parent, dims, OPENAI, tensors, None)
    if path.suffix not in (".safetensors", ".msgpack"):
        refuse(
            f"{path}, which is not a folder and not a known kind of file",
            ".safetensors, .msgpack or .pt",
            "a folder with config.json and model.safetensors",
        )
    return _described(path, path, read_json(path.parent / "config.json"))


def weights_of(folder: Path) -> Path | None:
    """Return the file to read the weights of a folder from, or the index of its files; None if there is none."""
    candidates = (folder / f"{name}{ending}" for name in (SAFETENSORS_FILE, FLAX_FILE) for ending in ("", INDEX))
    return next((file for file in candidates if file.exists()), None)


def _described(path: Path, weights: Path, config: Mapping[str, Any]) -> Checkpoint:
    """Open weights that a config.json describes."""
    flax = ".msgpack" in weights.name
    dims = Dims.from_config(config)
    read = read_flax if flax else read_header
    tensors = read_shards(weights, read) if weights.name.endswith(INDEX) else read(weights)
    return Checkpoint(path, weights.parent, dims, FLAX if flax else HUGGING_FACE, tensors, config)


def reader(
    checkpoint: Checkpoint, shapes: Mapping[ParameterPath, jax.ShapeDtypeStruct]
) -> Callable[[ParameterPath], np.ndarray]:
    """Check every name and shape of a checkpoint, and return what reads one parameter by its path.

    Parameters
    ----------
    checkpoint : as opened.
    shapes : the parameters that its sizes ask for.

    Raises
    ------
    InputError
        If a tensor is missing, unexpected or of another shape, or if a stored output matrix differs
        from the token embedding.
    """
    layout, path = checkpoint.layout, checkpoint.path
    source = "its own sizes" if checkpoint.config is None else "config.json"
    stored = {with_prefix(name, layout): tensor for name, tensor in checkpoint.tensors.items()}
    if len(stored) < len(checkpoint.tensors):
        refuse(f"{path} with the same tensor under two names", "one tensor per name", "another checkpoint")
    wanted = {layout.name(place): layout.shape(place, leaf.shape) for place, leaf in shapes.items()}
    for kind, names in (
        ("without", set(wanted) - set(stored)),
        ("with unexpected", set(stored) - set(wanted) - {layout.tied}),
    ):
        if names:
            refuse(f"{path} {kind} {some(sorted(names))}", f"the tensors that {source} asks for", "another checkpoint")
    for name, shape in wanted.items():
        if stored[name].shape != shape:
            refuse(f"{name} of shape {stored[name].shape}", f"{shape} by {source}", "sizes and weights of one model")
    if layout.tied in stored:
        embedding = stored[layout.name(("decoder", "embed_tokens", "embedding"))]
        if not np.array_equal(stored[layout.tied].read(), embedding.read()):
            refuse(f"{layout.tied} unlike the token embedding", "tied output weights", "an unmodified Whisper")

    def read(place: ParameterPath) -> np.ndarray:
        array = stored[layout.name(place)].read()
        return array.T if layout.reverses and place[-1] == "kernel" else array

    return read
