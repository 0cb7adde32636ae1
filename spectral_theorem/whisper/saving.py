"""Write a model as a Hugging Face folder, which this package and transformers both load."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..audio import HOP, SAMPLE_RATE
from ..storage import write_atomically
from ..types import refuse
from .checkpoint import compute_dtype, parameter_shapes
from .layouts import HUGGING_FACE, ParameterPath
from .model import WhisperModel
from .published import LANGUAGES, TASKS, published_special

_STORED = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
_FFT = 400
_ALIGNMENT = 8


def save(model: WhisperModel, folder: str | os.PathLike[str], *, dtype: Any = None) -> Path:
    """Write a model as a folder that `load` and transformers' Whisper read.

    Parameters
    ----------
    model : any Whisper.
    folder : a folder to make; it must not exist, or be empty.
    dtype : float32, bfloat16, float16 or float64 to store the weights in; the model's own if None.

    Returns
    -------
    Path
        The folder, with `config.json`, `generation_config.json`, `model.safetensors`,
        `preprocessor_config.json`, and `tokenizer.json` if the model has a tokenizer.

    Raises
    ------
    InputError
        If the folder holds anything, its parent does not exist, or a weight does not fit the dtype.

    Notes
    -----
    Whole or not at all: everything is written under a hidden name, which then becomes the folder's.
    One tensor at a time is held in memory besides the model.

    Examples
    --------
    >>> import jax, tempfile
    >>> from spectral_theorem.whisper import Dims, load, random_model
    >>> dims = Dims(width=4, mels=3, frames=5, vocabulary=6, positions=7, encoder_layers=1, encoder_heads=1,
    ...             encoder_hidden=8, decoder_layers=1, decoder_heads=1, decoder_hidden=8)
    >>> model = random_model(jax.random.key(0), dims)
    >>> with tempfile.TemporaryDirectory() as parent:
    ...     again = load(save(model, Path(parent) / "model"))
    >>> again.dims == dims, again.generation == model.generation
    (True, True)
    """
    stored = compute_dtype(model.dtype if dtype is None else dtype)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        refuse(f"{folder}, which already holds something", "a folder to make", "another name")
    if not folder.absolute().parent.is_dir():
        refuse(f"{folder} in a folder that does not exist", "an existing parent", f"mkdir -p {folder.parent}")
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir()
    try:
        for name, content in _descriptions(model, stored.name).items():
            text = json.dumps(content, indent=2) + "\n"
            write_atomically(temporary / name, lambda file, text=text: file.write(text.encode()))
        if model.tokenizer is not None:
            words = model.tokenizer._tokenizer.to_str()
            write_atomically(temporary / "tokenizer.json", lambda file: file.write(words.encode()))
        write_atomically(temporary / "model.safetensors", _weights(model, stored))
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _descriptions(model: WhisperModel, dtype: str) -> dict[str, dict[str, Any]]:
    """Return every JSON file of the folder, by name."""
    generation = model.generation
    start, *forced = generation.prompt
    ends = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), generation.end)
    control = {"decoder_start_token_id": start, **ends}
    special = model.tokenizer.special if model.tokenizer else published_special(model.dims.vocabulary)
    tasks = {task: special[f"<|{task}|>"] for task in TASKS if f"<|{task}|>" in special}
    multilingual = not set(forced).isdisjoint(tasks.values())
    decoding = {
        **control,
        "forced_decoder_ids": [[place, token] for place, token in enumerate(forced, start=1)],
        "suppress_tokens": list(generation.suppress),
        "begin_suppress_tokens": list(generation.suppress_first),
        "max_length": generation.longest,
        "is_multilingual": multilingual,
    }
    if multilingual:
        languages = [f"<|{code}|>" for code in LANGUAGES if f"<|{code}|>" in special]
        decoding |= {"lang_to_id": {name: special[name] for name in languages}, "task_to_id": tasks}
    if "<|notimestamps|>" in special:
        decoding["no_timestamps_token_id"] = special["<|notimestamps|>"]
    config = {
        **model.dims.to_config(),
        "architectures": ["WhisperForConditionalGeneration"],
        "num_hidden_layers": model.dims.encoder_layers,
        "dtype": dtype,
        **control,
    }
    features = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "processor_class": "WhisperProcessor",
        "feature_size": model.dims.mels,
        "sampling_rate": SAMPLE_RATE,
        "hop_length": HOP,
        "n_fft": _FFT,
        "chunk_length": model.dims.window_samples / SAMPLE_RATE,
        "n_samples": model.dims.window_samples,
        "nb_max_frames": 2 * model.dims.frames,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
    }
    if features["chunk_length"] == int(features["chunk_length"]):
        features["chunk_length"] = int(features["chunk_length"])
    return {"config.json": config, "generation_config.json": decoding, "preprocessor_config.json": features}


def _weights(model: WhisperModel, dtype: Any) -> Callable[[BinaryIO], None]:
    """Return what writes all weights into an open safetensors file."""
    shapes = {path: HUGGING_FACE.shape(path, leaf.shape) for path, leaf in parameter_shapes(model.dims).items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for path, shape in shapes.items():
        begin, end = end, end + int(np.prod(shape)) * dtype.itemsize
        header[HUGGING_FACE.name(path)] = {"dtype": _STORED[dtype.name], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)

    def write(file: BinaryIO) -> None:
        file.write(struct.pack("<Q", len(text)) + text)
        parameters = model.parameters
        for path in shapes:
            file.write(_bytes(parameters, path, dtype))

    return write


def _bytes(parameters: Any, path: ParameterPath, dtype: Any) -> bytes:
    """Return the bytes of one parameter as the file holds them."""
    for key in path:
        parameters = parameters[key]
    with np.errstate(over="ignore"):  # what overflows is refused below
        array = np.asarray(parameters).astype(dtype)
    if not np.isfinite(array).all():
        refuse(f"{HUGGING_FACE.name(path)} with values beyond {dtype}", "weights that fit the dtype", "dtype='float32'")
    return (array.T if path[-1] == "kernel" else array).tobytes()
