"""All tokens of a clip: what is asked for, what is refused, and runs that were stopped and go on."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_theorem import carried, cli, measured, stepwise
from spectral_theorem.runs import read_run
from spectral_theorem.steps import chosen_steps
from spectral_theorem.stepwise import measure_steps, sweep_bytes
from spectral_theorem.types import InputError, Verdict
from spectral_theorem.whisper import Dims, random_model
from spectral_theorem.whisper.generation import Generation

DIMS = Dims(
    width=8,
    mels=4,
    frames=10,
    vocabulary=12,
    positions=16,
    encoder_layers=1,
    encoder_heads=2,
    encoder_hidden=8,
    decoder_layers=2,
    decoder_heads=2,
    decoder_hidden=16,
)
# never ends by itself: ten tokens, and the end of text
LONG = Generation(prompt=(10,), end=11, suppress=(10, 11), longest=12)


@pytest.fixture(scope="module")
def model():
    return random_model(jax.random.key(3), DIMS, dtype=jnp.float64, generation=LONG)


@pytest.fixture(scope="module")
def sound():
    return np.sin(np.arange(DIMS.window_samples) * 0.3)


@pytest.fixture(scope="module")
def whole(model, sound):
    return measure_steps(model, sound, group=4)


# which steps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("all", (0, 1, 2, 3, 4, 5, 6)),
        (" all ", (0, 1, 2, 3, 4, 5, 6)),
        ("0", (0,)),
        ("6", (6,)),
        ("3,1", (1, 3)),
        ("1,1,1", (1,)),
        (" 0 , 2-3 ,", (0, 2, 3)),
        ("2-2", (2,)),
        ("0-6", (0, 1, 2, 3, 4, 5, 6)),
        ("0000000000002", (2,)),
        ([2, 0], (0, 2)),
        (range(2), (0, 1)),
    ],
)
def test_steps_that_are_meant(text, steps):
    assert chosen_steps(text, 7) == steps


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no token"),
        (" , ", "no token"),
        ([], "no token"),
        ("a", "'a'"),
        ("-1", "'-1'"),
        ("1-", "'1-'"),
        ("-", "'-'"),
        ("1-2-3", "'1-2-3'"),
        ("1.5", "'1.5'"),
        ("1e3", "'1e3'"),
        ("²", "whole numbers"),
        ("ALL", "'ALL'"),
        ("3-1", "backwards"),
        ("0,3-1", "backwards"),
        ("7", "step 7"),
        ("0,7", "step 7"),
        ("5-9", "step 9"),
        ("7-3", "step 7"),
        ("0-999999", "step 999999"),
        ("0-99999999999999999999", "step 9999999999"),
        ("9" * 5000, "step 9999999999"),
        ([7], "step 7"),
        ([-1], "step -1"),
    ],
    ids=lambda x: repr(x)[:20],
)
def test_steps_that_are_not(text, words):
    with pytest.raises(InputError, match="expected") as refused:
        chosen_steps(text, 7)
    assert words in str(refused.value) and "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300 or text == "9" * 5000


# what is measured ------------------------------------------------------------------------------------------------


def test_every_step_is_there_and_names_its_token(model, whole):
    t = whole.transcription
    assert whole.steps == tuple(range(t.steps)) and t.steps > 8
    plain = whole.to_dicts()
    assert list(plain) == list(whole.steps)
    for step, chain in plain.items():
        assert chain["step"] == step and chain["position"] == t.position(step)
        assert chain["token"] == t.sequence[t.prompt_length + step]
        assert len(chain["layers"]) == len(chain["names"]) == 2 and chain["names"][0] == "block 1"
        assert chain["layers"][0]["injection_norm"] > 0
    json.dumps(measured.json_ready(plain)[0], allow_nan=False)


LEAVES = ("sigma", "xi", "rho", "kappa_error", "sigma_error", "misalignment")


@pytest.mark.parametrize("group", [1, 3, 16])
def test_groups_change_nothing_beyond_error_bars(model, sound, whole, group):
    other = measure_steps(model, sound, group=group)
    a, b = other.sweep.verification, whole.sweep.verification
    for name in LEAVES:
        np.testing.assert_allclose(getattr(a.triplets, name), getattr(b.triplets, name), atol=1e-9)
    np.testing.assert_array_equal(a.claims.code, b.claims.code)
    np.testing.assert_allclose(other.sweep.injection_norm, whole.sweep.injection_norm, rtol=1e-12)
    np.testing.assert_allclose(a.bounds.log_row_exact, b.bounds.log_row_exact, atol=1e-9)


def test_one_step_is_what_it_is_among_all(model, sound, whole):
    alone = measure_steps(model, sound, steps=[5, 2])
    assert alone.steps == (2, 5)
    for name in LEAVES:
        mine, all_of_them = (getattr(x.sweep.verification.triplets, name) for x in (alone, whole))
        np.testing.assert_allclose(mine, all_of_them[[2, 5]], atol=1e-9)


def test_float32_agrees_within_its_error_bars(sound, whole):
    # the weights of one draw in both precisions
    wide = random_model(jax.random.key(3), DIMS, dtype=jnp.float32, generation=LONG)
    found = measure_steps(wide, sound)
    assert found.sweep.injection_norm.dtype == np.float32
    claims = found.sweep.verification.claims
    assert not (claims.code == Verdict.VIOLATED).any()


# what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_models_in_half_precision_are_refused(sound, dtype):
    with pytest.raises(InputError, match=r"float32 or float64"):
        measure_steps(random_model(jax.random.key(0), DIMS, dtype=dtype, generation=LONG), sound)


@pytest.mark.parametrize("group", [0, -3])
def test_groups_below_one_are_refused(model, sound, group):
    with pytest.raises(InputError, match=f"group={group}"):
        measure_steps(model, sound, group=group)


@pytest.mark.parametrize("tolerance", [0.0, 1e-17, float("nan"), -1.0])
def test_tolerances_below_rounding_are_refused(model, sound, tolerance):
    with pytest.raises(InputError, match="tolerance="):
        measure_steps(model, sound, tolerance=tolerance)


def test_steps_beyond_the_transcript_are_refused(model, sound):
    with pytest.raises(InputError, match="step 99"):
        measure_steps(model, sound, steps="99")


def test_too_little_memory_names_a_group_that_fits(model, sound):
    need = lambda group: float(sweep_bytes(DIMS, 8, "block", group))
    with pytest.raises(InputError, match=r"16 tokens at once, which take about .* GB.*--group 8"):
        measure_steps(model, sound, group=16, memory=need(8))
    with pytest.raises(InputError, match="--group 4"):
        measure_steps(model, sound, group=5, memory=need(5))  # filled up to 8
    with pytest.raises(InputError, match="GB for --group 4"):
        measure_steps(model, sound, group=16, memory=1000.0)
    assert measure_steps(model, sound, steps="0", group=4, memory=need(4)).steps == (0,)


def test_the_estimate_grows_with_what_it_should():
    base = sweep_bytes(DIMS, 8, "block", 8)
    assert sweep_bytes(DIMS, 8, "block", 16) > base < sweep_bytes(DIMS, 8, "sub-block", 8)
    assert sweep_bytes(DIMS, 4, "block", 8) * 2 == base
    assert sweep_bytes(dataclasses.replace(DIMS, width=16, decoder_heads=2), 8, "block", 8) > 2 * base
    assert stepwise.free_memory() > 1e7


def test_weights_that_are_not_numbers_are_refused_in_one_line(model, sound):
    bad = random_model(jax.random.key(3), DIMS, dtype=jnp.float64, generation=LONG)
    kernel = bad.decoder.layers[1].fc1.kernel
    kernel[...] = kernel[...].at[0, 0].set(jnp.nan)
    with pytest.raises(InputError, match="non-finite") as refused:
        measure_steps(bad, sound)
    assert "\n" not in str(refused.value)


# the command line, and runs that go on ---------------------------------------------------------------------------

NAMES = ("eight", "two-seven", "one-six-two")
CLIPS = [carried.CLIPS / f"{name}.flac" for name in NAMES]


@pytest.fixture
def counted(monkeypatch, whole):
    """Replace the measurement by a known one, and count how often one is made; may stop at the n-th."""
    calls, stops = [], []

    def found(network, samples, **options):
        calls.append(len(samples))
        if stops and len(calls) == stops[0]:
            stops[1]()
        return whole

    monkeypatch.setattr(measured, "measure_steps", found)
    monkeypatch.setattr(measured, "write_report", lambda folder: None)  # seconds of drawing each
    return calls, stops


def command(out, *more, clips=CLIPS):
    return ["measure", "carried", *map(str, clips), "--steps", "all", "--out", str(out), *more]


def interrupt():
    raise KeyboardInterrupt


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(("stop", "code"), [(interrupt, 130), (terminate, 75)])
def test_a_stopped_run_goes_on_where_it_was(tmp_path, counted, stop, code, capsys):
    calls, stops = counted
    stops[:] = [2, stop]
    assert cli.main(command(tmp_path / "run")) == code
    assert sorted(path.name for path in (tmp_path / "run" / "clips").iterdir()) == ["0001.json"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "running"
    del calls[:], stops[:]
    assert cli.main(command(tmp_path / "run")) == 0 and len(calls) == 2
    del calls[:]
    assert cli.main(command(tmp_path / "other")) == 0 and len(calls) == 3
    one, other = read_run(tmp_path / "run"), read_run(tmp_path / "other")
    assert one.summary["chains"] == other.summary["chains"]
    rows = lambda run: sorted(map(str, run.table.drop_columns(["run_id"]).to_pylist()))
    assert rows(one) == rows(other) and one.summary["status"] == "done"
    capsys.readouterr()
    del calls[:]
    assert cli.main(command(tmp_path / "run", "--json")) == 0 and calls == []
    assert json.loads(capsys.readouterr().out)["chains"] == other.summary["chains"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda kept: "{",
        lambda kept: "null",
        lambda kept: json.dumps({"samples": kept["samples"]}),
        lambda kept: json.dumps(kept | {"chains": []}),
        lambda kept: json.dumps(kept | {"samples": "of another clip"}),
    ],
)
def test_a_damaged_clip_is_measured_again(tmp_path, counted, damage):
    calls, _ = counted
    assert cli.main(command(tmp_path / "run")) == 0
    file = tmp_path / "run" / "clips" / "0001.json"
    kept = json.loads(file.read_text())
    file.write_text(damage(kept))
    del calls[:]
    assert cli.main(command(tmp_path / "run")) == 0
    assert len(calls) == 1 and json.loads(file.read_text()) == kept


def test_another_command_starts_anew(tmp_path, counted, monkeypatch):
    calls, _ = counted
    assert cli.main(command(tmp_path / "run")) == 0
    for more in (["--granularity", "sub-block"], ["--tolerance", "1e-6"], ["--group", "8"]):
        del calls[:]
        assert cli.main(command(tmp_path / "run", *more)) == 0 and len(calls) == 3
    del calls[:]
    assert cli.main(command(tmp_path / "run", clips=CLIPS[:2])) == 0 and len(calls) == 2
    assert sorted(path.name for path in (tmp_path / "run" / "clips").iterdir()) == ["0001.json", "0002.json"]
    assert set(read_run(tmp_path / "run").table["clip"].to_pylist()) == set(NAMES[:2])
    # other weights under the same name
    del calls[:]
    monkeypatch.setattr(measured, "model_digest", lambda model: "other")
    assert cli.main(command(tmp_path / "run", clips=CLIPS[:2])) == 0 and len(calls) == 2


def test_another_sound_under_the_same_name_is_measured(tmp_path, counted):
    calls, _ = counted
    clip = tmp_path / "clip.flac"
    clip.write_bytes(CLIPS[0].read_bytes())
    assert cli.main(command(tmp_path / "run", clips=[clip])) == 0
    clip.write_bytes(CLIPS[1].read_bytes())
    assert cli.main(command(tmp_path / "run", clips=[clip])) == 0 and len(calls) == 2


def test_an_unusable_clip_is_listed_and_the_others_stay(tmp_path, counted):
    broken = tmp_path / "broken.flac"
    broken.write_bytes(b"no sound")
    assert cli.main(command(tmp_path / "run", clips=[CLIPS[0], broken, CLIPS[1]])) == 3
    assert list(read_run(tmp_path / "run").summary["failed"]) == ["broken"]
    assert cli.main(command(tmp_path / "none", clips=[broken])) == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--steps", "a"], "steps 'a'"),
        (["--steps", ""], "no token"),
        (["--steps", "99"], "step 99"),
        (["--steps", "1-0"], "backwards"),
        (["--group", "0"], "group=0"),
        (["--tolerance", "1e-20"], "tolerance=1e-20"),
        (["--basis", "nowhere.npy"], "nowhere.npy"),
        (["--basis", "nowhere.npy", "--directions", "3"], "--directions"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, more, words):
    arguments = ["measure", "carried", str(CLIPS[0]), "--steps", "all", *more, "--out", str(tmp_path / "run")]
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and words in said[0] and said[0].startswith("error: got ")


@pytest.mark.slow
def test_the_command_line(tmp_path):
    arguments = [*command(tmp_path / "run", "--dtype", "float32", "--json", clips=CLIPS[:1])]
    done = subprocess.run(
        [sys.executable, "-m", "spectral_theorem", *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    chains = record["chains"]
    assert len(chains) > 1 and {chain["transcript"] for chain in chains.values()} == {"eight"}
    for chain in chains.values():
        assert not [name for name, claim in chain["claims"].items() if claim["verdict"] == "VIOLATED"]
        assert all(layer["certified"] for layer in chain["layers"])
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
