"""Variants of a token's propagators against oracles, and close looks that go on where they were stopped."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mutation import mutant

from spectral_theorem import InputError, detail
from spectral_theorem.tokenchains import (
    clip_tokens,
    in_dtype,
    same_tokens,
    sequence_summary,
    summarised,
    token_gains,
    token_propagators,
    untrained,
)
from spectral_theorem.whisper import Dims, random_model

DIMS = Dims(
    width=10,
    mels=4,
    frames=12,
    vocabulary=7,
    positions=9,
    encoder_layers=1,
    encoder_heads=2,
    encoder_hidden=12,
    decoder_layers=2,
    decoder_heads=2,
    decoder_hidden=14,
)


@pytest.fixture(scope="module")
def heard():
    model = random_model(jax.random.key(3), DIMS, dtype=jnp.float64)
    return model, clip_tokens(model, np.sin(np.arange(3200) / 7).astype(np.float32), "2")


def test_variants_are_what_they_say(heard):
    model, clip = heard
    plain, parts = token_propagators(model, clip), token_propagators(model, clip, "sub-block")
    blocks_again = [parts[:, 3 * i + 2] @ parts[:, 3 * i + 1] @ parts[:, 3 * i] for i in range(2)]
    np.testing.assert_allclose(np.stack(blocks_again, axis=1), plain, atol=1e-12)
    np.testing.assert_allclose(token_propagators(model, clip, "no identity") + np.eye(10), plain, atol=1e-14)
    for variant in ("bfloat16 weights", "bfloat16"):
        rounded = token_propagators(model, clip, variant)
        error = float(jnp.abs(rounded - plain).max() / jnp.abs(plain).max())
        assert rounded.dtype == plain.dtype and 1e-5 < error < 0.2
    with pytest.raises(InputError, match="variant='sideways'"):
        token_propagators(model, clip, "sideways")


def test_frozen_layernorm_is_the_derivative_with_its_deviation_held(heard):
    model, clip = heard

    ours = token_propagators(model, clip, "frozen LayerNorm")
    deviation = "jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + EPSILON)"
    tokens, places = clip.transcription.sequence, clip.positions
    with mutant("whisper.blocks", deviation, f"jax.lax.stop_gradient({deviation})") as load:
        frozen = load("whisper.jacobians")
        oracle = frozen.token_jacobians(model, clip.encoded, tokens, places, method="jacfwd")
    np.testing.assert_allclose(ours, jnp.swapaxes(oracle, 0, 1), atol=1e-10)
    assert float(jnp.abs(ours - token_propagators(model, clip)).max()) > 1e-3


def test_an_untrained_model_has_the_shape_and_hears_the_same_tokens(heard):
    model, clip = heard
    fresh = untrained(jax.random.key(0), model)
    assert fresh.dtype == model.dtype and "untrained" in fresh.label
    shapes = lambda m: jax.tree.map(jnp.shape, m.parameters)
    assert shapes(fresh) == shapes(model)
    other = same_tokens(fresh, clip)
    assert other.transcription is clip.transcription and not np.allclose(other.encoded, clip.encoded)
    narrow = in_dtype(model, jnp.bfloat16)
    assert narrow.encode(jnp.zeros((4, 24))).dtype == jnp.bfloat16


def test_summaries_leave_out_what_is_not_resolved(heard):
    model, clip = heard
    gains = token_gains(token_propagators(model, clip))
    found = summarised(gains)
    assert found["resolved"] == 1.0 and abs(found["lam"] - float(np.mean(gains.lam))) < 1e-12
    blind = dataclasses.replace(gains, resolved=np.asarray(gains.resolved) & (np.arange(2) > 0))
    assert np.isnan(summarised(blind)["lam"]) and np.isfinite(summarised(blind)["growth"])
    whole = sequence_summary(model, clip)
    assert whole["sigma1"] >= float(np.mean(gains.sigma1[-1])) * 0.5 and 0 <= whole["resolved"] <= 1


def test_close_looks_go_on_where_they_were_stopped(tmp_path, monkeypatch, heard):
    seen = []

    def look(model, sounds, number, **options):
        seen.append(number)
        if number == 2:
            raise InputError("got silence; expected sound; try another")
        return {topic: [{"clip": sounds[number][0]["clip"], "topic": topic}] for topic in detail.TOPICS}

    monkeypatch.setattr(detail, "closely", look)
    sounds = [({"clip": f"c{i}", "condition": "clean"}, lambda i=i: np.full(8, float(i))) for i in range(3)]
    ask = lambda: detail.detail(heard[0], sounds, folder=tmp_path, key="k")
    rows, failed = ask()
    assert [row["clip"] for row in rows["chance"]] == ["c0", "c1"] and failed == {
        "c2, clean": "got silence; expected sound; try another"
    }
    ask()
    assert seen == [0, 1, 2, 2]  # only what failed is tried again
    (tmp_path / "detail/0001.json").write_text("{")
    sounds[0] = (sounds[0][0], lambda: np.full(8, 9.0))  # another recording under the same name
    ask()
    assert seen[4:] == [0, 1, 2]
    assert json.loads((tmp_path / "detail/0001.json").read_text())["rows"]["chance"][0]["clip"] == "c1"
    seen.clear()
    detail.detail(heard[0], sounds[:2], folder=tmp_path, key="k", sequences=1)
    assert seen == [1]  # what was decomposed whole and need not be is made again, and nothing else


def test_sequences_are_those_of_clips_as_they_are():
    sounds = [({"clip": name, "condition": condition}, None) for name in "abc" for condition in ("clean", "hell")]
    assert detail._whole(sounds, 2) == {0, 2} and detail._whole(sounds, 9) == {0, 2, 4} and not detail._whole(sounds, 0)


def test_a_closer_look_takes_speakers_in_turn():
    assert detail.spread_over(list("abcd"), list("xxyy"), list("1123"), 3) == ["a", "c", "d"]
    assert detail.spread_over(list("ab"), list("xx"), list("12"), 0) == []
