"""Clean against stressed: planted effects are found and absent ones are not; what cannot be computed says why."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from spectral_theorem import carried, study
from spectral_theorem.audio import load_audio, save_audio
from spectral_theorem.cli import main
from spectral_theorem.clips import Clip
from spectral_theorem.compared import sections_of, windows_of
from spectral_theorem.console import Outcome
from spectral_theorem.gathered import numbered
from spectral_theorem.group_sections import clip_values, layer_changes
from spectral_theorem.material import material, recipe_of
from spectral_theorem.paper_tables import PAPER, paper_section, published_name
from spectral_theorem.resampling import Interval
from spectral_theorem.spectra import spectra_change, spectra_difference
from spectral_theorem.stress import parse
from spectral_theorem.studyfile import CLEAN, COMPONENTS, NO_SPEECH, STRESSED, read_study, write_cell, write_description
from spectral_theorem.types import InputError

LAYERS, WIDTH, TOKENS = 2, 16, 6
CLIP = carried.CLIPS / "two-seven.flac"
SIZES = np.arange(1.0, WIDTH + 1) ** -0.3


def plant(folder, *, clips=60, steeper=0.0, louder=1.0, lower=0.0, spared=0, conditions=(CLEAN, STRESSED), known=True):
    """Write a study whose answers are known: under stress the spectrum of cross-attention is steeper and λ lower."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(4)  # at a level of 5 % one seed in twenty finds something where nothing is
    names = [f"clip{i}" for i in range(clips)]
    listed = [
        {"name": n, "speaker": f"s{i % 5}", "cluster": f"c{i}", "conditions": conditions} for i, n in enumerate(names)
    ]
    write_description(
        folder,
        {"clips": listed, "conditions": list(conditions), "how": "digits", "steps": "16", "seed": 0, "dtype": "float32",
         "model_digest": "0" * 32, "key": "k" * 32},
    )  # fmt: skip
    words = "one two three four five six seven eight nine zero".split()
    number = 0
    for i, name in enumerate(names):
        said = " ".join(rng.permutation(words)[: TOKENS - 1])
        for condition in conditions:
            ill = condition == STRESSED and i >= spared
            heard = " ".join(rng.permutation(words)[: TOKENS - 1]) if ill else said
            scale = SIZES * np.arange(1.0, WIDTH + 1) ** (-steeper if ill else 0.0) * (louder if ill else 1.0)
            arrays = {}
            for component in COMPONENTS:
                mine = scale if component == "cross_attention" else SIZES
                arrays[f"activations/{component}"] = np.float32(rng.normal(size=(LAYERS, TOKENS, WIDTH)) * mine)
            noise = lambda *shape: rng.normal(size=shape) * 0.1
            lam = noise(TOKENS, LAYERS) - (lower if ill else 0.0)
            layers = {
                "sigma1": np.exp(noise(TOKENS, LAYERS)),
                "xi": 0.5 + 0 * lam,
                "kappa_abs": 0.1 + 0 * lam,
                "lam": lam,
            }
            for quantity in ("kappa_abs", "lam"):
                layers[quantity][:, -1] = np.nan
            layers |= {"sigma2": layers["sigma1"] / 2, "log_gain_actual": noise(TOKENS, LAYERS)}
            layers |= {f"{quantity}_error": 0 * value for quantity, value in layers.items()}
            layers |= {"resolved": np.ones((TOKENS, LAYERS), bool), "log_context_gain": noise(TOKENS)}
            layers["log_context_gain_error"] = 0 * layers["log_context_gain"]
            arrays |= {f"layers/{quantity}": value for quantity, value in layers.items()}
            transcript = {
                "text": heard, "tokens": list(range(TOKENS - 1)), "token_logprobs": [-0.1] * TOKENS,
                "avg_logprob": -0.1, "no_speech_prob": None, "compression_ratio": 0.9, "finished": True,
            }  # fmt: skip
            header = {
                "clip": name, "speaker": f"s{i % 5}", "cluster": f"c{i}", "condition": condition,
                "reference": said if known else None, "transcript": transcript, "steps": list(range(TOKENS)),
                "seconds": 1.0, "digest": str(number), "key": "k" * 32,
            }  # fmt: skip
            write_cell(folder, number, header, arrays)
            number += 1
    return read_study(folder)


def by_id(sections):
    return {section.id: section for section in sections}


@pytest.fixture(scope="module")
def effect(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("effect"), steeper=0.5, lower=0.3, spared=20)


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    return plant(tmp_path_factory.mktemp("nothing"), spared=20)


def test_planted_effects_are_found_where_they_are(effect):
    found = by_id(sections_of(effect, (10,), seed=1))
    assert found["observables"].verdict == found["divergence"].verdict == found["hallucinated"].verdict == "HOLDS"
    changes = spectra_change(effect.pairs(CLEAN, STRESSED), (10,))
    for place, change in changes.items():
        moved = change.changes[10]["effective_rank_percent"]
        assert (moved.p < 0.002) == (place.component == "cross_attention")
        assert moved.interval.high < 0 or place.component != "cross_attention"
    table = layer_changes(effect.pairs(CLEAN, STRESSED))
    rows = {(row[0], row[1]): row for row in table.rows}
    value, low, high = rows["λ (nats/layer)", 1][2:5]
    assert low < -0.3 * 40 / 60 < high and low < value < high < 0  # two thirds of the clips are moved
    assert rows["log σ₁", 1][6] > 0.05
    assert len(rows["λ (nats/layer)", 1]) == len(table.columns)
    assert ("λ (nats/layer)", 2) not in rows  # the last layer has no coupling


def test_where_nothing_is_planted_nothing_is_found(nothing):
    found = by_id(sections_of(nothing, (10,), seed=1))
    assert {found[name].verdict for name in ("observables", "baseline", "divergence", "hallucinated")} == {"UNDECIDED"}
    assert found["paper"].verdict in ("UNDECIDED", "VIOLATED")


def test_louder_is_not_steeper(tmp_path):
    study = plant(tmp_path, louder=3.0)
    changes = spectra_change(study.pairs(CLEAN, STRESSED), (10,))
    for place, change in changes.items():
        if place.component == "cross_attention":
            assert change.changes[10]["log10_kirchhoff"].interval.high < 0  # Kf has a unit: 9 times the variance
            assert change.changes[10]["log10_kirchhoff_scale_free"].p > 0.01
            assert change.changes[10]["effective_rank_percent"].p > 0.01


def test_groups_of_different_clips_are_told_apart_only_where_they_differ(effect):
    ill = [cell for cell in effect.of(STRESSED) if cell.behaviour.label == "hallucinated"]
    well = [cell for cell in effect.of(STRESSED) if cell.behaviour.label == "survived"]
    assert len(well) == 20 and len(ill) >= 35
    for place, by in spectra_difference(well, ill, (10,)).items():
        change = by[10]["effective_rank_percent"]
        assert (change.p < 0.01) == (place.component == "cross_attention")
        assert change.interval.low < change.interval.high


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    few = plant(tmp_path, clips=10)
    said = [json.dumps([s.to_json() for s in numbered(sections_of(few, (10,), seed=5))]) for _ in range(2)]
    assert said[0] == said[1]
    numbers = [t["number"] for s in json.loads(said[0]) for t in s["tables"]]
    assert numbers == list(range(1, len(numbers) + 1))


@pytest.mark.parametrize(
    ("options", "told", "why"),
    [
        ({"clips": 1}, ("observables", "baseline", "divergence", "paper", "hallucinated"), "1 clips under both"),
        ({"clips": 30, "conditions": (CLEAN,)}, ("observables", "divergence", "hallucinated"), "0 clips under both"),
        ({"clips": 30, "spared": 30}, ("hallucinated",), "0 hallucinated"),
        ({"clips": 3, "known": False}, ("observables", "hallucinated"), "3 clips under both"),
    ],
    ids=["one clip", "no stressed clip", "nobody hallucinated", "few and no references"],
)
def test_what_cannot_be_computed_says_why(tmp_path, options, told, why):
    found = by_id(numbered(sections_of(plant(tmp_path, **options), (10, 50))))
    for name in told:
        assert found[name].verdict == "NOT COMPUTED" and found[name].why
    assert why in found[told[0]].why
    assert {"observables", "hallucinated", "suspicious"} <= set(found)


def test_a_window_larger_than_the_rank_is_no_number(effect):
    found = by_id(sections_of(effect, (50,)))
    assert found["observables"].verdict == found["paper"].verdict == "NOT COMPUTED"
    assert "fewer than 50 modes" in found["observables"].why


def test_clip_values_leave_out_what_is_not_resolved(nothing, tmp_path):
    cell = nothing.cells[0]
    arrays = {f"layers/{name}": value for name, value in cell.layers.items()}
    arrays["layers/resolved"] = np.zeros((TOKENS, LAYERS), bool)
    np.savez(tmp_path / "x.npz", header=np.asarray("{}"), **arrays)
    values = clip_values(dataclasses.replace(cell, file=tmp_path / "x.npz"))
    assert np.isnan(values["lam", 1]) and np.isfinite(values["sigma1", 1])


def test_the_papers_tables_keep_empty_what_was_not_run():
    bars = Interval(-2.0, -1.0, 0.95, "jackknife", 60, True)
    change = {"effective_rank_percent": (-1.5, bars), "log10_kirchhoff": (1.0, Interval(0.5, 2.0, 0.95, "", 60, True))}
    change["alpha"] = (0.1, Interval(-0.1, 0.3, 0.95, "", 60, True))
    ours = {10: dict.fromkeys(COMPONENTS, change)}
    found = paper_section(ours, "whisper-tiny.en-digits")
    assert found.verdict == "UNDECIDED" and "2 of 3 have it, 0 the opposite" in found.sentence
    rows = {(row[0], row[1]): row for row in found.tables[0].rows}
    assert rows["cross-attention", "tiny"][2:5] == (-7.56, None, None)
    assert rows["cross-attention", "whisper-tiny.en-digits"][2:5] == (None, -1.5, "[-2, -1]")
    assert rows["FFN", "large-v3-turbo"][2:] == (None,) * 9
    run = paper_section(ours, "openai/whisper-small")
    assert {row[1] for row in run.tables[0].rows} == {"tiny", "small", "large-v3-turbo"}
    assert next(row for row in run.tables[0].rows if row[1] == "small")[3] == -1.5
    against = {10: dict.fromkeys(COMPONENTS, change | {"alpha": (-0.2, bars)})}
    assert paper_section(against, "x").verdict == "VIOLATED"
    assert paper_section({20: {}}, "x").verdict == "NOT COMPUTED"
    assert published_name("large-v3-turbo") == "large-v3-turbo" and set(PAPER) == {10, 50}


# what a user names


@pytest.fixture
def folder(tmp_path):
    """Give two recordings without a manifest."""
    (tmp_path / "good").mkdir()
    for name in ("a", "b"):
        save_audio(tmp_path / "good" / f"{name}.wav", load_audio(CLIP)[0])
    return tmp_path / "good"


def test_a_folder_of_recordings_needs_no_manifest(folder):
    found = material([folder], recipes={STRESSED: parse("noise=0")})
    assert [clip.name for clip in found.clips] == ["a.wav", "b.wav"]
    assert {clip.transcript for clip in found.clips} == {None} and found.cells == 4


def test_stressed_recordings_are_matched_by_name(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "bad")
    (tmp_path / "bad" / "b.wav").rename(tmp_path / "bad" / "c.wav")
    found = material([folder], stressed=tmp_path / "bad")
    assert found.paired and list(found.conditions[STRESSED]) == ["a.wav"] and len(found.notes) == 2
    (tmp_path / "bad" / "a.wav").unlink()
    apart = material([folder], stressed=tmp_path / "bad")
    assert not apart.paired and list(apart.conditions[STRESSED]) == ["stressed: c.wav"]
    assert list(apart.conditions[CLEAN]) == ["a.wav", "b.wav"] and apart.cells == 3


def test_clips_without_speech_are_measured_as_such():
    found = material([carried.CLIPS], recipes={STRESSED: parse("noise=0")})
    assert len(found.nonspeech) == 4 and all(clip.transcript for clip in found.clips) and found.notes


def test_a_limit_is_spread_over_all(folder):
    assert [clip.name for clip in material([folder], limit=1).clips] == ["a.wav"]
    names = [clip.name for clip in material([carried.CLIPS], limit=3).clips]
    whole = [clip.name for clip in material([carried.CLIPS]).clips]
    assert names == [whole[0], whole[2], whole[4]]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"recipes": {STRESSED: parse("hell")}}, "without talkers"),
        ({"recipes": {STRESSED: parse("nonspeech=0")}}, "without other sounds"),
        ({"only": "nothing like it"}, "which none of"),
        ({"only": "("}, "regular expression"),
        ({"limit": 0}, "at least 1"),
        ({"digits": 5}, "digit"),
        ({"stressed": Path("x"), "recipes": {STRESSED: parse("noise=0")}}, "one of them"),
    ],
)
def test_what_a_user_names_wrongly_is_refused(folder, options, match):
    with pytest.raises(InputError, match=match):
        material([folder], **options)


def test_recipes_and_windows_that_mean_nothing_are_refused():
    with pytest.raises(InputError, match="changes nothing"):
        recipe_of("clean")
    for bad in ("", "1", "10,10", "x", "10;50"):
        with pytest.raises(InputError, match="--modes"):
            windows_of(bad)


# the verb


@pytest.fixture(autouse=True)
def _sixty_four_bits():
    """Undo what a command line chose for the whole process."""
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Compare the carried clips once."""
    out = tmp_path_factory.mktemp("runs") / "run"
    broken = tmp_path_factory.mktemp("clips")
    shutil.copytree(carried.CLIPS, broken, dirs_exist_ok=True)
    (broken / "broken.wav").write_bytes(b"no sound")
    lines = (broken / "manifest.csv").read_text().splitlines()
    columns = lines[0].split(",")
    row = {"path": "broken.wav", "transcript": "one", "speaker": "x"}
    lines.append(",".join(row.get(column, "") for column in columns))
    (broken / "manifest.csv").write_text("\n".join(lines) + "\n")
    code = main(["compare", "carried", "--clean", str(broken), "--steps", "4", "--modes", "10", "--out", str(out)])
    jax.config.update("jax_enable_x64", True)
    return out, broken, code


def test_the_verb_writes_what_it_found(run, capsys):
    out, _, code = run
    assert code == 3  # one clip is no sound: listed, and the others are there
    summary = json.loads((out / "summary.json").read_text())
    assert summary["verb"] == "compare" and list(summary["failed"]) == ["broken.wav, clean", "broken.wav, stressed"]
    ids = [section["id"] for section in summary["sections"]]
    assert ids == [
        "observables",
        "baseline",
        "divergence",
        "paper",
        "same_tokens",
        "hallucinated",
        "suspicious",
        "provenance",
    ]
    assert all(section["sentence"] and section["verdict"] for section in summary["sections"])
    numbers = {t["number"]: t["name"] for s in summary["sections"] for t in s["tables"]}
    assert {p.name for p in (out / "tables").iterdir()} == {
        f"{n:02d}-{name}.{suffix}" for n, name in numbers.items() for suffix in ("csv", "tex")
    }
    with (out / "suspicious.csv").open() as file:
        ranked = list(csv.DictReader(file))
    assert len(ranked) == 6 * 2 + 4 and ranked[0]["transcript"] is not None
    assert (out / "report.html").is_file()
    conditions = {cell.condition for cell in read_study(out)}
    assert conditions == {CLEAN, STRESSED, NO_SPEECH}


def test_another_judgement_measures_nothing_anew(run, monkeypatch, capsys):
    out, broken, _ = run
    monkeypatch.setattr(study, "measured", lambda *a, **k: pytest.fail("measured again"))
    before = (out / "summary.json").read_text()
    code = main(["compare", "carried", "--clean", str(broken), "--steps", "4", "--modes", "8", "--out", str(out)])
    assert code == 3 and '"modes": [\n   8\n  ]' in (out / "summary.json").read_text() != before
    text = capsys.readouterr().out
    assert text.startswith("What stress changes in the spectra\n") and "not measured:" in text


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--clean", "/nowhere"], "does not exist"),
        (["--clean", str(carried.CLIPS), "--stress", "hell"], "--talkers FOLDER"),
        (["--clean", str(carried.CLIPS), "--modes", "0"], "--modes"),
        (["--clean", str(carried.CLIPS), "--steps", "0"], "--steps"),
        (["--clean", str(carried.CLIPS), "--stress", "echo=3"], "recipe"),
    ],
)
def test_bad_command_lines_are_one_line(arguments, match, capsys):
    assert main(["compare", "carried", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and match in said and said.count("\n") == 1


def test_empty_folders_and_rows_without_files_are_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert main(["compare", "carried", "--clean", str(tmp_path / "empty")]) == 2
    (tmp_path / "manifest.csv").write_text("path,transcript\na.wav,one\n")
    assert main(["compare", "carried", "--clean", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert "without recordings" in said and "line 2, which is no file" in said


def test_a_model_and_a_tokenizer_of_another_do_not_pass(tmp_path, capsys):
    shutil.copytree(carried.MODEL, tmp_path / "model")
    words = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    keep = [name for name in words["model"]["vocab"]][:3]
    words["model"]["vocab"] = {name: words["model"]["vocab"][name] for name in keep}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(words))
    assert main(["compare", str(tmp_path / "model"), "--clean", str(CLIP)]) == 2
    assert "tokenizer" in capsys.readouterr().err


def test_an_outcome_without_a_folder_is_text(monkeypatch, tmp_path):
    from spectral_theorem import compared

    monkeypatch.setattr(compared, "gather", lambda *a, **k: (plant(tmp_path, clips=8), "x"))
    clips = tmp_path / "clips"
    clips.mkdir()
    save_audio(clips / "a.wav", np.zeros(1600, np.float32))
    outcome = compared.run(model="x", clean=[clips])
    assert isinstance(outcome, Outcome) and outcome.exit_code == 0 and "8 pairs in 8 clusters" in outcome.text
    assert Clip("a.wav").cluster == ""
