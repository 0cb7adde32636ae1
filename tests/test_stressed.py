"""The verb `stress`: files, manifest, repeatability, exit codes."""

import hashlib
import json

import numpy as np
import pytest
import soundfile

from spectral_theorem import cli, stressed
from spectral_theorem.datasets import read_manifest
from spectral_theorem.stress import parse, speech_level, stress


def speech(path, seed, seconds=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.random.default_rng(seed).standard_normal(round(8000 * seconds)), 8000)
    return path


@pytest.fixture
def corpus(tmp_path):
    """Eight people with a recording each, and a bell."""
    rows = ["path,transcript,speaker,licence"]
    for index, who in enumerate("abcdefgh"):
        speech(tmp_path / f"data/{who}/0.wav", index)
        rows.append(f"{who}/0.wav,words of {who},{who},{'CC0-1.0' if who < 'e' else 'CC-BY-4.0'}")
    (tmp_path / "data/manifest.csv").write_text("\n".join(rows) + "\n")
    speech(tmp_path / "bells/bell.wav", 99)
    (tmp_path / "bells/manifest.csv").write_text("path,transcript\nbell.wav,\n")
    return tmp_path


def sums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def run(corpus, *arguments, code=0):
    assert cli.main(["stress", *map(str, arguments)]) == code


def test_the_same_command_gives_the_same_bytes(corpus):
    for out in ("one", "two"):
        run(corpus, corpus / "data", "--talkers", corpus / "data", "--out", corpus / out)
    assert sums(corpus / "one") == sums(corpus / "two")
    run(corpus, corpus / "data", "--talkers", corpus / "data", "--seed", 1, "--out", corpus / "three")
    assert not set(sums(corpus / "one").values()) & set(sums(corpus / "three").values())


def test_one_clip_alone_is_as_it_is_among_others(corpus):
    arguments = ["--talkers", corpus / "data", "--spec", "stretch=2+babble=3@5+noise=3"]
    run(corpus, corpus / "data", *arguments, "--out", corpus / "all")
    run(corpus, corpus / "data/c/0.wav", *arguments, "--out", corpus / "alone")
    assert sums(corpus / "all")["c_0.wav"] == sums(corpus / "alone")["c_0.wav"]


def test_the_manifest_says_what_was_done(corpus):
    run(corpus, corpus / "data", "--talkers", corpus / "data", "--limit", 3, "--out", corpus / "out")
    clips = read_manifest(corpus / "out")
    assert [clip.transcript for clip in clips] == ["words of a", "words of b", "words of c"]
    rows = (corpus / "out/manifest.csv").read_text().splitlines()
    assert rows[0] == ",".join(stressed.COLUMNS) and "stretch=3.5+babble=6@0+noise=0" in rows[1]
    mixed = rows[1].split(",")[stressed.COLUMNS.index("mixed")].split("; ")
    assert len(mixed) == 6 and "a/0.wav" not in mixed
    assert clips[0].licence == "CC0-1.0; CC-BY-4.0"
    assert rows[1].endswith(sums(corpus / "out")["a_0.wav"])
    assert clips[0].load().size == round(3.5 * 8000)


def test_the_files_hold_what_the_library_makes(corpus):
    run(corpus, corpus / "data/a/0.wav", "--spec", "noise=-10", "--seed", 4, "--out", corpus / "out")
    (clip,) = read_manifest(corpus / "data").where(speakers="a")
    expected, _ = stress(4, clip.load(), recipe=parse("noise=-10"), name=clip.name)
    assert np.array_equal(read_manifest(corpus / "out")[0].load(), expected)
    assert np.abs(expected).max() > 1  # louder than full scale, and not clipped


def test_replaced_speech_has_no_transcript(corpus):
    run(
        corpus, corpus / "data/a/0.wav", "--spec", "nonspeech=3", "--nonspeech", corpus / "bells", "--out", corpus / "o"
    )
    (clip,) = read_manifest(corpus / "o")
    (before,) = read_manifest(corpus / "data").where(speakers="a")
    assert clip.transcript == ""
    assert 20 * np.log10(speech_level(clip.load()) / speech_level(before.load())) == pytest.approx(3, abs=1e-3)


def test_json(corpus, capsys):
    run(corpus, corpus / "data/a/0.wav", "--spec", "silence", "--out", corpus / "out", "--json")
    record = json.loads(capsys.readouterr().out)
    assert record["config"]["spec"] == "silence" and record["clips"][0]["peak"] == 0.0 and record["failed"] == {}


def test_some_unusable_clips_are_listed_and_the_others_kept(corpus, capsys):
    (corpus / "noise.wav").write_bytes(b"no sound")
    soundfile.write(corpus / "quiet.wav", np.zeros(800), 8000)
    run(
        corpus,
        corpus / "noise.wav",
        corpus / "data",
        corpus / "quiet.wav",
        "--spec",
        "noise",
        "--out",
        corpus / "o",
        code=3,
    )
    said = capsys.readouterr().out
    assert "noise.wav: got" in said and "quiet.wav: got a silent clip" in said
    assert len(read_manifest(corpus / "o")) == 8


def test_an_earlier_run_is_replaced_only_by_a_whole_new_one(corpus, monkeypatch):
    out = corpus / "out"
    run(corpus, corpus / "data", "--spec", "noise", "--out", out)
    before = sums(out)
    with monkeypatch.context() as patch:
        patch.setattr(stressed, "_row", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        run(corpus, corpus / "data", "--spec", "silence", "--out", out, code=130)
    assert sums(out) == before
    run(corpus, corpus / "data/b/0.wav", "--spec", "silence", "--out", out)
    assert sorted(sums(out)) == ["b_0.wav", "manifest.csv"]


def test_a_run_killed_while_files_are_put_in_place_can_be_run_again(corpus):
    out = corpus / "out"
    run(corpus, corpus / "data", "--spec", "noise", "--out", out)
    expected = sums(out)
    # as a kill leaves it: the manifest is there, one file is not, and one waits
    (out / ".stress.tmp").mkdir()
    (out / "h_0.wav").rename(out / ".stress.tmp/h_0.wav")
    run(corpus, corpus / "data", "--spec", "noise", "--out", out)
    assert sums(out) == expected


@pytest.fixture
def refused(capsys):
    def run(*arguments):
        assert cli.main(["stress", *map(str, arguments)]) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1 and said.err.startswith("error: got ")
        return said.err

    return run


def test_bad_command_lines_write_nothing(corpus, refused):
    clip, out = corpus / "data/a/0.wav", corpus / "out"
    for arguments, word in (
        ([clip], "--out"),
        (["--out", out], "no AUDIO"),
        ([clip, "--out", out], "without talkers"),
        ([clip, "--spec", "echo", "--out", out], "'echo'"),
        ([clip, "--spec", "nonspeech", "--out", out], "--nonspeech FOLDER"),
        ([clip, "--spec", "babble=8", "--talkers", corpus / "data", "--out", out], "7 speakers other than a"),
        ([clip, "--talkers", corpus, "--out", out], "without manifest.csv"),
        ([clip, "--spec", "noise", "--seed", "-1", "--out", out], "--seed -1"),
        ([clip, "--spec", "noise", "--limit", "0", "--out", out], "limit"),
        ([corpus / "none.wav", "--spec", "noise", "--out", out], "does not exist"),
        ([clip, clip, "--spec", "noise", "--out", out], "two clips"),
    ):
        assert word in refused(*arguments)
        assert not out.exists() or not [*out.iterdir()]


def test_foreign_folders_stay(corpus, refused):
    (corpus / "mine").mkdir()
    (corpus / "mine/notes").write_text("kept")
    clip = corpus / "data/a/0.wav"
    for out in (corpus / "mine", corpus / "mine/notes", corpus / "data", "/proc/nowhere"):
        refused(clip, "--spec", "noise", "--out", out)
    assert (corpus / "mine/notes").read_text() == "kept"
    assert len(read_manifest(corpus / "data")) == 8


def test_real_speech_among_real_talkers(shared, tmp_path):
    clip = shared / "data/librispeech/2033-164914-0005.flac"
    run(tmp_path, clip, "--talkers", shared / "data/librispeech", "--out", tmp_path / "hell")
    (stressed_clip,) = read_manifest(tmp_path / "hell")
    assert stressed_clip.speaker == "2033" and stressed_clip.transcript.startswith("TELL ME")
    assert stressed_clip.load().size == round(3.51 * 16_000 * 3.5)
