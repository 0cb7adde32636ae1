"""Checkpoints written by one side and read by the other: transformers, torch, and the published token numbers."""

import dataclasses
import importlib.util
import os

import jax.numpy as jnp
import numpy as np
import pytest
from parity_cases import CASES

from spectral_theorem import whisper
from spectral_theorem.whisper.checkpoint import parameter_shapes
from spectral_theorem.whisper.layouts import OPENAI
from spectral_theorem.whisper.published import _UNSPOKEN, LANGUAGES
from spectral_theorem.whisper.torchfile import read_torch

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]  # the reference's warnings are not ours


@pytest.fixture(scope="session", autouse=True)
def parity_extra():
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"the parity extra is not installed: no {' and no '.join(missing)}"
        if os.environ.get("SPECTRAL_THEOREM_REQUIRE_PARITY") == "1":
            pytest.fail(reason)
        pytest.skip(reason)


def logits_of_both(case, ours, theirs):
    import torch

    mel, tokens = case.inputs()
    with torch.no_grad():
        expected = theirs(input_features=torch.from_numpy(mel), decoder_input_ids=torch.from_numpy(tokens)).logits
    return np.asarray(ours(jnp.asarray(mel), jnp.asarray(tokens))), expected.numpy()


@pytest.mark.parametrize("case", [CASES[1], CASES[3]], ids=lambda case: case.name)
def test_transformers_loads_what_we_save(case, tmp_path):
    import torch
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

    ours = whisper.load(case.write(tmp_path / "first"), "float64")
    folder = whisper.save(ours, tmp_path / "second")
    theirs = WhisperForConditionalGeneration.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    mine, expected = logits_of_both(case, ours, theirs.eval())
    assert np.abs(mine - expected).max() < 1e-11
    described = theirs.generation_config
    assert (described.decoder_start_token_id, described.eos_token_id) == (
        ours.generation.prompt[0],
        ours.generation.end,
    )
    assert tuple(described.suppress_tokens) == ours.generation.suppress
    assert WhisperFeatureExtractor.from_pretrained(folder).feature_size == case.mels


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_transformers_loads_half_precision(dtype, tmp_path):
    import torch
    from transformers import WhisperForConditionalGeneration

    ours = whisper.load(CASES[0].write(tmp_path / "first"), "float32")
    folder = whisper.save(ours, tmp_path / "second", dtype=dtype)
    theirs = WhisperForConditionalGeneration.from_pretrained(folder, dtype="auto")
    assert theirs.dtype == getattr(torch, dtype)
    stored = theirs.model.decoder.layers[1].fc1.weight.detach().to(torch.float32).numpy()
    kernel = ours.parameters["decoder"]["layers"][1]["fc1"]["kernel"]
    assert np.array_equal(stored, np.asarray(kernel.astype(dtype).astype("float32")).T)


@pytest.mark.parametrize("options", [{}, {"max_shard_size": "20KB"}], ids=["whole", "shards"])
def test_we_load_what_transformers_saves(options, tmp_path):
    import torch
    from transformers import WhisperForConditionalGeneration

    case = CASES[2]
    first = case.write(tmp_path / "first")
    theirs = WhisperForConditionalGeneration.from_pretrained(first, dtype=torch.float64, attn_implementation="eager")
    theirs.eval().save_pretrained(tmp_path / "second", **options)
    assert (tmp_path / "second" / "model.safetensors.index.json").exists() == bool(options)
    ours = whisper.load(tmp_path / "second", "float64")
    mine, expected = logits_of_both(case, ours, theirs)
    assert np.abs(mine - expected).max() < 1e-11
    assert ours.tokenizer is None
    assert ours.generation.prompt == whisper.load(first).generation.prompt


NAMES = (
    "n_mels n_audio_ctx n_audio_state n_audio_head n_audio_layer "
    "n_vocab n_text_ctx n_text_state n_text_head n_text_layer"
).split()


def views(dtype):
    """A state dict as torch may hold it: views, transposes, one storage shared by two slices."""
    import torch

    draw = lambda *shape: torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    whole = draw(6, 8)
    return {
        "plain": draw(3, 4, 2),
        "turned": draw(5, 7).T,
        "steps": draw(9, 4)[1::2, ::3],
        "upper": whole[:3],
        "lower": whole[3:],
        "scalar": torch.tensor(2.5).to(dtype),
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_tensors_that_torch_saved(dtype, tmp_path):
    import torch

    sizes = dict(zip(NAMES, (5, 6, 8, 2, 1, 13, 9, 8, 4, 2), strict=True))
    state = views(getattr(torch, dtype))
    torch.save({"dims": sizes, "model_state_dict": state}, tmp_path / "a.pt")
    dims, stored = read_torch(tmp_path / "a.pt")
    assert (dims.width, dims.vocabulary, dims.decoder_heads) == (8, 13, 4)
    assert stored.keys() == state.keys()
    for name, tensor in state.items():
        read = stored[name].read()
        assert read.dtype == jnp.dtype(dtype)
        assert np.array_equal(read.astype(np.float64), tensor.to(torch.float64).numpy())


def test_a_whole_model_that_torch_saved(tmp_path):
    """Parameters with gradients, in an OrderedDict that carries module versions, as `state_dict()` gives it."""
    import torch

    small = {"frames": 6, "positions": 9, "encoder_layers": 1, "decoder_layers": 2, "decoder_heads": 4}
    small |= {"width": 8, "mels": 5, "encoder_heads": 2, "encoder_hidden": 32, "decoder_hidden": 32}
    dims = dataclasses.replace(whisper.catalogue["openai/whisper-tiny"].dims, **small)
    module = torch.nn.Module()
    shapes = {path: OPENAI.shape(path, leaf.shape) for path, leaf in parameter_shapes(dims).items()}
    for path, shape in shapes.items():
        *levels, last = OPENAI.name(path).split(".")
        here = module
        for level in levels:
            if level not in dict(here.named_children()):
                here.add_module(level, torch.nn.Module())
            here = getattr(here, level)
        here.register_parameter(last, torch.nn.Parameter(torch.randn(shape)))
    sizes = dict(zip(NAMES, (5, 6, 8, 2, 1, dims.vocabulary, 9, 8, 4, 2), strict=True))
    torch.save({"dims": sizes, "model_state_dict": module.state_dict()}, tmp_path / "model.pt")
    model = whisper.load(tmp_path / "model.pt")
    assert model.dims == dims
    stored = module.state_dict()["decoder.blocks.1.cross_attn.query.weight"].numpy()
    kernel = model.parameters["decoder"]["layers"][1]["encoder_attn"]["q_proj"]["kernel"]
    assert np.array_equal(np.asarray(kernel), stored.T)


def test_published_numbers_are_those_of_transformers():
    from transformers.models.whisper import configuration_whisper, tokenization_whisper

    assert list(tokenization_whisper.LANGUAGES) == LANGUAGES
    for multilingual, name in ((False, "NON_SPEECH_TOKENS"), (True, "NON_SPEECH_TOKENS_MULTI")):
        published = getattr(configuration_whisper, name)
        ours = list(map(int, _UNSPOKEN[multilingual].split()))
        assert published[: len(ours)] == ours and min(published[len(ours) :]) > 50_256
