"""The tour on what the package carries: it hears, it fails under stress, it is measured, and the page says so."""

import hashlib
import json

import numpy as np
import pytest

from spectral_theorem import carried, demo
from spectral_theorem.datasets import read_manifest
from spectral_theorem.runs import read_run
from spectral_theorem.whisper import load


@pytest.fixture(scope="module")
def toured(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "run"
    return demo.run(out=out), out


def test_the_tour_shows_what_it_promises(toured):
    outcome, out = toured
    assert outcome.exit_code == 0
    chains = outcome.record["chains"]
    assert list(chains) == ["all-hypotheses", "impure", "rho-below-one", "clean", "stressed"]
    verdicts = lambda name: {key: c["verdict"] for key, c in chains[name]["conditions"].items()}
    assert set(verdicts("all-hypotheses").values()) == {"HOLDS"}
    assert verdicts("impure") == verdicts("all-hypotheses") | {"purity": "VIOLATED"}
    assert chains["rho-below-one"]["regime"]["naive"] == "DISPERSIVE" != chains["rho-below-one"]["regime"]["certified"]
    for name in ("clean", "stressed"):
        assert len(chains[name]["layers"]) == 4 and chains[name]["context_size"] == 150 * 64
        assert chains[name]["row_check"] < 1e-9
    assert chains["clean"]["transcript"] != chains["stressed"]["transcript"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "What the model hears" in page and "hallucination: no speech" in page
    assert read_run(out).summary["heard"] == outcome.record["heard"]


def test_it_hears_clean_speech_and_invents_words_where_nobody_speaks(toured):
    heard = toured[0].record["heard"]
    by = lambda condition: [row for row in heard if row["condition"] == condition]
    assert [len(by(c)) for c in ("clean", "stressed", "no speech")] == [6, 6, 4]
    errors = lambda rows: sum(row["errors"] for row in rows)
    assert errors(by("clean")) <= 1 < errors(by("stressed"))
    # no transcript is empty, so every sound without speech gets words
    assert all(row["outcome"] == demo.INVENTED and row["words"] == 0 < row["errors"] for row in by("no speech"))


def test_the_outcome_looks_at_texts_only(toured):
    for row in toured[0].record["heard"]:
        if row["words"]:
            rate = row["errors"] / row["words"]
            expected = demo.RIGHT if rate == 0 else demo.FAILED if rate > 0.5 else demo.WRONG
            assert row["outcome"] == expected


def test_the_carried_files_are_small_whole_and_described():
    files = [file for folder in (carried.MODEL, carried.CLIPS) for file in folder.rglob("*")]
    assert sum(file.stat().st_size for file in files) < 4e6
    record = json.loads((carried.MODEL / "training.json").read_text())
    model = load(carried.MODEL)
    assert model.dims.decoder_layers == record["config"]["decoder_layers"] == 4
    assert record["word_error_rates"]["held_out_takes"]["rate"] <= 0.05
    assert record["word_error_rates"]["unseen_speaker"]["rate"] <= 0.2
    clips = read_manifest(carried.CLIPS)
    assert len(clips) == 10 and sum(not clip.transcript for clip in clips) == 4
    assert all(np.isfinite(clip.load()).all() for clip in clips)
    weights = (carried.MODEL / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == record["carried_sha256"]
