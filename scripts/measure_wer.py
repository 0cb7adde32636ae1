"""Measure the word error rate of the digits model on strings of digits, and keep it as JSON.

    python scripts/measure_wer.py SHARED docs/benchmarks/wer.json [--strings 200]

SHARED is the folder with `models/whisper-tiny.en-digits` and `data/manifest.csv`. Strings of 1 to 7
digits, each of one of five speakers, are drawn by a seed from takes 0 to 4 of FSDD, which the
model's embedding was not trained on, and joined with 0.1 s of silence.
"""

import argparse
import csv
import importlib.metadata
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jiwer
import numpy as np

from spectral_theorem import whisper
from spectral_theorem.audio import concatenate, load_audio

TAKES, LONGEST, GAP = range(5), 7, 0.1


def drawn_strings(shared: Path, count: int, seed: int) -> list[tuple[list[Path], str, str]]:
    """Draw strings: recordings, transcript, speaker; lengths 1 to 7 and speakers in turn."""
    with (shared / "data" / "manifest.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["path"].startswith("fsdd/")]
    takes: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        _, speaker, take = row["utterance_id"].split("_")
        if int(take) in TAKES:
            takes.setdefault(speaker, []).append(row)
    draw, strings = np.random.default_rng(seed), []
    for number in range(count):
        speaker = sorted(takes)[number % len(takes)]
        picked = [takes[speaker][i] for i in draw.integers(len(takes[speaker]), size=1 + number % LONGEST)]
        paths = [shared / "data" / row["path"] for row in picked]
        strings.append((paths, " ".join(row["transcript"] for row in picked), speaker))
    return strings


def main() -> None:
    """Transcribe, compare, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("shared", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--strings", type=int, default=210)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = whisper.load(options.shared / "models" / "whisper-tiny.en-digits")
    strings = drawn_strings(options.shared, options.strings, options.seed)
    sounds = [concatenate([load_audio(path)[0] for path in paths], GAP) for paths, _, _ in strings]
    start = time.perf_counter()
    heard = [found.text for found in whisper.transcribe_many(model, sounds, batch=8)]
    seconds = time.perf_counter() - start
    said = [text for _, text, _ in strings]
    whole = jiwer.process_words(said, heard)
    group = lambda key: {
        str(name): round(jiwer.wer([said[i] for i in places], [heard[i] for i in places]), 4)
        for name in sorted({key(i) for i in range(len(said))})
        for places in [[i for i in range(len(said)) if key(i) == name]]
    }
    # Resampled over strings: words of one string are not independent.
    errors = np.asarray([round(jiwer.wer(s, h) * len(s.split())) for s, h in zip(said, heard, strict=True)])
    words = np.asarray([len(s.split()) for s in said])
    places = np.random.default_rng(1).integers(len(said), size=(10_000, len(said)))
    low, high = np.quantile(errors[places].sum(1) / words[places].sum(1), [0.025, 0.975])
    result = {
        "model": "whisper-tiny.en-digits (tiny.en's own blocks, embedding of 13 tokens learned anew)",
        "data": f"FSDD, takes 0-4, five speakers, strings of 1-{LONGEST} digits, {GAP} s between digits",
        "strings": len(said),
        "words": int(words.sum()),
        "wer": round(whole.wer, 4),
        "interval_95": [round(float(low), 4), round(float(high), 4)],
        "substitutions": whole.substitutions,
        "deletions": whole.deletions,
        "insertions": whole.insertions,
        "wer_by_length": group(lambda i: int(words[i])),
        "wer_by_speaker": group(lambda i: strings[i][2]),
        "seed": options.seed,
        "dtype": "float32",
        "seconds": round(seconds, 1),
        "environment": {
            **{name: importlib.metadata.version(name) for name in ("jax", "jiwer", "numpy", "soxr")},
            "date": time.strftime("%Y-%m-%d"),
        },
    }
    options.target.parent.mkdir(parents=True, exist_ok=True)
    options.target.write_text(json.dumps(result, indent=1) + "\n")
    print({name: result[name] for name in ("strings", "words", "wer", "interval_95")})


if __name__ == "__main__":
    main()
