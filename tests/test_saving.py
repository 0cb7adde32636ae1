"""Saving: what is written is read back as it was, whole or not at all."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import DIMS, tokenizer_json, write
from safetensors.numpy import load_file

from spectral_theorem import whisper
from spectral_theorem.types import InputError
from spectral_theorem.whisper import saving
from spectral_theorem.whisper.checkpoint import build


def leaves(model):
    return jax.tree.leaves(model.parameters)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_what_is_saved_is_loaded(tmp_path, dtype):
    model = whisper.load(write(tmp_path / "first"), dtype)
    again = whisper.load(whisper.save(model, tmp_path / "second"), dtype)
    assert all(np.array_equal(a, b) for a, b in zip(leaves(model), leaves(again), strict=True))
    assert (again.dims, again.generation, again.tokenizer.special) == (
        model.dims,
        model.generation,
        model.tokenizer.special,
    )
    files = {"config.json", "generation_config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"}
    assert {file.name for file in (tmp_path / "second").iterdir()} == files
    assert json.loads((tmp_path / "second" / "tokenizer.json").read_text())["model"] == tokenizer_json()["model"]


def test_another_dtype_may_be_stored(tmp_path):
    model = whisper.load(write(tmp_path / "first"))
    folder = whisper.save(model, tmp_path / "second", dtype="bfloat16")
    stored = load_file(folder / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {jnp.dtype("bfloat16")}
    fc1 = model.parameters["decoder"]["layers"][0]["fc1"]["kernel"]
    assert np.array_equal(stored["model.decoder.layers.0.fc1.weight"], np.asarray(fc1.astype("bfloat16")).T)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_multilingual_prompt_survives(tmp_path):
    dims = whisper.catalogue["openai/whisper-tiny"].dims
    small = {name: getattr(DIMS, name) for name in ("width", "mels", "encoder_heads", "decoder_heads")}
    small |= {"encoder_layers": 1, "decoder_layers": 1, "encoder_hidden": 8, "decoder_hidden": 8, "frames": 6}
    dims = whisper.Dims(**{name: getattr(dims, name) for name in ("vocabulary", "positions")} | small)
    generation = whisper.Generation((50258, 50261, 50358, 50363), 50257, no_speech=50362)
    model = whisper.random_model(jax.random.key(0), dims, generation=generation)
    folder = whisper.save(model, tmp_path / "model")
    again = whisper.load(folder).generation
    assert (again.prompt, again.end, again.no_speech) == (generation.prompt, generation.end, generation.no_speech)
    assert whisper.load(folder, language="fr", task="transcribe").generation.prompt == (50258, 50265, 50359, 50363)
    described = json.loads((folder / "generation_config.json").read_text())
    assert described["is_multilingual"] and described["lang_to_id"]["<|de|>"] == 50261
    assert described["task_to_id"] == {"transcribe": 50359, "translate": 50358}


def test_nothing_is_overwritten(tmp_path):
    model = whisper.random_model(jax.random.key(0), DIMS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    (tmp_path / "empty").mkdir()
    for folder in ("full", "full/file", "none/below"):
        with pytest.raises(InputError):
            whisper.save(model, tmp_path / folder)
    whisper.save(model, tmp_path / "empty")
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["file"]


def test_a_failure_on_the_way_leaves_nothing(tmp_path, monkeypatch):
    model = whisper.random_model(jax.random.key(0), DIMS)
    monkeypatch.setattr(saving, "_bytes", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        whisper.save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_values_that_do_not_fit_the_stored_dtype(tmp_path):
    small = whisper.random_model(jax.random.key(0), DIMS)

    def read(path):
        here = small.parameters
        for key in path:
            here = here[key]
        return here * 1e6

    model = build(DIMS, read, jnp.float32, generation=small.generation, tokenizer=None, label="large")
    with pytest.raises(InputError, match="beyond float16"):
        whisper.save(model, tmp_path / "model", dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_half_precision_computes(tmp_path):
    folder = whisper.save(whisper.random_model(jax.random.key(0), DIMS), tmp_path / "model")
    mel = jax.random.normal(jax.random.key(1), (DIMS.mels, 2 * DIMS.frames))
    tokens = jnp.asarray([11, 12, 3, 4])
    exact = np.asarray(whisper.load(folder, "float32")(mel, tokens))
    for dtype in ("float16", "bfloat16"):
        logits = whisper.load(folder, dtype)(mel, tokens)
        assert logits.dtype == jnp.dtype(dtype)
        error = np.abs(np.asarray(logits, np.float32) - exact).max() / np.abs(exact).max()
        assert error < 20 * float(jnp.finfo(dtype).eps)
