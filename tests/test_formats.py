"""Checkpoints of Flax and of OpenAI: the same model from every format, and nothing run or believed on the way."""

import json
import os
import pickle
import struct
import zipfile

import jax
import numpy as np
import pytest
from checkpoints import (
    CONFIG,
    DIMS,
    GENERATION,
    OPENAI_DIMS,
    OPENAI_SIZES,
    ORDERED,
    SPECIAL,
    archive,
    by_path,
    called,
    flax_bytes,
    mapping,
    number,
    openai_bytes,
    program,
    tensor,
    text,
    tokenizer_json,
    tree,
    tuple_of,
    turned,
    write,
    write_beside,
)
from flax.serialization import msgpack_serialize

from spectral_theorem import whisper
from spectral_theorem.types import InputError
from spectral_theorem.whisper.family import catalogue, parameter_count
from spectral_theorem.whisper.flaxfile import read_flax
from spectral_theorem.whisper.formats import open_checkpoint, reader
from spectral_theorem.whisper.layouts import stored_name
from spectral_theorem.whisper.published import generation_by_names, published_special
from spectral_theorem.whisper.torchfile import read_torch


def refused(read, path):
    with pytest.raises(InputError) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def written(path, raw):
    path.write_bytes(raw)
    return path


def read_all(path, arrays):
    """Read every parameter of a checkpoint, without making a model."""
    read = reader(open_checkpoint(path), {place: jax.ShapeDtypeStruct(a.shape, a.dtype) for place, a in arrays.items()})
    return {place: read(place) for place in arrays}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(one[place].dtype == other[place].dtype and np.array_equal(one[place], other[place]) for place in one)


# The same model from every format.


def test_every_format_gives_the_same_parameters(tmp_path):
    arrays = by_path(OPENAI_DIMS)
    config = OPENAI_DIMS.to_config() | {"decoder_start_token_id": 11, "eos_token_id": 10}
    folder = write(tmp_path / "safetensors", turned(stored_name, arrays), config)
    flax = write_beside(tmp_path / "flax", config)
    written(flax / "flax_model.msgpack", flax_bytes(arrays))
    openai = written(write_beside(tmp_path / "openai") / "random.pt", openai_bytes(arrays))
    models = [whisper.load(path) for path in (folder, flax, openai)]
    assert [model.label for model in models] == ["safetensors", "flax", "random.pt"]
    leaves = [jax.tree.leaves(model.parameters) for model in models]
    for other in leaves[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(leaves[0], other, strict=True))
    assert models[0].dims == models[1].dims == models[2].dims == OPENAI_DIMS


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes_of_every_format(tmp_path, dtype):
    arrays = by_path(OPENAI_DIMS, jax.numpy.dtype(dtype))
    assert_equal(read_all(written(tmp_path / "a.pt", openai_bytes(arrays)), arrays), arrays)
    (tmp_path / "config.json").write_text(json.dumps(OPENAI_DIMS.to_config()))
    assert_equal(read_all(written(tmp_path / "a.msgpack", flax_bytes(arrays)), arrays), arrays)


@pytest.mark.parametrize("wrap", [lambda t: t, lambda t: {"params": t}, lambda t: {"params": {"model": t}}])
def test_flax_trees_with_and_without_outer_levels(tmp_path, wrap):
    arrays = by_path()
    folder = write_beside(tmp_path)
    written(folder / "flax_model.msgpack", msgpack_serialize(wrap(tree(arrays))))
    assert_equal(read_all(folder, arrays), arrays)
    assert_equal(read_all(folder / "flax_model.msgpack", arrays), arrays)


def test_flax_shards(tmp_path):
    arrays, folder = by_path(), write_beside(tmp_path)
    parts = [dict(list(arrays.items())[part::2]) for part in range(2)]
    index = {}
    for part, some in enumerate(parts):
        written(folder / f"part-{part}.msgpack", flax_bytes(some))
        index |= {"/".join(["model", *map(str, place)]): f"part-{part}.msgpack" for place in some}
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": index}))
    assert_equal(read_all(folder, arrays), arrays)


def test_one_safetensors_file_beside_its_config(tmp_path):
    folder = write(tmp_path)
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert whisper.load(folder / "other.safetensors").dims == DIMS


def test_openai_prompt_comes_from_the_tokenizer_beside_it(tmp_path):
    path = written(tmp_path / "random.pt", openai_bytes())
    assert "a tokenizer.json beside random.pt" in refused(whisper.load, path)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(SPECIAL)))
    generation = whisper.load(path).generation
    assert (generation.prompt, generation.end, generation.suppress) == ((11, 12), 10, (11,))
    assert generation.suppress_first == (10,)


@pytest.mark.parametrize(
    ("vocabulary", "prompt", "no_speech"),
    [
        (51_864, (50257, 50362), 50361),
        (51_865, (50258, 50259, 50359, 50363), 50362),
        (51_866, (50258, 50259, 50360, 50364), 50363),
    ],
)
def test_published_vocabularies_need_no_tokenizer(tmp_path, vocabulary, prompt, no_speech):
    sizes = OPENAI_SIZES | {"n_vocab": vocabulary}
    arrays = by_path(OPENAI_DIMS)
    arrays["decoder", "embed_tokens", "embedding"] = np.ones((vocabulary, 8), np.float16)
    model = whisper.load(written(tmp_path / "a.pt", openai_bytes(arrays, sizes)))
    assert (model.generation.prompt, model.generation.no_speech, model.tokenizer) == (prompt, no_speech, None)
    assert model.generation.suppress_first == (220, 50256 if vocabulary == 51_864 else 50257)


def test_control_tokens_are_those_of_the_published_tokenizer(shared):
    published = whisper.Tokenizer(shared / "models" / "whisper-tokenizer" / "tokenizer.json").special
    renamed = {"<|nocaptions|>": "<|nospeech|>", "<|iw|>": "<|he|>"}  # earlier names of the same tokens
    assert {renamed.get(name, name): id for name, id in published.items()} == published_special(51_864)


def test_parameters_of_the_published_family_are_counted_as_published():
    millions = {name: published.parameters / 1e6 for name, published in catalogue.items()}
    stated = {"tiny": 39, "base": 74, "small": 244, "medium": 769, "large": 1550, "large-v3": 1550}
    for name, count in stated.items():
        assert millions[f"openai/whisper-{name}"] == pytest.approx(count, rel=0.04)
    assert millions["openai/whisper-large-v3-turbo"] == pytest.approx(809, abs=0.5)
    distilled = {"small.en": 166, "medium.en": 394, "large-v2": 756, "large-v3": 756}
    for name, count in distilled.items():
        assert millions[f"distil-whisper/distil-{name}"] == pytest.approx(count, abs=0.5)
    assert parameter_count(DIMS) == sum(array.size for array in by_path().values())
    assert generation_by_names(published_special(51_866), catalogue["openai/whisper-large-v3"].dims)["is_multilingual"]


# What is refused: OpenAI.


class Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_pickle_that_runs_code_is_not_run(tmp_path, protocol):
    target = tmp_path / "executed"
    hostile = pickle.dumps({"dims": Payload(target), "model_state_dict": {}}, protocol=protocol)
    message = refused(whisper.load, written(tmp_path / "a.pt", archive(hostile, {})))
    assert "not run" in message or "whose pickle uses" in message
    assert not target.exists()
    pickle.loads(hostile)
    assert target.exists()  # the payload works


@pytest.mark.parametrize(
    "callee", [("builtins", "eval"), ("torch._utils", "_rebuild_parameter"), ("torch", "load"), ("os", "system")]
)
def test_globals_beyond_the_list_are_named(tmp_path, callee):
    hostile = b"\x80\x02" + called(*callee) + tuple_of(text("1")) + b"R."
    assert ".".join(callee) in refused(read_torch, written(tmp_path / "a.pt", archive(hostile, {})))


def with_tensor(value, storages):
    return archive(program(OPENAI_SIZES, {"a": value}), storages)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"PK\3\4",
        pickle.dumps({"dims": {}}),
        openai_bytes()[:-30],
        openai_bytes()[:2000],
        archive(b"", {}),
        archive(b"\x80\x02.", {}),
        archive(b"\x80\x02}.", {}),
        archive(b"\x80\x02" + b"(" * 1000 + b".", {}),
        archive(b"\x80\x02h\x05.", {}),
        archive(b"\x80\x02}(" + number(1) + number(2) + b"u.", {}),
        archive(program({}, {}), {}),
        archive(program(OPENAI_SIZES | {"n_vocab": 2**30}, {}), {}),
        archive(program(OPENAI_SIZES | {"n_text_state": 16}, {}), {}),
        archive(program(OPENAI_SIZES, {"a": number(1)}), {}),
        with_tensor(tensor("0", "FloatStorage", 4, 0, (4,), (1,)), {}),
        with_tensor(tensor("0", "FloatStorage", 4, 0, (4,), (1,)), {"0": b"\0" * 12}),
        with_tensor(tensor("0", "FloatStorage", -1, 0, (4,), (1,)), {"0": b"\0" * 16}),
        with_tensor(tensor("0", "FloatStorage", 4, 1, (4,), (1,)), {"0": b"\0" * 16}),
        with_tensor(tensor("0", "FloatStorage", 4, -1, (4,), (1,)), {"0": b"\0" * 16}),
        with_tensor(tensor("0", "FloatStorage", 4, 0, (4,), (2,)), {"0": b"\0" * 16}),
        with_tensor(tensor("0", "FloatStorage", 4, 3, (2,), (-1,)), {"0": b"\0" * 16}),
        with_tensor(tensor("0", "FloatStorage", 4, 0, (4,), (1, 1)), {"0": b"\0" * 16}),
        with_tensor(tensor("0", "FloatStorage", 1, 0, (2**30,), (0,)), {"0": b"\0" * 4}),
        with_tensor(tensor("0", "IntStorage", 4, 0, (4,), (1,)), {"0": b"\0" * 16}),
        openai_bytes(order=b"big"),
        openai_bytes(compression=zipfile.ZIP_DEFLATED),
        archive(program(OPENAI_SIZES, {}), {"bomb": b"\0" * 10_000_000}, zipfile.ZIP_DEFLATED),
    ],
)
def test_openai_files_that_are_refused(tmp_path, raw):
    refused(read_torch, written(tmp_path / "a.pt", raw))


def test_pickles_that_would_exhaust_an_unpickler(tmp_path):
    path = tmp_path / "a.pt"
    far = b"\x80\x02}r\xff\xff\xff\x7f."  # stores at place 2^31 of a table that Python would allocate
    assert "dims" in refused(read_torch, written(path, archive(far, {})))
    doubled = (b"h" + bytes([i, *b"h", i]) + b"\x86q" + bytes([i + 1]) for i in range(90))
    laughs = b"\x80\x02" + text("a") + b"q\0" + b"".join(doubled)  # 90 tuples that stand for 2^90
    refused(read_torch, written(path, archive(laughs + b".", {})))
    as_key = b"\x80\x02}(" + laughs[2:] + b"Nu."
    refused(read_torch, written(path, archive(as_key, {})))
    as_bytes = b"\x80\x02\x96" + struct.pack("<Q", 2**40) + b"."
    refused(read_torch, written(path, archive(as_bytes, {})))


def test_views_cannot_multiply_a_storage(tmp_path):
    views = {f"t{i}": tensor("0", "FloatStorage", 4000, 0, (4000,), (1,)) for i in range(10)}
    raw = archive(program(OPENAI_SIZES, views), {"0": b"\0" * 16_000})
    assert "larger than the file" in refused(read_torch, written(tmp_path / "a.pt", raw))


def test_openai_tensors_that_contradict_the_sizes(tmp_path):
    arrays = by_path(OPENAI_DIMS)
    path = tmp_path / "a.pt"
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer_json(SPECIAL)))
    message = refused(whisper.load, written(path, openai_bytes(arrays, OPENAI_SIZES | {"n_text_layer": 1})))
    assert "unexpected decoder.blocks.1" in message
    lost = {place: array for place, array in arrays.items() if place != ("decoder", "layer_norm", "bias")}
    assert "without decoder.ln.bias" in refused(whisper.load, written(path, openai_bytes(lost)))
    arrays["decoder", "layer_norm", "bias"] = np.full(8, np.nan, np.float32)
    assert "NaN" in refused(whisper.load, written(path, openai_bytes(arrays)))


# What is refused: Flax.


def leaf(shape, dtype, data, code=1, length=None):
    inner = b"\x93" + bytes([0x90 | len(shape)]) + b"".join(b"\xcf" + struct.pack(">Q", n) for n in shape)
    inner += bytes([0xA0 | len(dtype)]) + dtype.encode() + b"\xc6" + struct.pack(">I", len(data)) + data
    return b"\xc9" + struct.pack(">I", len(inner) if length is None else length) + bytes([code]) + inner


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80\x80",
        b"\x91\x80",
        b"\xc1",
        b"\x81\xa1a\xc0",
        b"\x81\xa1a\x01",
        b"\x81\xa0" + leaf((1,), "float32", b"\0" * 4),
        b"\x81\x01" + leaf((1,), "float32", b"\0" * 4),
        b"\x81\xa1\xff" + leaf((1,), "float32", b"\0" * 4),
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xdb\xff\xff\xff\xff",
        b"\x81\xa1a" * 40 + b"\x80",
        b"\x81\xa1a" + leaf((2,), "float32", b"\0" * 4),
        b"\x81\xa1a" + leaf((2**62, 2), "float32", b"\0" * 4),
        b"\x81\xa1a" + leaf((1,), "float32", b"\0" * 4, length=9),
        b"\x81\xa1a" + leaf((1,), "float32", b"\0" * 4, length=2**31),
        b"\x81\xa1a" + leaf((1,), "float32", b"\0" * 4, code=2),
        b"\x81\xa1a" + leaf((1,), "object", b"\0" * 8),
        b"\x81\xa1a" + leaf((1,), "O", b"\0" * 8),
        b"\x81\xa1a" + leaf((1,), "int32", b"\0" * 4),
        b"\x81\xa1a" + leaf((1,), "float32", b"\0" * 4)[:-1],
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x01\x93\x91\x01",
        b"\x82" + 2 * (b"\xa1a" + leaf((1,), "float32", b"\0" * 4)),
        b"\xde\xff\xff" + b"\xa1a\x80" * 65535 + b"\x00",
        msgpack_serialize({"a": np.ones(1, np.float32), "b": 1.0}),
        msgpack_serialize({"a": {"b": np.float32(1)}}),
        flax_bytes()[:-1],
        flax_bytes() + b"\0",
    ],
)
def test_flax_files_that_are_refused(tmp_path, raw):
    refused(read_flax, written(tmp_path / "flax_model.msgpack", raw))


def test_flax_trees_that_contradict_the_config(tmp_path):
    folder, arrays = write_beside(tmp_path, CONFIG, GENERATION), by_path()
    file = folder / "flax_model.msgpack"
    place = ("decoder", "layers", 0, "fc1", "kernel")
    written(file, flax_bytes(arrays | {place: arrays[place].T}))
    assert "(10, 8)" in refused(whisper.load, folder)
    written(file, flax_bytes({other: array for other, array in arrays.items() if other != place}))
    assert "without model/decoder/layers/0/fc1/kernel" in refused(whisper.load, folder)
    both = {"model": tree(arrays), **tree({place: arrays[place]})}
    written(file, msgpack_serialize(both))
    assert "two names" in refused(whisper.load, folder)


@pytest.mark.parametrize("kind", ["pt", "msgpack"])
def test_a_file_that_is_cut_after_it_was_opened(tmp_path, kind):
    arrays, path = by_path(OPENAI_DIMS), tmp_path / f"a.{kind}"
    (tmp_path / "config.json").write_text(json.dumps(OPENAI_DIMS.to_config()))
    written(path, openai_bytes(arrays) if kind == "pt" else flax_bytes(arrays))
    read = reader(open_checkpoint(path), {p: jax.ShapeDtypeStruct(a.shape, a.dtype) for p, a in arrays.items()})
    written(path, path.read_bytes()[:3000])
    with pytest.raises(InputError, match="shorter than a moment ago"):
        for place in arrays:
            read(place)


def test_weights_of_flax_that_are_not_finite(tmp_path):
    folder, arrays = write_beside(tmp_path), by_path()
    arrays["encoder", "conv2", "bias"] = np.full(8, np.inf, np.float32)
    written(folder / "flax_model.msgpack", flax_bytes(arrays))
    assert "NaN or infinity" in refused(whisper.load, folder)


def test_files_of_unknown_kind_and_folders_without_config(tmp_path):
    assert ".safetensors, .msgpack or .pt" in refused(whisper.load, written(tmp_path / "model.bin", b"x"))
    assert "config.json" in refused(whisper.load, written(tmp_path / "flax_model.msgpack", flax_bytes()))
    assert "config.json" in refused(whisper.load, tmp_path)


def test_the_mapping_of_a_pickle_is_all_that_is_returned(tmp_path):
    raw = archive(b"\x80\x02" + mapping({"dims": ORDERED, "model_state_dict": ORDERED}) + b".", {})
    assert "dims lack n_mels" in refused(read_torch, written(tmp_path / "a.pt", raw))
