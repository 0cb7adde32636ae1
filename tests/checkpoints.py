"""Small checkpoints of every format, written byte by byte, so that no other framework is needed."""

import io
import json
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
from flax.serialization import msgpack_serialize
from safetensors.numpy import save_file

from spectral_theorem.whisper import Dims
from spectral_theorem.whisper.checkpoint import parameter_shapes
from spectral_theorem.whisper.layouts import openai_name, stored_name

DIMS = Dims(
    width=8,
    mels=5,
    frames=6,
    vocabulary=13,
    positions=9,
    encoder_layers=1,
    encoder_heads=2,
    encoder_hidden=12,
    decoder_layers=2,
    decoder_heads=4,
    decoder_hidden=10,
)
SPECIAL = ("<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>")
CONFIG = DIMS.to_config() | {"decoder_start_token_id": 11, "eos_token_id": 10, "activation_dropout": 0.0}
GENERATION = {
    "decoder_start_token_id": 11,
    "eos_token_id": 10,
    "suppress_tokens": [11, 12],
    "begin_suppress_tokens": [10],
    "forced_decoder_ids": [[1, 12]],
    "is_multilingual": False,
    "max_length": 64,
}
# An OpenAI checkpoint has hidden layers of four times the width.
OPENAI_DIMS = Dims(
    width=8,
    mels=5,
    frames=6,
    vocabulary=13,
    positions=9,
    encoder_layers=1,
    encoder_heads=2,
    encoder_hidden=32,
    decoder_layers=2,
    decoder_heads=4,
    decoder_hidden=32,
)
OPENAI_SIZES = {
    "n_mels": 5,
    "n_audio_ctx": 6,
    "n_audio_state": 8,
    "n_audio_head": 2,
    "n_audio_layer": 1,
    "n_vocab": 13,
    "n_text_ctx": 9,
    "n_text_state": 8,
    "n_text_head": 4,
    "n_text_layer": 2,
}
STORAGES = {
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage",
    "float64": "DoubleStorage",
}


def tokenizer_json(special=SPECIAL):
    words = [f"w{i}" for i in range(13 - len(special))] + list(special)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": words.index(name), "content": name, "special": True, **flags} for name in special]
    nothing = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder"))
    model = {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(words)}, "unk_token": words[0]}
    return {"version": "1.0", **nothing, "added_tokens": added, "pre_tokenizer": {"type": "Whitespace"}, "model": model}


def by_path(dims=DIMS, dtype=np.float32):
    """Random weights in this project's own layout: kernels (in, out)."""
    draw = np.random.default_rng(0)
    return {path: draw.standard_normal(leaf.shape).astype(dtype) for path, leaf in parameter_shapes(dims).items()}


def turned(named, arrays):
    """Name arrays as PyTorch does, kernels with their axes in reverse."""
    return {
        named(path): np.ascontiguousarray(array.T) if path[-1] == "kernel" else array for path, array in arrays.items()
    }


def weights(dtype=np.float32):
    return turned(stored_name, by_path(dtype=dtype))


def write_beside(folder, config=CONFIG, generation=GENERATION):
    """Write everything of a Hugging Face folder but the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def write(folder, tensors=None, config=CONFIG, generation=GENERATION):
    write_beside(folder, config, generation)
    save_file(weights() if tensors is None else tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def tree(arrays):
    """Nest arrays by their paths, as Flax keeps them."""
    nested = {}
    for path, array in arrays.items():
        *levels, last = map(str, path)
        here = nested
        for level in levels:
            here = here.setdefault(level, {})
        here[last] = array
    return nested


def flax_bytes(arrays=None):
    return msgpack_serialize({"model": tree(by_path() if arrays is None else arrays)})


# A pickle of PyTorch's, instruction by instruction.


def text(value):
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def number(value):
    return b"J" + struct.pack("<i", value)


def tuple_of(*items):
    return b"(" + b"".join(items) + b"t"


def called(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def mapping(entries):
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


ORDERED = called("collections", "OrderedDict") + b")R"


def tensor(key, storage, count, offset, shape, strides):
    place = tuple_of(text("storage"), called("torch", storage), text(key), text("cpu"), number(count)) + b"Q"
    view = [tuple_of(*map(number, axes)) for axes in (shape, strides)]
    arguments = tuple_of(place, number(offset), *view, b"\x89", ORDERED)
    return called("torch._utils", "_rebuild_tensor_v2") + arguments + b"R"


def rows(shape):
    """Strides of an array whose rows follow each other, in elements."""
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def program(sizes, state):
    """A pickle of dims and state dict, with the module versions that PyTorch hangs on the latter."""
    versions = mapping({"_metadata": ORDERED})
    entries = b"(" + b"".join(text(name) + value for name, value in state.items()) + b"u"
    dims = mapping({name: number(size) for name, size in sizes.items()})
    return b"\x80\x02" + mapping({"dims": dims, "model_state_dict": ORDERED + entries + versions + b"b"}) + b"."


def archive(pickle, storages, compression=zipfile.ZIP_STORED, order=b"little"):
    """A zip archive as torch.save writes it."""
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", compression) as file:
        for name, content in (
            ("data.pkl", pickle),
            ("byteorder", order),
            *((f"data/{k}", v) for k, v in storages.items()),
        ):
            file.writestr(zipfile.ZipInfo(f"archive/{name}"), content, compress_type=compression)
    return raw.getvalue()


def openai_bytes(arrays=None, sizes=OPENAI_SIZES, **options):
    """An OpenAI checkpoint; attention outputs are stored as transposed views at an offset."""
    arrays = by_path(OPENAI_DIMS) if arrays is None else arrays
    state, storages = {}, {}
    for index, (path, array) in enumerate(arrays.items()):
        key, storage = str(index), STORAGES[jnp.dtype(array.dtype).name]
        if path[-2:] == ("out_proj", "kernel"):
            flat = np.concatenate([np.zeros(3, array.dtype), array.reshape(-1)])
            place = (3, array.shape[::-1], rows(array.shape)[::-1])
        else:
            flat = np.ascontiguousarray(array.T if path[-1] == "kernel" else array)
            place = (0, flat.shape, rows(flat.shape))
        state[openai_name(path)] = tensor(key, storage, flat.size, *place)
        storages[key] = flat.tobytes()
    return archive(program(sizes, state), storages, **options)
