"""Run one `transcribe`: recordings or folders of them → transcripts, segments, a run folder."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .audio import load_audio
from .console import Outcome, working
from .runs import RunFolder
from .storage import json_ready
from .types import InputError, refuse
from .whisper import FALLBACK, DecodingOptions, Transcript, clip_mesh, load, transcribe_many

SOUNDS = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif")
CLIP_QUANTITIES = {
    "avg_logprob": "nats/token",
    "no_speech_prob": "1",
    "compression_ratio": "1",
    "temperature": "1",
    "duration": "s",
}


def transcribe(
    *,
    model: str,
    audio: Sequence[Path],
    limit: int | None = None,
    language: str | None = None,
    task: str | None = None,
    timestamps: bool = False,
    fallback: bool = False,
    seed: int = 0,
    batch: int = 8,
    dtype: str = "float32",
    out: Path | None = None,
) -> Outcome:
    """Transcribe recordings with one model, and write a run folder if asked.

    Parameters
    ----------
    model : folder of a checkpoint, or whatever else `whisper.load` takes.
    audio : recordings, and folders whose recordings are all taken, in the order of their names.
    limit : most recordings to take; None takes all.
    language : two- or three-letter code; None detects it, if the model is multilingual.
    task : "transcribe" or "translate".
    timestamps : have the model predict them for short recordings too.
    fallback : draw again, at rising temperatures, where a transcript repeats itself or is unlikely.
    seed : of what is drawn.
    batch : most windows decoded together.
    dtype : of the model: "float32", "bfloat16" or "float64".
    out : run folder to write.

    Returns
    -------
    Outcome
        Exit code 3 when some recordings could not be used; they are listed, and the others are kept.

    Raises
    ------
    InputError
        Unusable model, options or folder, or no recording that can be used.

    Notes
    -----
    Recordings are written as they are finished, so that an interrupted run keeps them.
    """
    for name, count in (("limit", limit), ("batch", batch)):
        if count is not None and count < 1:
            refuse(f"--{name} {count}", "a whole number above 0", f"--{name} 8")
    paths = recordings(audio)[:limit]
    temperatures = FALLBACK if fallback else (0.0,)
    options = DecodingOptions(language, task, timestamps or None, temperatures)
    folder = RunFolder(out) if out is not None else None
    with working(f"loading {model}"):
        network = load(model, dtype=jnp.dtype(dtype))
    names, mesh, started = clip_names(paths), clip_mesh(), time.monotonic()
    root, places = jax.random.key(seed), {name: place for place, name in enumerate(names)}
    clips: dict[str, Any] = {}
    failed: dict[str, str] = {}
    for first in range(0, len(paths), batch):
        chunk = list(zip(names, paths, strict=True))[first : first + batch]
        sounds: dict[str, np.ndarray] = {}
        with working(_progress(first, len(chunk), len(paths), time.monotonic() - started)):
            for name, path in chunk:
                try:
                    sounds[name] = load_audio(path)[0]
                except InputError as problem:
                    failed[name] = str(problem)
            if not sounds:
                continue
            # A key by name's place in the whole list: what fails beside a clip changes nothing that is drawn for it.
            keys = [jax.random.fold_in(root, places[name]) for name in sounds] if fallback else None
            found = transcribe_many(network, list(sounds.values()), options, keys=keys, batch=batch, mesh=mesh)
        rows = []
        for name, each in zip(sounds, found, strict=True):
            clips[name] = described(each)
            rows += transcript_rows(each, clip=name, component="transcript", dtype=dtype)
        if folder is not None:
            folder.write_table(rows, part=f"{first:06d}")
    if not clips:
        name, problem = next(iter(failed.items()))
        raise InputError(problem if len(failed) == 1 else f"{problem} ({name}; none of {len(failed)} clips was usable)")
    record = {
        "verb": "transcribe",
        "config": {
            "model": model,
            "audio": list(audio),
            "limit": limit,
            "language": language,
            "task": task,
            "timestamps": timestamps,
            "fallback": fallback,
            "batch": batch,
        },
        "seeds": [seed] if fallback else [],
        "dtype": dtype,
        "clips": clips,
        "failed": failed,
    }
    texts = [_text(name, clip) for name, clip in clips.items()]
    if failed:
        texts.append("not transcribed:\n" + "\n".join(f"  {name}: {why}" for name, why in failed.items()))
    if folder is not None:
        folder.write_summary(record)
        texts.append(f"written to {folder.path}: {', '.join(sorted(p.name for p in folder.path.iterdir()))}")
    return Outcome("\n".join(texts), json_ready(record)[0], 3 if failed else 0)


def recordings(audio: Sequence[Path]) -> list[Path]:
    """List recordings: files as they are given, folders by the sound files in and below them.

    Parameters
    ----------
    audio : files and folders; a file that does not exist is listed, and fails when it is read.

    Raises
    ------
    InputError
        If a folder holds no sound file.

    Examples
    --------
    >>> recordings([Path("a.wav"), Path("a.wav")])
    [PosixPath('a.wav')]
    """
    found: dict[Path, None] = {}
    for path in audio:
        if not path.is_dir():
            found[path] = None
            continue
        inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in SOUNDS and file.is_file())
        if not inside:
            refuse(f"{path}, a folder without recordings", f"files that end in {', '.join(SOUNDS)}", "another folder")
        found.update(dict.fromkeys(inside))
    return list(found)


def described(found: Transcript) -> dict[str, Any]:
    """Return a transcript as plain values, for summaries and for machines.

    Parameters
    ----------
    found : of one clip.

    Returns
    -------
    dict
        `text`, `tokens`, `language`, the statistics of `CLIP_QUANTITIES`, and `segments`.
    """
    return {
        "text": found.text,
        "tokens": list(found.tokens),
        "language": found.language,
        "language_prob": found.language_prob,
        "windows": len(found.windows),
        "finished": found.finished,
        **{name: getattr(found, name) for name in CLIP_QUANTITIES},
        "segments": [
            {"start": s.start, "end": s.end, "text": s.text, "tokens": list(s.tokens)} for s in found.segments
        ],
    }


def transcript_rows(found: Transcript, **labels: Any) -> list[dict[str, Any]]:
    """Turn a transcript into rows of the long table.

    Parameters
    ----------
    found : of one clip.
    labels : the same in every row, such as clip and dtype.

    Returns
    -------
    list of dict
        One row per statistic of the clip, the transcript as their text; two per segment, its start and end.

    References
    ----------
    docs/schema.md
    """
    rows: list[dict[str, Any]] = [
        {"quantity": f"transcript.{name}", "value": getattr(found, name), "unit": unit, "text": found.text}
        for name, unit in CLIP_QUANTITIES.items()
    ]
    for segment in found.segments:
        for name in ("start", "end"):
            value = getattr(segment, name)
            rows.append({"quantity": f"segment.{name}", "value": value, "unit": "s", "text": segment.text})
    return [{**labels, **row} for row in rows]


def clip_names(paths: Sequence[Path]) -> list[str]:
    """Name clips by their files' stems, or by whole paths where stems repeat."""
    names = [path.stem for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _progress(first: int, count: int, total: int, elapsed: float) -> str:
    """Say which clips are under way and, once some are done, how long the rest will take."""
    done = f"transcribing {first + 1} to {first + count} of {total}"
    if not first:
        return f"{done} (compiling first)"
    left = elapsed / first * (total - first)
    return f"{done}, about {left / 60:.0f} min left" if left >= 90 else f"{done}, about {left:.0f} s left"


def _text(name: str, clip: Mapping[str, Any]) -> str:
    """Lay out one clip: its name and text, or its segments where there are several."""
    spoken = f" ({clip['language']})" if clip["language"] else ""
    if len(clip["segments"]) < 2:
        return f"{name}{spoken}: {clip['text']}"
    lines = [f"  [{s['start']:8.2f} to {s['end']:8.2f}] {s['text']}" for s in clip["segments"]]
    return "\n".join([f"{name}{spoken}:", *lines])
