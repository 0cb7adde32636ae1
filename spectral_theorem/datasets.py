"""Find recordings with transcripts: a folder with a manifest, LibriSpeech's layout, or the hub's data sets.

Paths that a manifest names are confined to its folder, symbolic links included.
"""

import csv
import dataclasses
import functools
import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NoReturn

from .clips import Clip, Dataset, HubSound, digit_clusters, digit_strings
from .types import refuse

__all__ = [
    "Clip",
    "Dataset",
    "HubSound",
    "digit_clusters",
    "digit_strings",
    "find",
    "read_hub",
    "read_librispeech",
    "read_manifest",
]

MANIFEST = "manifest.csv"
LIBRISPEECH_LICENCE = "CC-BY-4.0"
LARGEST_MANIFEST = 256 << 20
_LEVELS_UP = 4
_HUB_TEXT = ("text", "sentence", "transcription", "transcript", "normalized_text", "raw_transcription")
_HUB_SPEAKER = ("speaker_id", "speaker", "client_id")


def find(source: str | Path) -> Dataset:
    r"""Open what a path names: a folder of recordings with transcripts, or one recording.

    Parameters
    ----------
    source : a folder that holds a manifest.csv or LibriSpeech's layout; or a folder or sound file
        that a manifest.csv in a folder above it lists (the nearest of four), of which these clips are
        taken; or a sound file that no manifest lists, about which nothing is known; or
        "hub:NAME@SPLIT" or "hub:NAME:CONFIG@SPLIT", for `read_hub`.

    Returns
    -------
    Dataset
        With at least one clip.

    Raises
    ------
    InputError
        If there is nothing of the kind, or the manifest is not usable.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "a.wav").write_bytes(b"")
    ...     _ = Path(folder, "manifest.csv").write_text("path,transcript,speaker\na.wav,hello,eve\n")
    ...     find(folder)[0].transcript, find(f"{folder}/a.wav")[0].speaker
    ('hello', 'eve')
    """
    path = Path(source)
    if named := re.fullmatch(r"hub:(?P<name>[^:@]+)(:(?P<config>[^:@]+))?@(?P<split>[^@]+)", str(source)):
        return read_hub(**{part: given for part, given in named.groupdict().items() if given})
    if not path.exists():
        refuse(f"{source}, which does not exist", "a sound file, or a folder of recordings", f"ls {path.parent}")
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return read_manifest(path)
        if next(path.rglob("*.trans.txt"), None) is not None:
            return read_librispeech(path)
    inside = path.resolve()
    for folder in list(inside.parents)[:_LEVELS_UP]:
        if (folder / MANIFEST).is_file():
            listed = read_manifest(folder)
            found = listed.where(
                lambda clip: isinstance(clip.path, Path) and clip.path.resolve().is_relative_to(inside)
            )
            if found:
                return dataclasses.replace(found, source=str(source))
            break
    if path.is_dir():
        refuse(
            f"{source} without {MANIFEST} and without *.trans.txt", "one of them", f"a {MANIFEST} of path,transcript"
        )
    return Dataset((Clip(path),), str(source))


def read_manifest(folder: str | Path) -> Dataset:
    r"""Read the data set of a folder with a manifest.csv.

    Parameters
    ----------
    folder : holds manifest.csv, UTF-8, with columns path (relative to the folder) and transcript
        (may be empty), optionally speaker, licence and cluster (clips that share recordings or are
        otherwise not independent); others are ignored.

    Returns
    -------
    Dataset
        Clips in the manifest's order, each named by its path.

    Raises
    ------
    InputError
        With the line, if a path is absolute, leaves the folder (by "..", or by a link), is no file or
        comes twice; if a column is missing, a row has another number of cells, there is no row, or
        the file is not CSV in UTF-8.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = Path(folder, "manifest.csv").write_text("path,transcript\n../a.wav,hello\n")
    ...     read_manifest(folder)
    Traceback (most recent call last):
    ...
    spectral_theorem.types.InputError: got '../a.wav' in ...manifest.csv, line 2; expected a path below its folder; ...
    """
    folder = Path(folder)
    file = folder / MANIFEST
    if not file.is_file():
        refuse(f"{folder} without {MANIFEST}", f"a folder with {MANIFEST}", f"ls {folder}")
    if file.stat().st_size > LARGEST_MANIFEST:
        refuse(f"{file} of {file.stat().st_size} bytes", f"at most {LARGEST_MANIFEST}", "several folders")
    clips: dict[str, Clip] = {}
    resolve = functools.cache(Path.resolve)  # of the folders; there are few, and many files in each
    for line, row in _rows(file):
        clip = Clip(
            _confined(folder, folder, row["path"], f"{file}, line {line}", resolve),
            row["transcript"],
            row.get("speaker", ""),
            row.get("licence", ""),
            name=row["path"],
            cluster=row.get("cluster", ""),
        )
        if clip.name in clips:
            refuse(f"{clip.name!r} again in {file}, line {line}", "every path once", f"removing line {line}")
        clips[clip.name] = clip
    if not clips:
        refuse(f"{file} without a row", "at least one recording", f"head {file}")
    return Dataset(tuple(clips.values()), str(folder))


def _rows(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and cells of every row, refusing what is no table."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text, strict=True)
            columns = reader.fieldnames or []
            if missing := [name for name in ("path", "transcript") if name not in columns]:
                refuse(
                    f"{file} without the column {missing[0]}", "path,transcript in its first line", f"head -1 {file}"
                )
            if len(set(columns)) < len(columns):
                refuse(f"{file} with a column named twice", "different names in its first line", f"head -1 {file}")
            for row in reader:
                if None in row or None in row.values():
                    refuse(f"{file}, line {reader.line_num}, which does not fit", f"{len(columns)} cells", "quotes")
                yield reader.line_num, row
    except (csv.Error, UnicodeDecodeError) as problem:
        refuse(f"{file}, which is no table ({problem})", "CSV in UTF-8", f"file {file}")


def _confined(root: Path, folder: Path, path: str, where: str, resolve: Callable[[Path], Path]) -> Path:
    """Return the file that a path relative to a folder names, if after all links it is inside the root."""
    parts = PurePosixPath(path)
    below = f"{path!r} in {where}", "a path below its folder", "moving the recording there"
    if not path or "\0" in path or parts.is_absolute() or ".." in parts.parts:
        refuse(*below)
    file = folder / parts
    try:
        real = file.resolve() if file.is_symlink() else resolve(file.parent) / file.name
        if not real.is_relative_to(resolve(root)):
            refuse(*below)
        if not file.is_file():
            refuse(f"{path!r} in {where}, which is no file", "a recording", f"ls {file.parent}")
    except (OSError, RuntimeError) as problem:  # a loop of links, a name too long
        refuse(f"{path!r} in {where} ({type(problem).__name__})", "a recording", f"ls {folder}")
    return file


def read_librispeech(folder: str | Path) -> Dataset:
    r"""Read a data set in LibriSpeech's layout: SPEAKER/CHAPTER/ with *.flac and one *.trans.txt.

    Parameters
    ----------
    folder : of one part (test-clean) or above it.

    Returns
    -------
    Dataset
        Clips sorted by utterance, which is their name.

    Raises
    ------
    InputError
        With the line, if an utterance is malformed, comes twice or has no recording.

    References
    ----------
    V. Panayotov et al., Librispeech: an ASR corpus based on public domain audio books, 2015.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     chapter = Path(folder, "84/121123")
    ...     chapter.mkdir(parents=True)
    ...     _ = (chapter / "84-121123-0000.flac").write_bytes(b"")
    ...     _ = (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO ON\n")
    ...     clip = read_librispeech(folder)[0]
    >>> clip.speaker, clip.name, clip.transcript
    ('84', '84-121123-0000', 'GO ON')
    """
    folder = Path(folder)
    clips: dict[str, Clip] = {}
    resolve = functools.cache(Path.resolve)  # of the folders; there are few, and many files in each
    for file in sorted(folder.rglob("*.trans.txt")):
        try:
            if not file.resolve().is_relative_to(resolve(folder)) or file.stat().st_size > LARGEST_MANIFEST:
                refuse(f"{file}, which is large or elsewhere", "a list of transcripts", f"ls -l {file}")
            lines = file.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError as problem:
            refuse(f"{file}, which is no text ({problem})", "UTF-8", f"file {file}")
        for number, line in enumerate(lines, 1):
            name, _, transcript = line.strip().partition(" ")
            where = f"{file}, line {number}"
            if not re.fullmatch(r"\w+-\w+-\w+", name):
                refuse(f"{name[:40]!r} in {where}", "SPEAKER-CHAPTER-NUMBER and a transcript", f"head {file}")
            if name in clips:
                refuse(f"{name} again in {where}", "every utterance once", f"removing line {number}")
            path = _confined(folder, file.parent, f"{name}.flac", where, resolve)
            clips[name] = Clip(path, transcript.strip(), name.split("-")[0], LIBRISPEECH_LICENCE, name)
    if not clips:
        refuse(f"{folder} without *.trans.txt", "LibriSpeech's layout", f"ls {folder}")
    return Dataset(tuple(clips[name] for name in sorted(clips)), str(folder))


def read_hub(
    name: str,
    *,
    split: str = "test",
    config: str | None = None,
    revision: str | None = None,
    audio: str = "audio",
    text: str | None = None,
    speaker: str | None = None,
) -> Dataset:
    """Open a data set of the hub through the `datasets` library.

    Parameters
    ----------
    name, config, split, revision : as that library takes them.
    audio : column of the sounds.
    text, speaker : columns of transcripts and speakers; the first known name present if absent.

    Returns
    -------
    Dataset
        Sounds are decoded here, by soundfile, one at a time.

    Raises
    ------
    InputError
        If the library is not installed, or the data set, split or column is not to be had.
    """
    try:
        library = importlib.import_module("datasets")
    except ImportError:
        refuse(f"the hub data set {name} without the datasets library", "that library", "pip install datasets")
    try:
        table = library.load_dataset(name, config, split=split, revision=revision)
        columns = table.column_names
        if audio in columns:
            table = table.cast_column(audio, library.Audio(decode=False))
    except Exception as problem:  # the library raises its own, the network's and the parsers' errors
        reason = problem.__cause__ or problem  # the library wraps what went wrong in words that say nothing
        said = " ".join(str(reason).split())[:200]
        refuse(f"the hub data set {name} ({type(reason).__name__}: {said})", "one that loads", "another name or split")
    for column in filter(None, (audio, text, speaker)):
        if column not in columns:
            _refuse_column(name, column, columns)
    text = text or next((column for column in _HUB_TEXT if column in columns), None)
    speaker = speaker or next((column for column in _HUB_SPEAKER if column in columns), None)
    transcripts = list(table[text]) if text else [None] * len(table)
    speakers = list(table[speaker]) if speaker else [""] * len(table)
    clips = tuple(
        Clip(HubSound(table, index, audio), None if said is None else str(said), str(who or ""))
        for index, (said, who) in enumerate(zip(transcripts, speakers, strict=True))
    )
    return Dataset(clips, f"{name}, {split}")


def _refuse_column(name: str, column: str, columns: Sequence[str]) -> NoReturn:
    refuse(f"no column {column!r} in {name}", f"one of {', '.join(columns)}", "audio=..., text=..., speaker=...")
