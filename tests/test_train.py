"""Training: it learns, it stops and goes on as if it had not, and it says what is wrong with its input."""

import csv
import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st
from spectral_theorem import whisper
from spectral_theorem.audio import log_mel, save_audio
from spectral_theorem.clips import Clip
from spectral_theorem.corpus import CLEAN, Augmentation, draw_strings, read_words
from spectral_theorem.datasets import find
from spectral_theorem.objective import cross_entropy, optimiser, sequence_logits, update
from spectral_theorem.scoring import DIGITS
from spectral_theorem.train import run, split, train
from spectral_theorem.trainconfig import TrainConfig, checkpoint_steps, read_config

TINY = TrainConfig(
    width=32,
    encoder_layers=1,
    decoder_layers=2,
    heads=2,
    hidden=64,
    mels=40,
    window_seconds=0.5,
    longest=1,
    ramp=0,
    steps=160,
    batch=16,
    learning_rate=1e-2,
    warmup=10,
    masked_mels=1,
    masked_frames=2,
    save_every=40,
    held_out=("*_0.wav",),
    unseen_speaker="eve",
    evaluated=32,
    augmentation=Augmentation(speed=1.02, gap_seconds=0.02, noisy=0.2, lowest_snr_db=20.0, tilt=0.1),
)

SHORT = dataclasses.replace(TINY, longest=2, ramp=4, steps=12, warmup=2, save_every=5, evaluated=4)


@pytest.fixture(scope="module")
def tones(tmp_path_factory):
    """Ten words that are ten tones, three takes each of three speakers with slightly different throats."""
    folder = tmp_path_factory.mktemp("tones")
    rows = []
    for s, speaker in enumerate(("adam", "bert", "eve")):
        for digit, word in enumerate(DIGITS):
            for take in range(3):
                t = np.arange(2400 + 100 * take) / 16_000
                tone = np.sin(2 * np.pi * (300 * 1.35**digit) * (1 + 0.005 * s) * t) * np.hanning(t.size)
                name = f"{digit}_{speaker}_{take}.wav"
                save_audio(folder / name, tone.astype(np.float32))
                rows.append({"path": name, "transcript": word, "speaker": speaker})
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["path", "transcript", "speaker"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def trained(tones, tmp_path_factory):
    out = tmp_path_factory.mktemp("trained") / "run"
    return train(TINY, find(tones), out), out


def test_it_learns_to_hear(trained):
    record, _ = trained
    losses = record["losses"]["values"]
    assert losses[0] > 2.2 and record["final_loss"] < 1.0
    rates = record["word_error_rates"]
    assert rates["held_out_takes"]["rate"] < 0.5 and rates["unseen_speaker"]["rate"] < 0.5  # 0.9 by chance
    for rate in rates.values():
        assert rate["words"] == rate["strings"] == 32 and rate["rate"] == rate["errors"] / 32
        # one word per string: errors are binomial
        assert abs(rate["standard_error"] - np.sqrt(rate["rate"] * (1 - rate["rate"]) / 32)) < 1e-12
    assert record["recordings"] == {"training": 40, "held_out_takes": 20, "unseen_speaker": 30}


def test_every_checkpoint_is_a_model_that_loads(trained):
    record, out = trained
    folders = sorted((out / "checkpoints").iterdir())
    assert [int(folder.name[5:]) for folder in folders] == list(checkpoint_steps(160))
    first, last = whisper.load(folders[0]), whisper.load(out / record["checkpoint"])
    positions = [np.asarray(model.encoder.embed_positions.embedding[...]) for model in (first, last)]
    np.testing.assert_array_equal(*positions)
    assert last.tokenizer.decode([3, 7]) == "three seven" and last.dims == TINY.dims
    assert sum(leaf.size for leaf in jax.tree.leaves(last.parameters)) == record["parameters"]


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def undisturbed(tones, tmp_path_factory):
    out = tmp_path_factory.mktemp("short") / "run"
    return train(SHORT, find(tones), out), out


@pytest.mark.parametrize("killed_at", [0, 7])
def test_a_run_that_was_killed_and_goes_on_is_the_run_that_was_not(
    undisturbed, tones, tmp_path, killed_at, monkeypatch
):
    record, _ = undisturbed
    calls = 0

    def dying(*arguments):
        nonlocal calls
        calls += 1
        if calls > killed_at:
            raise Killed
        return update(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr("spectral_theorem.train.update", dying)
        train(SHORT, find(tones), tmp_path / "run")
    assert json.loads((tmp_path / "run" / "training.json").read_text())["status"] == "running"
    again = train(SHORT, find(tones), tmp_path / "run")
    assert again["sha256"] == record["sha256"] and again["losses"] == record["losses"]


def test_a_diverging_run_stops_with_its_step_and_keeps_what_it_has(tones, tmp_path):
    wild = dataclasses.replace(SHORT, learning_rate=1e30, warmup=0)
    with pytest.raises(st.InputError, match=r"a loss of (nan|inf) at step \d+; expected a finite loss; try a lower"):
        train(wild, find(tones), tmp_path / "run")
    whisper.load(tmp_path / "run" / "checkpoints" / "step-0000000")


def test_the_verb_says_what_came_out(trained, tones, tmp_path):
    """A finished run is not trained again, only counted again."""
    _, out = trained
    lines = []
    for field in dataclasses.fields(TINY):
        value = getattr(TINY, field.name)
        if field.name != "augmentation":
            lines.append(f"{field.name} = {json.dumps(list(value) if isinstance(value, tuple) else value)}")
    lines += ["[augmentation]", "speed = 1.02", "gap_seconds = 0.02", "noisy = 0.2", "lowest_snr_db = 20", "tilt = 0.1"]
    config = tmp_path / "tiny.toml"
    config.write_text("\n".join(lines))
    assert read_config(config) == TINY
    outcome = run(config=config, corpus=[tones], out=out)
    assert outcome.exit_code == 0 and "word error rate, unseen speaker:" in outcome.text


# ---------------------------------------------------------------- parts


@pytest.fixture(scope="module")
def words(tones):
    return read_words(find(tones))


def draw(words, step=3, **changes):
    options = {"seed": 1, "batch": 6, "shortest": 1, "longest": 3, "window": 16_000} | changes
    return draw_strings(words, step=step, **options)


def test_batches_depend_on_seed_and_step_alone(words):
    one, same, other = (
        draw(words, augmentation=Augmentation()),
        draw(words, augmentation=Augmentation()),
        draw(words, 4),
    )
    np.testing.assert_array_equal(one.samples, same.samples)
    assert one.words == same.words != other.words
    assert draw(words, seed=2).words != draw(words).words


@pytest.mark.parametrize("augmentation", [CLEAN, Augmentation()], ids=["clean", "varied"])
def test_strings_are_finite_of_sane_level_and_length(words, augmentation):
    drawn = draw(words, batch=40, augmentation=augmentation)
    peaks = np.abs(drawn.samples).max(axis=1)
    assert drawn.samples.dtype == np.float32 and drawn.samples.shape == (40, 16_000)
    low, high = 10 ** (augmentation.quietest_db / 20), 10 ** (-1 / 20)
    assert (peaks >= low * (1 - 1e-5)).all() and (peaks <= high * (1 + 1e-5)).all()
    assert {len(said) for said in drawn.words} == {1, 2, 3}


def test_strings_grow_along_the_ramp():
    config = dataclasses.replace(TINY, shortest=1, longest=4, ramp=30)
    assert [config.longest_at(step) for step in (0, 9, 10, 19, 20, 29, 30, 99)] == [1, 1, 2, 2, 3, 3, 4, 4]


def test_a_full_window_holds_fewer_words_and_says_which(words):
    drawn = draw(words, shortest=3, window=6000)
    assert all(1 <= len(said) <= 2 for said in drawn.words)


def test_clean_strings_are_the_recordings(words):
    quiet = dataclasses.replace(CLEAN, gap_seconds=0.0)
    drawn = draw(words.where([i == 4 for i in range(len(words))]), longest=1, augmentation=quiet)
    row = drawn.samples[0]
    heard = row[np.flatnonzero(row)[0] : np.flatnonzero(row)[-1] + 1]
    kept = words.samples[4][np.flatnonzero(words.samples[4])[0] : np.flatnonzero(words.samples[4])[-1] + 1]
    np.testing.assert_allclose(heard / np.abs(heard).max(), kept / np.abs(kept).max(), atol=1e-6)


def test_splits_share_nothing(words):
    parts = split(words, TINY)
    names = [set(part.name) for part in (parts.training, parts.held_out, parts.unseen)]
    assert sum(map(len, names)) == len(set.union(*names)) == len(words)
    assert set(parts.unseen.speaker) == {"eve"} and "eve" not in parts.training.speaker


@pytest.fixture(scope="module")
def batch(words):
    config = dataclasses.replace(SHORT, masked_mels=0, masked_frames=0)
    generation = whisper.word_generation(10, config.dims.positions)
    model = whisper.initial_model(jax.random.key(1), config.dims, generation=generation, tokenizer=None, label="x")
    samples = jnp.asarray(draw(words, window=8000, longest=2, batch=3).samples)
    tokens = jnp.asarray([[11, 12, 3, 7, 10], [11, 12, 5, 10, 10], [11, 12, 0, 10, 10]], jnp.int32)
    return config, model, samples, tokens


def test_the_scanned_model_is_the_model(batch):
    config, model, samples, tokens = batch
    mel = jnp.stack([log_mel(x, config.mels, length=8000) for x in samples])
    scanned = sequence_logits(model.parameters, mel, tokens, heads=config.heads)
    np.testing.assert_allclose(scanned, model(mel, tokens), atol=1e-5)


def test_the_loss_counts_words_and_one_end_of_text(batch):
    config, model, samples, tokens = batch
    mel = jnp.stack([log_mel(x, config.mels, length=8000) for x in samples])
    logits = np.asarray(model(mel, tokens), np.float64)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    places = [(0, 1, 3), (0, 2, 7), (0, 3, 10), (1, 1, 5), (1, 2, 10), (2, 1, 0), (2, 2, 10)]
    wanted = -np.mean([logs[place] for place in places])
    found = cross_entropy(model.parameters, samples, tokens, jax.random.key(0), config)
    assert abs(float(found) - wanted) < 1e-5


def test_half_precision_is_near_single(batch):
    config, model, samples, tokens = batch
    half = dataclasses.replace(config, dtype="bfloat16")
    losses = [cross_entropy(model.parameters, samples, tokens, jax.random.key(0), c) for c in (config, half)]
    assert 0 < abs(float(losses[0]) - float(losses[1])) < 0.05


def test_only_kernels_decay_and_positions_of_the_encoder_stay(batch):
    config, model, samples, tokens = batch
    heavy = dataclasses.replace(config, weight_decay=0.5, learning_rate=1e-3, warmup=0)
    before = model.parameters
    after, _, _ = update(before, optimiser(heavy).init(before), samples, tokens, jnp.asarray(0), heavy)
    place = lambda tree: tree["encoder"]["embed_positions"]["embedding"]
    np.testing.assert_array_equal(place(before), place(after))
    unused = lambda tree: tree["decoder"]["embed_positions"]["embedding"][-1]  # no sequence is that long
    np.testing.assert_array_equal(unused(before), unused(after))
    assert not np.array_equal(before["encoder"]["conv1"]["kernel"], after["encoder"]["conv1"]["kernel"])


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 'many'", "steps='many' in .*; expected a int; try steps = 4000"),
        ("steps = true", "steps=True"),
        ("stepz = 3", "the key 'stepz'"),
        ("steps = 0", "steps=0; expected at least 1"),
        ("heads = 5", "heads"),
        ("dtype = 'float16'", "dtype='float16'"),
        ("held_out = 'x'", "held_out='x'"),
        ("learning_rate = nan", "learning_rate=nan"),
        ("augmentation = 3", "augmentation=3"),
        ("[augmentation]\nspeed = 0.5", "speed=0.5; expected a factor >= 1"),
        ("[augmentation]\npitch = 2", "the key 'pitch'"),
        ("steps = ", "a training config in TOML"),
    ],
)
def test_a_bad_config_is_named(tmp_path, text, message):
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(st.InputError, match=message):
        read_config(path)


def test_bad_folders_and_corpora_are_named(trained, tones, tmp_path):
    _, out = trained
    with pytest.raises(st.InputError, match="a run of another config"):
        train(dataclasses.replace(TINY, seed=5), find(tones), out)
    with pytest.raises(st.InputError, match="a run on other recordings"):
        train(TINY, find(tones)[4:], out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(st.InputError, match="which holds other files"):
        train(TINY, find(tones), tmp_path / "other")
    with pytest.raises(st.InputError, match="a file; expected a folder"):
        train(TINY, find(tones), tmp_path / "other" / "thesis.txt")
    with pytest.raises(st.InputError, match="a corpus of 1 recordings, 0 with a transcript"):
        train(TINY, [Clip(tones / "0_adam_0.wav")], tmp_path / "new")
    with pytest.raises(st.InputError, match="unseen_speaker='nobody'; expected one of adam, bert, eve"):
        train(dataclasses.replace(TINY, unseen_speaker="nobody"), find(tones), tmp_path / "new")
    with pytest.raises(st.InputError, match="which matches every recording"):
        train(dataclasses.replace(TINY, held_out=("*",)), find(tones), tmp_path / "new")
    silent = tmp_path / "silent.wav"
    save_audio(silent, np.zeros(1000, np.float32))
    with pytest.raises(st.InputError, match="which is silent"):
        train(TINY, [Clip(silent, "one", "adam")], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_damaged_state_is_named(undisturbed, tones, tmp_path):
    shutil.copytree(undisturbed[1], tmp_path / "run")
    state = tmp_path / "run" / "state.npz"
    for damage in (b"not a zip", state.read_bytes()[:2000], b""):
        state.write_bytes(damage)
        with pytest.raises(st.InputError, match=r"state.npz .*; expected the state of a training run; try rm"):
            train(SHORT, find(tones), tmp_path / "run")
    np.savez(state, step=3, losses=[1.0] * 3, leaf_00000=np.asarray([object()]))
    with pytest.raises(st.InputError, match="state of a training run"):
        train(SHORT, find(tones), tmp_path / "run")
