"""Studies: labels from texts alone, data in clusters, cells that survive a stop, gains against dense products."""

import ast
import dataclasses
import itertools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spectral_theorem import behaviour, carried, study
from spectral_theorem.audio import save_audio
from spectral_theorem.behaviour import Limits, hallucinated, swapped
from spectral_theorem.clips import Clip, digit_clusters
from spectral_theorem.gains import context_norms, product_norms
from spectral_theorem.scoring import DIGITS
from spectral_theorem.steps import spaced_steps
from spectral_theorem.stress import apply, parse
from spectral_theorem.studyfile import CELLS, QUANTITIES, cell_file, read_study
from spectral_theorem.types import InputError
from spectral_theorem.whisper import Dims, encode_audio, load, random_model, token_factors, token_jacobians
from spectral_theorem.whisper.rows import pull_context
from spectral_theorem.whisper.sensitivity import propagators

PACKAGE = Path(behaviour.__file__).parent


def imports_of(module: str) -> set[str]:
    """List the modules of the package that one reaches through imports."""
    found, todo = set(), [module]
    while todo:
        name = todo.pop()
        if name in found or not (PACKAGE / f"{name}.py").is_file():
            continue
        found.add(name)
        for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                todo += [node.module.split(".")[0]] if node.module else [alias.name for alias in node.names]
    return found


def test_labels_come_from_audio_and_texts_alone():
    # predictors are tested on these labels, so nothing measured may reach them
    assert imports_of("behaviour") == {"behaviour", "scoring", "types"}
    assert {"engine", "lanczos", "triplets"} <= imports_of("study")  # the check can fail


@pytest.mark.parametrize(
    ("heard", "said", "label", "rule"),
    [
        ("one two three", "one two three", "survived", ""),
        ("one", "", "hallucinated", behaviour.NO_SPEECH),
        ("", "", "survived", ""),
        ("", "one two three", "omitted", ""),
        ("one", "one two three four", "omitted", ""),
        ("nine nine nine four", "one two three four", "hallucinated", behaviour.INVENTED),
        ("two two two two two", "two", "hallucinated", behaviour.LOOP),
        ("two two two two", "two two two two", "survived", ""),
        ("two two two two", "two two two", "survived", ""),
        ("two two two two", None, "hallucinated", behaviour.LOOP),
        ("one two", None, "unflagged", ""),
    ],
)
def test_every_rule_fires_where_it_should(heard, said, label, rule):
    found = hallucinated(heard, said, how="digits")
    assert (found.label, found.rule) == (label, rule)


def test_a_transcript_that_other_audio_does_not_change_is_no_transcript():
    heard = ["seven", "seven", "seven", "one two"]
    both = swapped(heard, clusters="abcd", references=["one", "two", "three", "one two"], how="digits")
    assert [agreement for agreement, _ in both] == [pytest.approx(2 / 3)] * 3 + [0.0]
    assert hallucinated("seven", "seven", agreement=both[0][0], how="digits").rule == behaviour.UNCHANGED
    # clips of one cluster, or of which the same was said, are no exchange
    assert swapped(["a", "a"], clusters="xx", how="basic") == [(None, None)] * 2
    assert swapped(["one", "one"], clusters="xy", references=["one", "one"], how="digits") == [(None, None)] * 2


def test_words_that_were_not_heard_count_for_nothing():
    assert hallucinated("nine", "one two three", cut=True, how="digits").label == "cut"
    assert hallucinated("nine", "", cut=True).rule == behaviour.NO_SPEECH  # nobody speaks in a part of it either
    assert hallucinated("nine", None, cut=True).label == "unflagged"


def test_limits_are_checked():
    with pytest.raises(InputError, match="repeats"):
        Limits(repeats=1)


def test_clusters_use_every_recording_once_at_every_place():
    takes = [Clip(f"{d}_{who}_{n}.wav", DIGITS[d], who) for who in "ab" for d in range(5) for n in range(2)]
    strings = digit_clusters(takes, length=5, orders=5)
    assert len(strings) == 20
    groups = {}
    for clip in strings:
        groups.setdefault(clip.cluster, []).append((clip.path, *clip.more))
    used = list(itertools.chain.from_iterable(set(itertools.chain.from_iterable(g)) for g in groups.values()))
    assert len(used) == len(set(used)) == len(takes)
    for orders in groups.values():
        assert all(len({order[place] for order in orders}) == 5 for place in range(5))
    assert len({clip.name for clip in strings}) == 20
    with pytest.raises(InputError, match="orders"):
        digit_clusters(takes, length=5, orders=6)


@pytest.mark.parametrize("count", [1, 2, 5, 16])
def test_spaced_steps_reach_both_ends(count):
    for available in range(1, 40):
        found = spaced_steps(str(count), available)
        assert len(found) == min(count, available) == len(set(found))
        assert found[0] == 0
        assert count == 1 or found[-1] == available - 1
        gaps = np.diff(found)
        assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_steps_of_a_list_are_those_there_are():
    assert spaced_steps("0,9", 3) == (0,)
    assert spaced_steps("7,9", 3) == ()
    for bad in ("0", "-1", "a", ""):
        with pytest.raises(InputError):
            spaced_steps(bad, 3)


DIMS = Dims(
    width=72, mels=4, frames=10, vocabulary=6, positions=9, encoder_layers=1, encoder_heads=2, encoder_hidden=8,
    decoder_layers=3, decoder_heads=2, decoder_hidden=16,
)  # fmt: skip


def test_gains_of_products_and_of_the_context_agree_with_dense_ones():
    model = random_model(jax.random.key(0), DIMS, dtype=jnp.float64)
    factors = token_factors(model, jax.random.normal(jax.random.key(1), (10, 72)), [4, 1, 2, 3], [0, 1, 3])
    found, whole = product_norms(factors, tolerance=1e-9), context_norms(factors, tolerance=1e-9)
    dense = [np.asarray(propagators(f)) for f in factors]
    eye = jnp.broadcast_to(jnp.eye(72), (3, 72, 72))
    injections = [np.asarray(pull_context(f, eye)).reshape(3, 72, -1) for f in factors]
    for t in range(3):
        product, total = np.eye(72), 0.0
        for layer in reversed(range(3)):
            total = total + product @ injections[layer][t]
            product = product @ dense[layer][t]
            assert found.value[t, layer] == pytest.approx(np.log(np.linalg.norm(product, 2)), abs=1e-8)
        assert whole.value[t] == pytest.approx(np.log(np.linalg.norm(total, 2)), abs=1e-8)


@pytest.fixture(scope="module")
def model():
    return load(carried.MODEL, dtype=jnp.float32)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sounds")
    listed = [c for c in study_clips() if c.transcript][:2]
    (folder / "broken.wav").write_text("no sound")
    return [*listed, Clip(folder / "broken.wav", "one")], [c for c in study_clips() if not c.transcript][:1]


def study_clips():
    from spectral_theorem.datasets import read_manifest

    return read_manifest(carried.CLIPS)


class Counted:
    """Count what is measured, and stop where told."""

    def __init__(self, monkeypatch, stop=None):
        self.calls, whole = 0, study.measured

        def measured(*arguments, **options):
            self.calls += 1
            if self.calls == stop:
                raise KeyboardInterrupt
            return whole(*arguments, **options)

        monkeypatch.setattr(study, "measured", measured)


def test_a_study_goes_on_where_it_was_stopped(model, clips, tmp_path, monkeypatch):
    speech, silence = clips
    options = {"conditions": [None, parse("noise=0")], "nonspeech": silence, "steps": "4", "told": True}
    with monkeypatch.context() as patch:
        Counted(patch, stop=4)
        with pytest.raises(KeyboardInterrupt):
            study.collect(model, speech, out=tmp_path / "run", **options)
    early = read_study(tmp_path / "run")
    assert len(early) == 3 and len(early.missing) == 4 and early.conditions == ("clean", "noise=0", "no speech")
    before = cell_file(early.path, 0).read_bytes()
    with monkeypatch.context() as patch:
        counted = Counted(patch)
        found = study.collect(model, speech, out=tmp_path / "run", **options)
        assert counted.calls == 2  # the one in hand, and non-speech
    broken = speech[-1].path.read_bytes()
    window = model.dims.window_samples
    tone = 0.1 * np.sin(np.arange(1.1 * window)).astype(np.float32)
    save_audio(speech[-1].path, tone)
    with monkeypatch.context() as patch:
        counted = Counted(patch)
        again = study.collect(model, speech, out=tmp_path / "run", **options)
        assert counted.calls == 2 and not again.failed  # what failed is tried again, and nothing else
    speech[-1].path.write_bytes(broken)
    # a recording longer than a window is measured in its first, and what was said there is not known
    long = again.cell("broken.wav", "clean")
    assert long.cut and long.behaviour.label == "cut" and long.seconds == window / 16000
    heard = study.measured(model, tone[:window], steps="4")[1]
    np.testing.assert_allclose(heard["layers/sigma1"], long.layers["sigma1"], rtol=1e-4)  # the file holds 16 bits
    assert not any(cell.cut for cell in found)
    assert cell_file(found.path, 0).read_bytes() == before
    assert not found.missing and list(found.failed) == [("broken.wav", "clean"), ("broken.wav", "noise=0")]
    assert [len(found.of(name)) for name in found.conditions] == [2, 2, 1]
    assert len(found.pairs("clean", "noise=0")) == 2

    cell = found.cell(speech[0].name, "clean")
    assert cell.behaviour.label == "survived" and cell.transcript.text
    steps, depth = len(cell.steps), model.dims.decoder_layers
    assert steps == min(4, len(cell.transcript.token_logprobs))
    for name in QUANTITIES:
        assert cell.layers[name].shape == cell.layers[f"{name}_error"].shape == (steps, depth)
    layers = cell.layers
    assert np.isnan(layers["lam"][:, -1]).all() and np.isfinite(layers["lam"][:, :-1]).all()
    np.testing.assert_allclose(np.exp(layers["lam"][:, :-1]), (layers["sigma1"] * layers["kappa_abs"])[:, :-1], 1e-5)
    # one layer by itself, and no product above that of its norms
    np.testing.assert_allclose(layers["log_gain_actual"][:, -1], np.log(layers["sigma1"][:, -1]), atol=1e-3)
    most = np.flip(np.cumsum(np.flip(np.log(layers["sigma1"]), 1), 1), 1)
    assert (layers["log_gain_actual"] <= most + 1e-3).all()
    assert np.isfinite(layers["log_context_gain"]).all()
    assert {x.shape for x in cell.activations.values()} == {(depth, len(cell.transcript.token_logprobs), 64)}
    assert cell.told() is None and found.of("no speech")[0].told() is None
    told_as_clean(model, found, speech)


def told_as_clean(model, found, speech):
    """Check the control against dense Jacobians of the stressed sound with the clean transcript."""
    different = 0
    for clean, noisy in found.pairs("clean", "noise=0"):
        clip = next(clip for clip in speech if clip.name == clean.clip)
        sound, _ = apply(0, clip.load(), recipe=parse("noise=0"), name=clip.name, speaker=clip.speaker)
        header = json.loads(str(np.load(clean.file)["header"]))
        places = [header["prompt_length"] - 1 + step for step in clean.steps]
        dense = token_jacobians(model, encode_audio(model, sound)[0], header["sequence"], places)
        control = noisy.told()
        assert control.steps == clean.steps and control.transcript is noisy.transcript
        sigma = np.linalg.svd(np.asarray(dense), compute_uv=False)[..., 0]
        np.testing.assert_allclose(control.layers["sigma1"], sigma.T, rtol=1e-4)
        assert "log_gain_actual" not in control.layers
        if clean.transcript.tokens == noisy.transcript.tokens:
            np.testing.assert_array_equal(control.layers["lam"], noisy.layers["lam"])
        else:
            different += not np.allclose(control.layers["sigma1"][0], noisy.layers["sigma1"][-1])
    assert different, "under this noise some transcript differs, or nothing was tested"


def test_another_command_or_another_sound_is_measured_anew(model, clips, tmp_path, monkeypatch):
    speech = clips[0][:1]
    study.collect(model, speech, conditions=[None], out=tmp_path, steps="1")
    counted = Counted(monkeypatch)
    study.collect(model, speech, conditions=[None], out=tmp_path, steps="1")
    assert counted.calls == 0
    other = dataclasses.replace(clips[0][1], name=speech[0].name)
    study.collect(model, [other], conditions=[None], out=tmp_path, steps="1")
    assert counted.calls == 1
    study.collect(model, speech, conditions=[None], out=tmp_path, steps="2")
    assert counted.calls == 2


def test_a_cell_that_was_cut_off_counts_as_missing(model, clips, tmp_path):
    found = study.collect(model, clips[0][:1], conditions=[None], out=tmp_path, steps="1")
    file = cell_file(found.path, 0)
    file.write_bytes(file.read_bytes()[:100])
    assert [p.name for p in (tmp_path / CELLS).iterdir()] == [file.name]
    assert read_study(tmp_path).missing == ((clips[0][0].name, "clean"),)


def test_bad_studies_are_refused(model, clips, tmp_path):
    speech = clips[0]
    for wrong, match in [
        ({"clips": []}, "no clips"),
        ({"clips": [speech[0], speech[0]]}, "two clips named"),
        ({"conditions": [None, parse("clean")]}, "one condition twice"),
        ({"conditions": []}, "at least one"),
    ]:
        options = {"clips": speech, "conditions": [None]} | wrong
        with pytest.raises(InputError, match=match):
            study.collect(model, options["clips"], conditions=options["conditions"], out=tmp_path / "x")
    (tmp_path / "study.json").write_text(json.dumps({"schema": 99, "clips": []}))
    with pytest.raises(InputError, match="schema 99"):
        read_study(tmp_path)
