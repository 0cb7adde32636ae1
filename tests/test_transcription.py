"""The `transcribe` verb: what is read, what is written, what fails, and with which exit code."""

import json
import signal

import jax
import numpy as np
import pytest
import soundfile

from spectral_theorem import cli, transcription, whisper
from spectral_theorem.runs import read_run
from spectral_theorem.types import InputError
from spectral_theorem.whisper import Dims

DIMS = Dims(
    width=8,
    mels=4,
    frames=50,
    vocabulary=12,
    positions=8,
    encoder_layers=1,
    encoder_heads=2,
    encoder_hidden=8,
    decoder_layers=1,
    decoder_heads=2,
    decoder_hidden=8,
)


@pytest.fixture(scope="module")
def network():
    return whisper.random_model(jax.random.key(0), DIMS, dtype="float32")


@pytest.fixture
def model(network, monkeypatch):
    monkeypatch.setattr(transcription, "load", lambda name, dtype: network)
    return "a-model"


@pytest.fixture
def folder(tmp_path):
    draw = np.random.default_rng(0)
    (tmp_path / "sounds" / "more").mkdir(parents=True)
    for name in ("b.wav", "a.flac", "more/c.WAV"):
        soundfile.write(tmp_path / "sounds" / name, 0.1 * draw.standard_normal(8000), 16_000)
    (tmp_path / "sounds" / "notes.txt").write_text("not a sound")
    return tmp_path / "sounds"


def test_folders_are_taken_whole_and_files_once(folder):
    found = transcription.recordings([folder / "b.wav", folder])
    assert [path.name for path in found] == ["b.wav", "a.flac", "c.WAV"]
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="a folder without recordings"):
        transcription.recordings([folder / "empty"])


def test_a_run_holds_every_clip_and_lists_what_failed(model, folder, tmp_path):
    (folder / "broken.wav").write_bytes(b"not a sound")
    outcome = transcription.transcribe(model=model, audio=[folder], batch=2, out=tmp_path / "run")
    assert outcome.exit_code == 3
    assert list(outcome.record["failed"]) == ["broken"]
    assert list(outcome.record["clips"]) == ["a", "b", "c"]
    run = read_run(tmp_path / "run")
    assert run.summary["clips"] == outcome.record["clips"]
    assert run.summary["status"] == "done" and run.summary["verb"] == "transcribe"
    rows = [row for row in run.rows if row["clip"] == "a"]
    clip = outcome.record["clips"]["a"]
    assert {row["quantity"]: row["value"] for row in rows}["transcript.avg_logprob"] == clip["avg_logprob"]
    ends = [row for row in rows if row["quantity"] == "segment.end"]
    assert [(row["value"], row["text"]) for row in ends] == [(s["end"], s["text"]) for s in clip["segments"]]
    assert "not transcribed" in outcome.text and clip["text"] in outcome.text


def test_a_clip_reads_the_same_in_any_company(model, folder):
    alone = transcription.transcribe(model=model, audio=[folder / "b.wav"])
    among = transcription.transcribe(model=model, audio=[folder], batch=8)
    assert alone.record["clips"]["b"]["tokens"] == among.record["clips"]["b"]["tokens"]
    first = transcription.transcribe(model=model, audio=[folder], limit=1)
    assert list(first.record["clips"]) == ["a"]


def test_stems_that_repeat_become_paths(model, folder):
    soundfile.write(folder / "more" / "b.wav", np.zeros(800), 16_000)
    names = list(transcription.transcribe(model=model, audio=[folder]).record["clips"])
    assert names == [str(folder / name) for name in ("a.flac", "b.wav", "more/b.wav", "more/c.WAV")]


def test_drawn_transcripts_depend_on_no_batch(model, folder):
    draws = [
        transcription.transcribe(model=model, audio=[folder], fallback=True, batch=batch).record["clips"]
        for batch in (8, 1)
    ]
    assert [clip["tokens"] for clip in draws[0].values()] == [clip["tokens"] for clip in draws[1].values()]


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"batch": 0}, {"language": "de"}, {"task": "translate"}])
def test_options_that_do_not_fit_are_refused(model, folder, wrong):
    with pytest.raises(InputError) as error:
        transcription.transcribe(model=model, audio=[folder], **wrong)
    assert "\n" not in str(error.value)


def run(arguments, capsys):
    code = cli.main(["transcribe", *map(str, arguments)])
    found = capsys.readouterr()
    return code, found.out, found.err


@pytest.fixture
def precision():
    """Put the 64-bit mode back after a command that chose another."""
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.mark.usefixtures("precision")
def test_from_the_command_line(model, folder, capsys):
    code, out, _ = run([model, folder, "--json", "--limit", "2"], capsys)
    assert code == 0 and list(json.loads(out)["clips"]) == ["a", "b"]
    broken = folder / "broken.wav"
    broken.write_bytes(b"not a sound")
    code, out, err = run([model, broken], capsys)
    assert (code, out) == (2, "") and "broken.wav" in err and len(err.splitlines()) == 1
    code, out, _ = run([model, broken, folder / "b.wav"], capsys)
    assert code == 3 and "b: " in out
    assert run([model], capsys)[0] == 2


@pytest.mark.parametrize(("how", "code"), [("interrupt", 130), ("terminate", 75)])
def test_what_was_finished_stays_when_a_run_is_stopped(
    model, folder, tmp_path, monkeypatch, capsys, precision, how, code
):
    real, calls = transcription.transcribe_many, []

    def once(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            if how == "interrupt":
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(transcription, "transcribe_many", once)
    assert run([model, folder, "--batch", "1", "--out", tmp_path / "run"], capsys)[0] == code
    stopped = read_run(tmp_path / "run")
    assert stopped.summary["status"] == "running"
    assert {row["clip"] for row in stopped.rows} == {"a"} and stopped.rows[0]["text"]


def test_tables_of_earlier_versions_are_read(tmp_path):
    import pyarrow.parquet

    from spectral_theorem.runs import RunFolder

    written = RunFolder(tmp_path / "run")
    part = written.write_table([{"quantity": "kappa", "value": 0.5}])
    written.write_summary({})
    table = pyarrow.parquet.read_table(part)
    pyarrow.parquet.write_table(table.drop_columns(["text"]), part)
    assert [(row["value"], row["text"]) for row in read_run(tmp_path / "run").rows] == [(0.5, None)]
