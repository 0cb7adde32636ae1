"""The monitor: its numbers are those of the offline routes, it stops where it must, and keeps what it saw."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import spectral_theorem as st
from spectral_theorem import carried, cli, monitored
from spectral_theorem.engine import layer_quantities, layer_triplets
from spectral_theorem.moments import Moments
from spectral_theorem.monitor import Monitor
from spectral_theorem.monitor_view import View, shown
from spectral_theorem.monitorfile import MonitorFile, read_lines
from spectral_theorem.observables import spectral_slope
from spectral_theorem.rolling import Rolling
from spectral_theorem.types import InputError
from spectral_theorem.whisper import Dims, Generation, decoder_pass, greedy, random_model, token_factors
from spectral_theorem.whisper.passes import Record

WIDE = Dims(
    width=72,
    mels=4,
    frames=10,
    vocabulary=12,
    positions=24,
    encoder_layers=1,
    encoder_heads=2,
    encoder_hidden=8,
    decoder_layers=2,
    decoder_heads=2,
    decoder_hidden=16,
)
LONG = Generation(prompt=(10, 3), end=11, suppress=(10, 11), longest=20)


@pytest.fixture(scope="module")
def model():
    return random_model(jax.random.key(3), WIDE, dtype=jnp.float64, generation=LONG)


@pytest.fixture(scope="module")
def context(model):
    return model.encode(jax.random.normal(jax.random.key(4), (WIDE.mels, 2 * WIDE.frames), "float64"))


@pytest.fixture(scope="module")
def monitor(model):
    return Monitor(model, window=9, modes=6, every=3, tolerance=1e-3, group=4)


@pytest.fixture(scope="module")
def steps(monitor, context):
    return list(monitor.watch_context(context, clip="a"))


# numbers -----------------------------------------------------------------------------------------------------------


def test_tokens_are_those_of_plain_decoding(model, context, steps):
    plain = greedy(model, context[None])
    begin = len(LONG.prompt)
    length = int(plain.length[0])
    assert [step.token for step in steps] == plain.tokens[0, begin:length].tolist()
    assert np.allclose([step.logprob for step in steps], plain.logprobs[0, begin:length], atol=1e-12)
    assert [step.last for step in steps] == [False] * (len(steps) - 1) + [True]
    assert len(steps) > 12, "the window must slide"


def test_spectra_are_those_of_the_offline_route(model, context, monitor, steps):
    sequence = [*LONG.prompt, *(step.token for step in steps)]
    record = Record(self_attention=True, cross_attention=True, mlp=True)
    run = decoder_pass(
        model.parameters["decoder"], jnp.asarray(sequence), context, heads=WIDE.decoder_heads, record=record
    )
    for step in steps:
        assert step.positions == min(step.step + 1, 9)
        for c, name in enumerate(monitor.components):
            for layer in range(WIDE.decoder_layers):
                rows = np.asarray(getattr(run, name)[layer])[: step.position + 1][-step.positions :]
                if step.positions == 1:
                    assert np.isnan(step.effective_rank[c, layer])
                    continue
                mu = Moments.of(rows).spectrum()
                assert step.effective_rank[c, layer] == pytest.approx(st.effective_rank(mu, 6), rel=1e-9)
                slope = spectral_slope(mu, 6, samples=step.positions)
                assert step.alpha[c, layer] == pytest.approx(slope.alpha, rel=1e-8, nan_ok=True)
                assert step.alpha_error[c, layer] == pytest.approx(slope.error, rel=1e-6, nan_ok=True)
                assert (step.alpha_failed[c, layer] == 0) == (slope.status == "OK")


def test_gains_are_those_of_the_offline_route(model, context, steps):
    measured = [step for step in steps if step.gains is not None]
    assert [step.step for step in measured] == [step.step for step in steps if step.step % 3 == 0]
    sequence = [*LONG.prompt, *(step.token for step in steps)]
    factors = token_factors(model, context, sequence, [step.position for step in measured])
    exact = layer_quantities([layer_triplets(f) for f in factors])
    ours = lambda name: np.stack([step.gains[name] for step in measured])
    assert np.allclose(ours("sigma1"), exact["sigma1"], rtol=1e-3)
    assert np.allclose(ours("kappa_abs"), exact["kappa_abs"], rtol=0, atol=2e-2, equal_nan=True)
    assert (ours("xi") <= np.asarray(exact["xi"]) + 1e-2).all(), "from below, up to what sigma1 is off by"
    off, allowed = np.abs(ours("lam") - exact["lam"])[:, :-1], ours("lam_error")[:, :-1]
    assert (off <= allowed + np.asarray(exact["lam_error"])[:, :-1]).all()
    assert np.isfinite(allowed).any() and np.isinf(allowed).any(), "where the basis is full, the error says so"


def test_single_precision_rows_give_what_their_singular_values_give():
    rows = np.random.default_rng(0).normal(size=(2, 21, 30)).astype(np.float32) + np.float32(50)
    rows[1] *= np.float32(1e-3) ** np.arange(30, dtype=np.float32)  # most of it below the cut-off
    stream, first = Rolling(7).add(rows[:, :5])
    _, rest = stream.add(rows[:, 5:])
    for i in range(1, 21):
        found, at = (first, i) if i < 5 else (rest, i - 5)
        for place in range(2):
            exact = Moments.of(rows[place, max(i - 6, 0) : i + 1]).spectrum()
            ours = found.eigenvalues[at, place]
            assert (ours > 0).sum() == exact.size
            assert np.allclose(ours[: exact.size], exact, rtol=1e-6, atol=0)


# bad input ---------------------------------------------------------------------------------------------------------


def test_silence_one_frame_and_long_clips_are_watched(model):
    short = Monitor(model, window=9, modes=6, group=4)
    window = WIDE.window_samples
    for samples in (np.zeros(window), np.zeros(1), np.ones(160)):
        steps = list(short.watch(samples))
        assert steps and steps[-1].last
        assert all(np.isfinite(step.logprob) for step in steps)
    parts = list(short.watch(np.zeros(window + 1)))
    assert sorted({step.start for step in parts}) == [0.0, window / 16_000]
    assert sum(step.last for step in parts) == 2


def test_activations_that_do_not_change_have_no_spectrum():
    _, found = Rolling(4).add(np.ones((1, 5, 3), np.float32))
    assert not found.eigenvalues.any()
    assert np.isnan(st.effective_rank(found.eigenvalues[-1, 0]))


@pytest.mark.parametrize("samples", [np.full(100, np.nan), np.zeros(0), np.zeros((2, 3)), np.zeros(5, int)])
def test_unusable_sound_is_refused(monitor, samples):
    with pytest.raises(InputError, match="expected"):
        next(monitor.watch(samples))


def test_weights_that_are_not_finite_are_refused_with_the_step(model, context):
    broken = random_model(jax.random.key(3), WIDE, dtype=jnp.float64, generation=LONG)
    table = broken.decoder.embed_positions.embedding
    table[...] = table[...].at[7].set(jnp.nan)  # step 6 looks at it
    seen = []
    with pytest.raises(InputError, match="non-finite activations at step 6"):
        for step in Monitor(broken, window=9, modes=6, group=4).watch_context(context):
            seen.append(step.step)
    assert seen == [0, 1, 2, 3], "groups before it are kept"


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"modes": 0},
        {"every": -1},
        {"group": 0},
        {"components": ("keys",)},
        {"components": ()},
        {"layers": (0,)},
        {"layers": (3,)},
        {"tolerance": 0.0},
        {"tolerance": float("nan")},
    ],
)
def test_settings_out_of_range_are_refused(model, options):
    with pytest.raises(InputError, match="expected"):
        Monitor(model, **options)


# the record --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clips():
    return sorted(carried.CLIPS.glob("*.flac"))[:3]


def run(clips, out, **options):
    return monitored.run(model=str(carried.MODEL), audio=clips, out=out, every=2, group=2, **options)


def test_a_stopped_record_keeps_what_was_seen_and_goes_on(clips, tmp_path, monkeypatch):
    whole = run(clips, tmp_path / "whole.jsonl")
    real = monitored.Monitor.watch

    def stopping(self, audio, *, clip="", alarms=None):
        for step in real(self, audio, clip=clip, alarms=alarms):
            yield step
            if clip == clips[1].stem and step.step == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(monitored.Monitor, "watch", stopping)
    path = tmp_path / "stopped.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run(clips, path)
    lines = read_lines(path)
    assert [line["kind"] for line in lines if line.get("clip") == clips[1].stem] == ["step", "step", "stopped"]
    with open(path, "a") as file:
        file.write('{"kind": "st')  # a killed process may leave half a line
    assert len(read_lines(path)) == len(lines)
    monkeypatch.setattr(monitored.Monitor, "watch", real)
    again = run(clips, path)
    assert again.record["clips"] == whole.record["clips"]
    strip = lambda path: [line for line in read_lines(path) if line["kind"] in ("step", "end")]
    assert strip(path) == strip(tmp_path / "whole.jsonl")
    with pytest.raises(InputError, match="differs in settings"):
        run(clips, path, window=5)


def test_a_recording_that_changed_is_watched_again(tmp_path):
    path, header = tmp_path / "a.jsonl", {"model_digest": "m"}
    file = MonitorFile(path, header)
    file.write({"kind": "step", "clip": "a"})
    file.write({"kind": "end", "clip": "a", "samples": "1", "scores": {}})
    file.close()
    file = MonitorFile(path, header)
    assert file.found("b", "1") is None
    assert file.found("a", "2") is None
    file.close()
    assert [line["kind"] for line in read_lines(path)] == ["monitor"]


@pytest.mark.parametrize("content", ["", "[]\n", '{"kind": "monitor"}\n', '{"kind": "monitor", "schema": 1}\nx\n{}\n'])
def test_files_that_are_no_record_are_refused(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match="expected a record"):
        read_lines(path)


def test_sigterm_keeps_the_lines(clips, tmp_path, monkeypatch):
    real = monitored.Monitor.watch

    def stopping(self, audio, **options):
        for step in real(self, audio, **options):
            yield step
            if step.step == 1:
                signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(monitored.Monitor, "watch", stopping)
    path = tmp_path / "a.jsonl"
    with pytest.raises(cli.Stopped), cli._stop_on_sigterm():
        run(clips[:1], path)
    assert [line["kind"] for line in read_lines(path)] == ["monitor", "step", "step", "stopped"]
    assert read_lines(path)[-1]["by"] == "Stopped"


def test_a_clip_that_cannot_be_read_fails_alone(clips, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_bytes(b"no sound")
    path = tmp_path / "a.jsonl"
    found = run([clips[0], bad], path)
    assert found.exit_code == 3
    assert list(found.record["failed"]) == ["bad"]
    assert [line["clip"] for line in read_lines(path) if line["kind"] == "failed"] == ["bad"]
    with pytest.raises(InputError):
        run([bad], None)


def test_alarms_come_from_a_record_of_clean_clips(clips, tmp_path):
    clean = tmp_path / "clean.jsonl"
    run(clips, clean)
    options = {"clean": clean, "level": 0.25, "signals": "unlikely"}
    found = run(clips, tmp_path / "b.jsonl", **options)
    assert all(not clip["alarms"] for clip in found.record["clips"].values()), "none is beyond the worst of themselves"
    assert "3 clean ones" in found.text
    with pytest.raises(InputError, match="at least 19 clean clips"):
        run(clips, None, **{**options, "level": 0.05})
    with pytest.raises(InputError, match="another settings"):
        run(clips, None, **options, window=4)
    with pytest.raises(InputError, match="no gains"):
        monitored.run(model=str(carried.MODEL), audio=clips, every=0, clean=clean, signals="low_gain")
    assert json.dumps(found.record, allow_nan=False)


def test_the_view_rolls(steps):
    import io

    from rich.console import Console

    view = View(("self_attention", "cross_attention", "mlp"), rows=3)
    console = Console(file=io.StringIO(), force_terminal=True, width=110)
    with shown(view, console=console) as show:
        for step in steps:
            show(step)
    console.print(view.table())
    text = console.file.getvalue()
    assert f"<{steps[-1].token}>" in text
    assert len(view.steps) == 3
    quiet = Console(file=io.StringIO())
    with shown(View(("mlp",)), console=quiet) as show:
        show(steps[0])
    assert quiet.file.getvalue() == ""
