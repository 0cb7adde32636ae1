"""Run one `stress`: recordings → the same recordings, harder to hear, with a manifest that says how."""

import csv
import hashlib
import io
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .audio import SAMPLE_RATE, save_audio
from .clips import Clip, Dataset
from .console import Outcome, aligned, working
from .datasets import MANIFEST, find
from .distortions import speech_level
from .storage import json_ready, write_atomically
from .stress import Recipe, parse, stress
from .types import InputError, refuse

COLUMNS: tuple[str, ...] = (
    "path",
    "transcript",
    "speaker",
    "licence",
    "source",
    "recipe",
    "seed",
    "mixed",
    "seconds",
    "peak",
    "speech_dbfs",
    "sha256",
)


def run(
    *,
    audio: Sequence[Path],
    out: Path,
    spec: str = "hell",
    talkers: Path | None = None,
    nonspeech: Path | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> Outcome:
    """Write every clip as the recipe makes it, and a manifest.csv that `datasets.find` reads.

    Parameters
    ----------
    audio : sound files, and folders as `datasets.find` takes them.
    out : folder to make, or an empty one, or one that this verb wrote, which is then replaced.
    spec : recipe, as `stress.parse` reads it.
    talkers, nonspeech : folders of what is mixed in.
    seed : of every random number.
    limit : how many clips at most.

    Returns
    -------
    Outcome
        Exit code 3 when some clips could not be used; they are listed, and the others are kept.

    Raises
    ------
    InputError
        Unusable options or folders, or no clip that can be used.

    Notes
    -----
    The same options give the same bytes. Files are wavs of 32-bit floats, so that nothing is clipped.
    The transcript is what was said: where the recipe replaces the speech, it is empty. Nothing
    appears in the folder before everything is made, and an earlier run stays until then.
    """
    recipe = parse(spec)
    if not 0 <= seed < 2**32:
        refuse(f"--seed {seed}", "a whole number from 0 to 4294967295", "--seed 0")
    if recipe.talkers and talkers is None:
        refuse(f"--spec {spec} without talkers", "a folder of speech", "--talkers FOLDER")
    if recipe.needs_non_speech and nonspeech is None:
        refuse(f"--spec {spec} without other sounds", "a folder of them", "--nonspeech FOLDER")
    clips = Dataset(tuple(clip for path in audio for clip in find(path))).limited(limit)
    people = find(talkers) if talkers is not None and recipe.talkers else ()
    sounds = find(nonspeech) if nonspeech is not None and recipe.needs_non_speech else ()
    files = _file_names(clips)
    before = _earlier_files(out)
    rows, failed = [], {}
    staging = _staging(out)
    try:
        for number, (clip, file) in enumerate(zip(clips, files, strict=True), 1):
            try:
                with working(f"stressing {clip.name} ({number} of {len(clips)})"):
                    samples, used = stress(
                        seed,
                        clip.load(),
                        recipe=recipe,
                        name=clip.name,
                        speaker=clip.speaker,
                        talkers=people,
                        non_speech=sounds,
                    )
            except InputError as problem:
                failed[clip.name] = str(problem)
                continue
            content = save_audio(staging / file, samples).read_bytes()
            rows.append(_row(clip, file, samples, recipe, seed, used, content))
        if not rows:
            name, problem = next(iter(failed.items()))
            raise InputError(
                problem if len(failed) == 1 else f"{problem} ({name}; none of {len(failed)} clips was usable)"
            )
        _publish(out, staging, rows, before)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    record = {
        "verb": "stress",
        "config": {"audio": list(audio), "spec": str(recipe), "talkers": talkers, "nonspeech": nonspeech},
        "seeds": [seed],
        "out": out,
        "clips": rows,
        "failed": failed,
    }
    return Outcome(_text(rows, recipe, out, failed), json_ready(record)[0], 3 if failed else 0)


def _file_names(clips: Sequence[Clip]) -> list[str]:
    """Give every clip a file of its own, named after it."""
    plain = [re.sub(r"[^\w.+=-]", "_", clip.name) for clip in clips]
    names = [f"{Path(name).stem[:200]}.wav" for name in plain]
    if len(set(names)) < len(names):  # a.wav and a.flac
        names = [f"{name[:200]}.wav" for name in plain]
    if len(set(names)) < len(names):
        again = next(name for name in names if names.count(name) > 1)
        refuse(
            f"two clips that would be written to {again}", "clips of different names", "a folder with a manifest.csv"
        )
    return names


def _earlier_files(out: Path) -> set[str]:
    """Check that files may be written to a folder; list those an earlier run of this verb left there."""
    if out.exists() and not out.is_dir():
        refuse(f"--out {out}, which is a file", "a folder", f"--out {out}-stressed")
    try:
        entries = {entry.name for entry in out.iterdir()} if out.exists() else set()
    except OSError as problem:
        refuse(f"--out {out} ({problem.strerror})", "a folder that can be read", "--out stressed")
    try:
        with (out / MANIFEST).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            ours = {row["path"] for row in reader} if tuple(reader.fieldnames or ()) == COLUMNS else set()
    except (OSError, csv.Error, UnicodeDecodeError, KeyError):
        ours = set()
    foreign = sorted(name for name in entries - ours - {MANIFEST} if not re.fullmatch(r"\..*\.tmp", name))
    if foreign or (MANIFEST in entries and not ours):
        refuse(
            f"--out {out} that holds {(foreign or [MANIFEST])[0]}", "an empty folder, or an earlier run", "--out new"
        )
    return entries & ours


def _staging(out: Path) -> Path:
    """Make the hidden folder in which files wait until all are there."""
    staging = out / ".stress.tmp"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)
    except OSError as problem:
        refuse(f"--out {out}, which cannot be written ({problem.strerror})", "a folder", "--out stressed")
    return staging


def _publish(out: Path, staging: Path, rows: Sequence[Mapping[str, Any]], before: Iterable[str]) -> None:
    """Put the files in place, so that at every moment the manifest names all that is not hidden."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    files = [row["path"] for row in rows]
    for stale in set(before) - set(files):
        (out / stale).unlink(missing_ok=True)
    write_atomically(out / MANIFEST, lambda file: file.write(text.getvalue().encode()))
    for name in files:
        (staging / name).replace(out / name)


def _row(
    clip: Clip,
    file: str,
    samples: np.ndarray,
    recipe: Recipe,
    seed: int,
    used: Sequence[Any],
    content: bytes,
) -> dict[str, Any]:
    level = speech_level(samples)
    licences = [each.licence for each in (clip, *used) if each.licence]
    return {
        "path": file,
        "transcript": "" if recipe.replaces else clip.transcript or "",
        "speaker": clip.speaker,
        "licence": "; ".join(dict.fromkeys(licences)),
        "source": clip.name,
        "recipe": str(recipe),
        "seed": seed,
        "mixed": "; ".join(each.name for each in used),
        "seconds": round(samples.size / SAMPLE_RATE, 4),
        "peak": round(float(np.abs(samples).max()), 6),
        "speech_dbfs": round(20 * float(np.log10(level)), 2) if level else "",
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _text(rows: Sequence[Mapping[str, Any]], recipe: Recipe, out: Path, failed: Mapping[str, str]) -> str:
    table = [["file", "seconds", "peak", "speech dBFS", "transcript"]]
    for row in rows:
        numbers = [f"{row['seconds']:.2f}", f"{row['peak']:.3f}", str(row["speech_dbfs"] or "-")]
        table.append([row["path"], *numbers, row["transcript"][:60]])
    parts = [f"{recipe}, {len(rows)} clips", aligned(table, words=1)]
    if loud := sum(row["peak"] > 1 for row in rows):
        parts.append(f"{loud} of them exceed full scale; the files hold floats, so nothing is clipped")
    if failed:
        parts.append("not stressed:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items()))
    parts.append(f"written to {out}: {MANIFEST} and {len(rows)} wav files")
    return "\n\n".join(parts)
