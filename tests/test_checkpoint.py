"""Checkpoints: what is read, and everything that is refused before it is believed."""

import dataclasses
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import CONFIG, DIMS, GENERATION, SPECIAL, tokenizer_json, weights, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from spectral_theorem import whisper
from spectral_theorem.types import InputError
from spectral_theorem.whisper.checkpoint import parameter_shapes
from spectral_theorem.whisper.generation import read_generation
from spectral_theorem.whisper.tensors import read_header


def refusal(folder, **options):
    with pytest.raises(InputError) as error:
        whisper.load(folder, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# What is read.


@pytest.mark.parametrize("stored", [np.float32, np.float16, jnp.bfloat16, np.float64])
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_weights_arrive_in_place_and_dtype(tmp_path, stored, dtype):
    tensors = weights(stored)
    model = whisper.load(write(tmp_path, tensors), dtype)
    layer = model.parameters["decoder"]["layers"][1]
    as_read = lambda name: tensors[name].astype(np.float64).astype(jnp.dtype(dtype))
    assert np.array_equal(layer["fc1"]["kernel"], as_read("model.decoder.layers.1.fc1.weight").T)
    assert np.array_equal(layer["final_layer_norm"]["scale"], as_read("model.decoder.layers.1.final_layer_norm.weight"))
    conv = as_read("model.encoder.conv1.weight")
    assert np.array_equal(model.parameters["encoder"]["conv1"]["kernel"], conv.transpose(2, 1, 0))
    assert all(leaf.dtype == jnp.dtype(dtype) for leaf in jax.tree.leaves(model.parameters))
    assert (model.dims, model.label, model.dtype) == (DIMS, tmp_path.name, jnp.dtype(dtype))


def test_prompt_and_suppression_come_from_the_generation_config(tmp_path):
    generation = whisper.load(write(tmp_path)).generation
    assert generation.prompt == (11, 12)
    assert (generation.end, generation.suppress, generation.suppress_first) == (10, (11, 12), (10,))
    assert generation.longest == DIMS.positions


def test_config_stands_in_for_a_missing_generation_config(tmp_path):
    generation = whisper.load(write(tmp_path, generation=None)).generation
    assert (generation.prompt, generation.end, generation.suppress) == ((11, 12), 10, ())


def test_sharded_weights_equal_a_single_file(tmp_path):
    tensors = weights()
    whole = whisper.load(write(tmp_path / "whole", tensors))
    folder = write(tmp_path / "shards", tensors)
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"part-{i % 2}.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    pairs = zip(jax.tree.leaves(whole.parameters), jax.tree.leaves(whisper.load(folder).parameters), strict=True)
    assert all(np.array_equal(a, b) for a, b in pairs)


def test_names_without_prefix_and_an_explicit_tied_output(tmp_path):
    tensors = {name.removeprefix("model."): tensor for name, tensor in weights().items()}
    tensors["proj_out.weight"] = tensors["decoder.embed_tokens.weight"].copy()
    assert whisper.load(write(tmp_path, tensors)).dims == DIMS
    tensors["proj_out.weight"][0, 0] += 1
    assert "proj_out" in refusal(write(tmp_path, tensors))


def test_shapes_of_one_block_stand_for_all(tmp_path):
    model = whisper.load(write(tmp_path))
    flat = jax.tree_util.tree_leaves_with_path(model.parameters)
    found = {tuple(level.key for level in path): leaf.shape for path, leaf in flat}
    assert {path: leaf.shape for path, leaf in parameter_shapes(DIMS).items()} == found
    deep = parameter_shapes(dataclasses.replace(DIMS, encoder_layers=512, decoder_layers=512))
    assert len(deep) == len(found) + 511 * 15 + 510 * 24
    assert list(deep)[:15] == list(found)[:15]


def test_random_models_are_reproducible_and_labelled():
    one, same, other = (whisper.random_model(jax.random.key(i), DIMS) for i in (0, 0, 1))
    embedding = lambda model: np.asarray(model.parameters["decoder"]["embed_tokens"]["embedding"])
    assert np.array_equal(embedding(one), embedding(same))
    assert not np.array_equal(embedding(one), embedding(other))
    assert "random" in one.label


# What is refused.


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(tmp_path, name):
    folder = write(tmp_path)
    (folder / name).unlink()
    assert name in refusal(folder)


def test_without_a_tokenizer_the_prompt_must_be_known(tmp_path):
    folder = write(tmp_path)
    (folder / "tokenizer.json").unlink()
    model = whisper.load(folder)
    assert model.tokenizer is None and model.generation.prompt == (11, 12)
    assert "English-only" in refusal(folder, language="de")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION | {"is_multilingual": True}))
    assert "<|de|>" in refusal(folder, language="de")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    assert "not a folder" in refusal(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"d_model": 0}, "d_model=0"),
        ({"d_model": 8.0}, "an integer"),
        ({"d_model": True}, "an integer"),
        ({"d_model": 10**12}, "d_model"),
        ({"decoder_layers": 10**6}, "decoder_layers"),
        ({"decoder_attention_heads": 3}, "decoder_attention_heads=3"),
        ({"vocab_size": 14}, "embed_tokens"),
        ({"max_source_positions": 7}, "encoder.embed_positions"),
        ({"decoder_layers": 3}, "without model.decoder.layers.2"),
        ({"decoder_layers": 1}, "unexpected model.decoder.layers.1"),
        ({"activation_function": "relu"}, "activation_function"),
        ({"model_type": "bart"}, "model_type"),
        ({"scale_embedding": True}, "scale_embedding"),
    ],
)
def test_configs_that_contradict_the_weights(tmp_path, change, word):
    assert word in refusal(write(tmp_path, config=CONFIG | change))


def test_config_without_sizes(tmp_path):
    assert "d_model" in refusal(write(tmp_path, config={"model_type": "whisper"}))


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000, '{"d_model": ' + "9" * 5_000 + "}", "\xff\x00"])
def test_config_that_is_no_json_object(tmp_path, text):
    folder = write(tmp_path)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refusal(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(tmp_path, bad):
    tensors = weights()
    tensors["model.decoder.layers.1.fc2.bias"][3] = bad
    assert "model.decoder.layers.1.fc2.bias" in refusal(write(tmp_path, tensors))


def test_weights_too_large_for_the_compute_dtype(tmp_path):
    tensors = weights(np.float64)
    tensors["model.decoder.layer_norm.bias"][0] = 1e300
    folder = write(tmp_path, tensors)
    assert "layer_norm" in refusal(folder)
    whisper.load(folder, "float64")


def test_missing_unexpected_and_misshapen_tensors(tmp_path):
    tensors = weights()
    kept = tensors.pop("model.encoder.conv2.bias")
    assert "without model.encoder.conv2.bias" in refusal(write(tmp_path / "a", tensors))
    tensors["model.encoder.conv2.bias"] = kept[:-1]
    assert "(7,)" in refusal(write(tmp_path / "b", tensors))
    tensors |= {"model.encoder.conv2.bias": kept, "model.extra\nline": kept}
    assert r"unexpected model.extra\nline" in refusal(write(tmp_path / "c", tensors))
    tensors = weights() | {"model.decoder.layer_norm.bias": np.zeros(8, np.int8)}
    assert "I8" in refusal(write(tmp_path / "d", tensors))


def test_index_cannot_leave_the_folder(tmp_path):
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    for name in ("../elsewhere.safetensors", str(tmp_path / "elsewhere.safetensors"), "..", ""):
        index = {"weight_map": dict.fromkeys(weights(), name)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        refusal(folder)
    for index in ({}, {"weight_map": [1]}, {"weight_map": {"a": 1}}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        assert "weight_map" in refusal(folder)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "int32", "nonsense"])
def test_compute_dtypes(tmp_path, dtype):
    assert f"dtype={dtype}" in refusal(write(tmp_path), dtype=dtype)


def test_float64_needs_the_64_bit_mode(tmp_path):
    folder = write(tmp_path)
    with jax.enable_x64(False):
        assert "64-bit" in refusal(folder, dtype="float64")


def raw_safetensors(header, data=b"", length=None):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 7,
        raw_safetensors({}, length=2**63),
        raw_safetensors({}, length=1000),
        raw_safetensors(b"[]"),
        raw_safetensors(b"not json"),
        raw_safetensors({"a": entry([1], 0, 4)}),
        raw_safetensors({"a": entry([1], 0, 4)}, b"\0" * 5),
        raw_safetensors({"a": entry([2], 0, 4)}, b"\0" * 4),
        raw_safetensors({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"\0" * 4),
        raw_safetensors({"a": entry([1], 4, 8)}, b"\0" * 8),
        raw_safetensors({"a": entry([-1, -1], 0, 4)}, b"\0" * 4),
        raw_safetensors({"a": entry([1.0], 0, 4)}, b"\0" * 4),
        raw_safetensors({"a": entry([2**62], 0, 2**64)}, b"\0" * 4),
        raw_safetensors({"a": entry([1], 0, 4, dtype=["F32"])}, b"\0" * 4),
        raw_safetensors({"a": [1, 2]}),
        raw_safetensors({"a": None}),
    ],
)
def test_damaged_headers(tmp_path, raw):
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(InputError) as error:
        read_header(path)
    assert "\n" not in str(error.value)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 4_000),
    st.lists(st.tuples(st.integers(0, 1_000), st.integers(0, 255)), max_size=3),
)
def test_fuzzed_weights_load_or_are_refused(tmp_path, cut, changes):
    folder = tmp_path / "fuzzed"
    if not folder.exists():
        write(folder)
        (folder / "original").write_bytes((folder / "model.safetensors").read_bytes())
    raw = bytearray((folder / "original").read_bytes())
    for place, byte in changes:
        raw[place] = byte
    (folder / "model.safetensors").write_bytes(raw[: len(raw) - cut])
    try:
        model = whisper.load(folder)
    except InputError as error:
        assert "\n" not in str(error)
    else:
        assert cut == 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model.parameters))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_text(json.dumps(tokenizer_json()))
    return whisper.Tokenizer(path)


@pytest.mark.parametrize(
    "change",
    [
        {"decoder_start_token_id": None},
        {"decoder_start_token_id": 13},
        {"eos_token_id": [10]},
        {"eos_token_id": -1},
        {"suppress_tokens": 5},
        {"suppress_tokens": ["a"]},
        {"suppress_tokens": [99]},
        {"suppress_tokens": list(range(13))},
        {"begin_suppress_tokens": {"a": 1}},
        {"forced_decoder_ids": [[1]]},
        {"forced_decoder_ids": [[2, 12]]},
        {"forced_decoder_ids": [[1, 13]]},
        {"forced_decoder_ids": "12"},
        {"forced_decoder_ids": [[i, 1] for i in range(1, 9)]},
        {"max_length": 2},
        {"max_length": "many"},
    ],
)
def test_generation_configs_that_make_no_sense(tokenizer, change):
    with pytest.raises(InputError) as error:
        read_generation(GENERATION | change, DIMS, tokenizer)
    assert "\n" not in str(error.value)


def test_prompts_of_multilingual_models(tmp_path):
    path = tmp_path / "tokenizer.json"
    special = ("<|de|>", "<|en|>", "<|translate|>", "<|transcribe|>", "<|nospeech|>", *SPECIAL)
    path.write_text(json.dumps(tokenizer_json(special)))
    tokenizer = whisper.Tokenizer(path)
    open_language = GENERATION | {"is_multilingual": True, "forced_decoder_ids": [[1, None], [2, 8]]}
    prompt = lambda **options: read_generation(open_language, DIMS, tokenizer, **options).prompt
    assert prompt() == (11, 6, 8, 12)
    assert prompt(language="de", task="translate") == (11, 5, 7, 12)
    assert read_generation(open_language, DIMS, tokenizer).no_speech == 9
    with pytest.raises(InputError, match="fr"):
        prompt(language="fr")
    with pytest.raises(InputError, match="English-only"):
        read_generation(GENERATION, DIMS, tokenizer, language="de")
