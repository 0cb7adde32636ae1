"""Data sets: manifests, LibriSpeech's layout, the hub's library, strings of digits, and paths that stay inside."""

import io
import sys
import types

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as some

from spectral_theorem.audio import SAMPLE_RATE
from spectral_theorem.datasets import (
    Clip,
    Dataset,
    digit_strings,
    find,
    read_hub,
    read_librispeech,
    read_manifest,
)
from spectral_theorem.types import InputError


def sound(path, samples=800, rate=8_000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.1 * np.ones(samples), rate)
    return path


def manifest(folder, text, files=("a.wav", "sub/b.wav")):
    for name in files:
        sound(folder / name)
    (folder / "manifest.csv").write_text(text, encoding="utf-8")
    return folder


ROWS = 'path,transcript,speaker,licence,note\na.wav,"hello, you",eve,CC0-1.0,x\nsub/b.wav,,,,y\n'


def test_a_manifest_gives_clips_in_its_order(tmp_path):
    clips = read_manifest(manifest(tmp_path, ROWS))
    first, second = clips
    assert (first.transcript, first.speaker, first.licence, first.name) == ("hello, you", "eve", "CC0-1.0", "a.wav")
    assert (second.transcript, second.speaker, second.name) == ("", "", "sub/b.wav")
    assert first.load().size == 1600 and first.load().dtype == np.float32
    assert clips.speakers == ("eve",)


def test_a_byte_order_mark_and_a_link_inside_are_fine(tmp_path):
    manifest(tmp_path, "\ufeffpath,transcript\nlink.wav,hi\n")
    (tmp_path / "link.wav").symlink_to(tmp_path / "sub/b.wav")
    assert read_manifest(tmp_path)[0].load().size == 1600


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "without the column path"),
        ("path,speaker\na.wav,eve\n", "without the column transcript"),
        ("path,transcript,path\na.wav,x,b\n", "named twice"),
        ("path,transcript\n", "without a row"),
        ("path,transcript\na.wav,x,y\n", "line 2, which does not fit"),
        ("path,transcript\na.wav\n", "line 2, which does not fit"),
        ("path,transcript\nnone.wav,x\n", "no file"),
        ("path,transcript\nsub,x\n", "no file"),
        ("path,transcript\na.wav,x\na.wav,y\n", "again"),
        ("path,transcript\n,x\n", "below its folder"),
        ("path,transcript\n../outside.wav,x\n", "below its folder"),
        ("path,transcript\nsub/../../outside.wav,x\n", "below its folder"),
        ("path,transcript\n/etc/passwd,x\n", "below its folder"),
        ("path,transcript\nescape.wav,x\n", "below its folder"),
        ("path,transcript\nway/outside.wav,x\n", "below its folder"),
        ("path,transcript\nloop.wav,x\n", "loop.wav"),
        ("path,transcript\na\0.wav,x\n", "manifest.csv"),
        ("path,transcript\n" + "a" * 5000 + ".wav,x\n", "manifest.csv"),
        ('path,transcript\n"a.wav,x\n', "no table"),
        ("path,transcript\na.wav," + "x" * 200_000 + "\n", "no table"),
    ],
)
def test_bad_manifests_are_refused_in_one_line(tmp_path, text, word):
    folder = manifest(tmp_path / "set", text)
    sound(tmp_path / "outside.wav")
    (folder / "escape.wav").symlink_to(tmp_path / "outside.wav")
    (folder / "way").symlink_to(tmp_path)
    (folder / "loop.wav").symlink_to(folder / "loop.wav")
    with pytest.raises(InputError, match=word) as error:
        read_manifest(folder)
    assert "\n" not in str(error.value)


@given(some.binary(max_size=200))
def test_manifests_of_any_bytes_are_read_or_refused(tmp_path_factory, raw):
    folder = tmp_path_factory.mktemp("any")
    (folder / "manifest.csv").write_bytes(b"path,transcript\n" + raw)
    with pytest.raises(InputError) as error:  # no file exists that it could name
        read_manifest(folder)
    assert "manifest.csv" in str(error.value)


def test_find_knows_files_and_folders_below_a_manifest(tmp_path):
    manifest(tmp_path, ROWS)
    assert len(find(tmp_path)) == 2
    assert [clip.name for clip in find(tmp_path / "sub")] == ["sub/b.wav"]
    assert find(tmp_path / "a.wav")[0].transcript == "hello, you"
    stray = find(sound(tmp_path / "stray.wav"))[0]
    assert (stray.transcript, stray.speaker, stray.name) == (None, "", "stray.wav")


def test_find_refuses_what_holds_no_recordings(tmp_path):
    with pytest.raises(InputError, match="without manifest"):
        find(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        find(tmp_path / "none")


def librispeech(folder, lines, chapter="84/121123", files=("84-121123-0000", "84-121123-0001")):
    for name in files:
        sound(folder / chapter / f"{name}.flac")
    speaker, number = chapter.split("/")
    (folder / chapter / f"{speaker}-{number}.trans.txt").write_text(lines)
    return folder


def test_librispeech_layout(tmp_path):
    librispeech(tmp_path / "test-clean", "84-121123-0001 GO\n84-121123-0000 BUT WITH\n")
    librispeech(tmp_path / "test-clean", "9-1-0000 STAY\n", "9/1", ["9-1-0000"])
    clips = find(tmp_path)
    assert [(clip.name, clip.transcript, clip.speaker) for clip in clips] == [
        ("84-121123-0000", "BUT WITH", "84"),
        ("84-121123-0001", "GO", "84"),
        ("9-1-0000", "STAY", "9"),
    ]
    assert clips[0].load().size == 1600 and clips[0].licence == "CC-BY-4.0"


@pytest.mark.parametrize(
    ("lines", "word"),
    [
        ("84-121123-0009 GO\n", "no file"),
        ("../../../x GO\n", "SPEAKER-CHAPTER-NUMBER"),
        ("84-121123-0000 GO\n84-121123-0000 GO\n", "again"),
        ("\n", "SPEAKER-CHAPTER-NUMBER"),
        ("", "without"),
    ],
)
def test_bad_librispeech_folders_are_refused(tmp_path, lines, word):
    with pytest.raises(InputError, match=word) as error:
        read_librispeech(librispeech(tmp_path, lines))
    assert "\n" not in str(error.value)


# ---- selections

CLIPS = Dataset(tuple(Clip(f"{n}.wav", "x", "abc"[n % 3]) for n in range(12)))


def test_selections():
    assert [clip.name for clip in CLIPS.where(speakers=["b"])] == ["1.wav", "4.wav", "7.wav", "10.wav"]
    assert [clip.name for clip in CLIPS.where(lambda clip: clip.name < "11")] == ["0.wav", "1.wav", "10.wav"]
    assert len(CLIPS.limited(5)) == 5 and len(CLIPS.limited(None)) == 12 and len(CLIPS.limited(99)) == 12
    assert CLIPS[2:4].clips == CLIPS.clips[2:4]
    with pytest.raises(InputError, match="limit"):
        CLIPS.limited(0)


def test_shuffles_are_the_seeds():
    names = lambda clips: [clip.name for clip in clips]
    assert names(CLIPS.shuffled(1)) == names(CLIPS.shuffled(1)) != names(CLIPS.shuffled(2))
    assert sorted(names(CLIPS.shuffled(1))) == sorted(names(CLIPS))
    with pytest.raises(InputError, match="seed"):
        CLIPS.shuffled(-1)


# ---- digits


def digits(folder, takes):
    return [
        Clip(sound(folder / f"{digit}_{who}_{take}.wav"), word, who, "CC-BY-SA-4.0")
        for digit, word in enumerate(["zero", "1", "two"])
        for who in ("eve", "bob")
        for take in range(takes)
    ]


def test_strings_are_of_one_speaker_and_use_a_take_once(tmp_path):
    clips = digits(tmp_path, 3)
    strings = digit_strings(clips, length=4, gap=0.25, seed=1)
    assert [string.speaker for string in strings] == ["bob", "bob", "eve", "eve"]
    used = [path for string in strings for path in (string.path, *string.more)]
    assert len(set(used)) == len(used) == 16
    for string in strings:
        said = [{"0": "zero", "1": "one", "2": "two"}[path.name[0]] for path in (string.path, *string.more)]
        assert string.transcript == " ".join(said) and string.licence == "CC-BY-SA-4.0"
        assert all(string.speaker in path.name for path in (string.path, *string.more))
        assert string.load().size == 4 * 1600 + 3 * SAMPLE_RATE // 4
    assert digit_strings(clips, length=4, seed=1).clips == digit_strings(clips, length=4, seed=1).clips
    assert digit_strings(clips, length=4, seed=1).clips != digit_strings(clips, length=4, seed=2).clips


def test_strings_that_cannot_be_made_are_refused(tmp_path):
    with pytest.raises(InputError, match="no speaker with enough digits"):
        digit_strings(digits(tmp_path, 1), length=4)
    with pytest.raises(InputError, match="unknown speaker"):
        digit_strings([Clip("a.wav", "two")], length=1)
    with pytest.raises(InputError, match="at least 1"):
        digit_strings([], length=0)


# ---- hub


def wav_bytes(samples):
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.ones(samples), SAMPLE_RATE, format="WAV")
    return buffer.getvalue()


class Table:
    """Stand for a table of the datasets library."""

    def __init__(self, columns):
        self.columns, self.column_names = columns, list(columns)

    def __len__(self):
        return len(self.columns["audio"])

    def __getitem__(self, key):
        return self.columns[key] if isinstance(key, str) else {name: rows[key] for name, rows in self.columns.items()}

    def cast_column(self, name, feature):
        assert feature == ("not decoded", False)
        return self


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """Stand for the datasets library, with one data set."""

    def load_dataset(name, config, *, split, revision):
        if name != "some/set":
            raise FileNotFoundError(f"no data set\n{name}")
        path = sound(tmp_path / "cached.wav")
        rows = [{"bytes": wav_bytes(100), "path": "x.wav"}, {"bytes": None, "path": str(path)}, None]
        return Table({"audio": rows, "text": ["a", None, "c"], "speaker_id": [7, None, 8]})

    library = types.SimpleNamespace(load_dataset=load_dataset, Audio=lambda decode: ("not decoded", decode))
    monkeypatch.setitem(sys.modules, "datasets", library)


def test_hub_data_sets_are_read_when_asked_for(hub):
    clips = read_hub("some/set")
    assert [(clip.transcript, clip.speaker, clip.name) for clip in clips] == [
        ("a", "7", "000000"),
        (None, "", "000001"),
        ("c", "8", "000002"),
    ]
    assert [clip.load().size for clip in clips[:2]] == [100, 1600]
    with pytest.raises(InputError, match="row 2 without sound"):
        clips[2].load()


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("other/set", {}, "other/set .FileNotFoundError: no data set other/set"),
        ("some/set", {"audio": "sound"}, "no column 'sound'"),
        ("some/set", {"text": "words"}, "no column 'words'"),
    ],
)
def test_hub_data_sets_that_are_not_there(hub, name, options, word):
    with pytest.raises(InputError, match=word) as error:
        read_hub(name, **options)
    assert "\n" not in str(error.value)


def test_without_the_library_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="pip install datasets"):
        read_hub("some/set")


# ---- the recordings beside the checkout


def test_shared_recordings(shared):
    data = find(shared / "data")
    assert len(data) > 2000
    talkers = find(shared / "data/librispeech")
    assert len(talkers.speakers) == 9
    takes = find(shared / "data/fsdd").where(lambda clip: int(clip.name.removesuffix(".wav").rsplit("_")[-1]) < 5)
    strings = digit_strings(takes, length=5)
    assert len(strings) == 50 and len(strings.speakers) == 5
    assert len(strings[0].transcript.split()) == 5 and strings[0].load().size > SAMPLE_RATE
    assert find(shared / "data/speech/jfk.flac")[0].transcript.startswith("And so")
    assert {clip.transcript for clip in find(shared / "data/nonspeech")} == {""}
