"""Measure a few clips of a study closely: nulls, ablations and perturbations, by dense propagators; resumable.

Each clip under each condition is one file of flat rows, written when it is finished.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .ablations import ablation_rows
from .attraction import attraction_rows
from .chance import chance_rows
from .storage import json_ready, write_atomically
from .tokenchains import clip_tokens, untrained
from .types import InputError
from .whisper import WhisperModel, encode_audio

FOLDER = "detail"
TOPICS = ("chance", "ablations", "attraction")
SEQUENCES = 10  # clips whose whole sequence is decomposed as well: exact tests decide from six


def spread_over(names: Sequence[str], speakers: Sequence[str], clusters: Sequence[str], count: int) -> list[str]:
    """Choose clips for a closer look: one of each cluster, speakers in turn.

    Parameters
    ----------
    names, speakers, clusters : of all clips, in order. count : at most.

    Examples
    --------
    >>> spread_over(["a1", "a2", "b1"], ["a", "a", "b"], ["x", "y", "z"], 2)
    ['a1', 'b1']
    """
    queues: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name, speaker, cluster in zip(names, speakers, clusters, strict=True):
        if cluster not in seen:
            seen.add(cluster)
            queues.setdefault(speaker, []).append(name)
    chosen: list[str] = []
    while len(chosen) < count and any(queues.values()):
        chosen += [queue.pop(0) for queue in queues.values() if queue]
    return chosen[:count]


def detail(
    model: WhisperModel,
    sounds: Sequence[tuple[dict[str, Any], Callable[[], np.ndarray]]],
    *,
    folder: Path,
    key: str,
    steps: str = "2",
    draws: int = 1,
    directions: int = 4,
    sequences: int = SEQUENCES,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Measure clips closely, going on where an earlier call was stopped.

    Parameters
    ----------
    model : WhisperModel in float32 or float64.
    sounds : labels (clip, cluster, speaker, condition) and a function that reads the samples, for each.
    folder : of the run. key : files made under another are made again.
    steps : tokens of each clip, as `spaced_steps` takes it. draws : of random nulls. directions : of perturbations.
    sequences : so many clips are decomposed as whole sequences as well, under the first of their conditions.
    seed : of every random number. progress : called with clips done and in all.

    Returns
    -------
    rows by topic ("chance", "ablations", "attraction"), and clips that failed with the reason
    """
    place = folder / FOLDER
    place.mkdir(exist_ok=True)
    rows: dict[str, list[dict[str, Any]]] = {topic: [] for topic in TOPICS}
    failed: dict[str, str] = {}
    whole = _whole(sounds, sequences)
    for number, (labels, load) in enumerate(sounds):
        if progress is not None:
            progress(number, len(sounds))
        file = place / f"{number:04d}.json"
        try:
            samples = np.ascontiguousarray(load(), np.float32)
            asked = key + ", whole" * (number in whole)
            digest = hashlib.blake2b(samples.tobytes() + asked.encode(), digest_size=16).hexdigest()
            found = _kept(file, digest)
            if found is None:
                options: dict[str, Any] = {"draws": draws, "directions": directions, "sequences": sequences}
                found = closely(model, sounds, number, steps=steps, seed=seed, **options)
                text = json.dumps({"digest": digest, "rows": json_ready(found)[0]}, allow_nan=False)
                write_atomically(file, lambda f, text=text: f.write(text.encode()))
        except InputError as problem:
            failed[f"{labels['clip']}, {labels['condition']}"] = str(problem)
            continue
        for topic in TOPICS:
            rows[topic] += found[topic]
    if progress is not None:
        progress(len(sounds), len(sounds))
    return rows, failed


def closely(
    model: WhisperModel,
    sounds: Sequence[tuple[dict[str, Any], Callable[[], np.ndarray]]],
    number: int,
    *,
    topics: Sequence[str] = TOPICS,
    steps: str = "2",
    draws: int = 1,
    directions: int = 4,
    sequences: int = SEQUENCES,
    seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:
    """Look at one of several clips.

    Parameters
    ----------
    model, sounds, steps, draws, directions, sequences, seed : as in `detail`. number : which of the sounds.
    topics : what to look at.

    Returns
    -------
    rows by topic
    """
    labels, load = sounds[number]
    clip = clip_tokens(model, np.ascontiguousarray(load(), np.float32), steps)
    root = jax.random.key(seed)
    own, found = jax.random.fold_in(root, number), {}
    if "chance" in topics:
        fresh = untrained(root, model)  # one for all clips: the key does not depend on them
        found["chance"] = chance_rows(own, model, clip, fresh=fresh, draws=draws, labels=labels)
    if "ablations" in topics:
        sequence = number in _whole(sounds, sequences)
        found["ablations"] = ablation_rows(model, clip, sequence=sequence, labels=labels)
    if "attraction" in topics:
        others = _others(model, sounds, number)
        found["attraction"] = attraction_rows(own, model, clip, others=others, directions=directions, labels=labels)
    return found


def _whole(sounds: Sequence[Any], count: int) -> set[int]:
    """Choose the sounds whose whole sequence is decomposed: the first of each clip, so that clusters are many."""
    firsts: dict[str, int] = {}
    for number, (labels, _) in enumerate(sounds):
        firsts.setdefault(labels["clip"], number)
    return set(list(firsts.values())[:count])


def _others(model: WhisperModel, sounds: Sequence[Any], number: int) -> list[Any]:
    """Return the encoder output of another clip under the same condition, if there is one that can be read."""
    labels = sounds[number][0]
    for other, load in (*sounds[number + 1 :], *sounds[:number]):
        if other["condition"] == labels["condition"] and other["cluster"] != labels["cluster"]:
            try:
                return [encode_audio(model, load()[: model.dims.window_samples])[0]]
            except InputError:
                continue
    return []


def _kept(file: Path, digest: str) -> dict[str, list[dict[str, Any]]] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found["rows"] if isinstance(found, dict) and found.get("digest") == digest else None
