"""Measure how far this Whisper is from transformers', and keep the differences as JSON.

    python scripts/measure_parity.py MODELS docs/benchmarks/parity.json

MODELS is the folder with `whisper-tiny.en-digits`, beside it `data/`. Needs the parity extra. Random models, the
recordings and the reference's side are those of tests/parity; `scripts/benchmark_page.py` draws the page.
"""

import csv
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "parity"))

import reference
import test_live
from parity_cases import CASES, waveform

from spectral_theorem import whisper
from spectral_theorem.audio import load_audio, log_mel
from spectral_theorem.provenance import environment

gap = lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max())


def random_models() -> dict[str, Any]:
    """Compare encoder states and logits of random models, ours in two precisions with the reference in float64."""
    rows = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            expected = reference.run_case(case, Path(folder))
            mel, tokens = case.inputs()
            row: dict[str, Any] = {"width": case.width, "mels": case.mels, "vocabulary": case.vocabulary}
            for dtype in ("float32", "float64"):
                model = whisper.load(folder, dtype)
                context = model.encode(jnp.asarray(mel, dtype))
                row[f"states_{dtype}"] = gap(context, expected["encoder"])
                row[f"logits_{dtype}"] = gap(model.logits(jnp.asarray(tokens), context), expected["logits"])
        rows[case.name] = row
    return rows


def spectrograms(speech: np.ndarray) -> dict[str, Any]:
    """Compare log-mel of a synthetic sound and of speech with both routes of the reference's extractor."""
    rows = {}
    for name, samples in (("synthetic", waveform()), ("jfk", speech)):
        for mels in (80, 128):
            by_numpy, by_torch = reference.log_mel(mels, samples)
            single = log_mel(samples.astype(np.float32), mels)
            rows[f"{name}, {mels} mels"] = {
                "float32_to_numpy_route": gap(single, by_numpy),
                "float32_to_torch_route": gap(single, by_torch),
                "torch_route_to_numpy_route": gap(by_torch, by_numpy),
            }
    return rows


def real_blocks(folder: Path, data: Path) -> dict[str, Any]:
    """Compare encoder states and greedy tokens on strings of digits, with tiny.en's own blocks."""
    with (data / "manifest.csv").open() as file:
        paths = {row["utterance_id"]: data / row["path"] for row in csv.DictReader(file)}
    strings = [*test_live.DIGIT_STRINGS, *test_live.more_strings()]
    models = {dtype: test_live.both(folder, dtype) for dtype in ("float32", "float64")}
    worst = dict.fromkeys(("float32", "float64", "reference_float32_to_its_float64", "largest_state"), 0.0)
    same = 0
    for start in range(0, len(strings), 14):
        some = strings[start : start + 14]
        states = {}
        for dtype, (ours, theirs) in models.items():
            heard = [test_live.heard(string, paths, dtype) for string in some]
            context = ours.encode(jnp.stack([mel for _, mel, _ in heard]))
            with torch.no_grad():
                states[dtype] = theirs.model.encoder(torch.cat([each for _, _, each in heard])).last_hidden_state
            worst[dtype] = max(worst[dtype], gap(context, states[dtype].numpy()))
            if dtype == "float32":
                expected = reference.greedy_batch(theirs, states[dtype], end=10)
                found = whisper.transcriptions(ours, whisper.greedy(ours, context), [1.0] * len(some))
                same += sum(
                    list(each.sequence) == row[: len(each.sequence)].tolist()
                    for each, row in zip(found, expected, strict=True)
                )
        own = gap(states["float32"].numpy(), states["float64"].numpy())
        name = "reference_float32_to_its_float64"
        worst[name] = max(worst[name], own)
        worst["largest_state"] = max(worst["largest_state"], float(states["float64"].abs().max()))
    return {"clips": len(strings), "same_greedy_tokens": same, "states": worst}


def main(models: Path, target: Path) -> None:
    """Measure everything and write the file."""
    jax.config.update("jax_enable_x64", True)
    speech, _ = load_audio(models.parent / "data" / "speech" / "jfk.flac")
    measured = {
        "environment": {**environment(), **{name: version(name) for name in ("torch", "transformers")}},
        "random_models": random_models(),
        "log_mel": spectrograms(speech),
        "real_blocks": real_blocks(models / "whisper-tiny.en-digits", models.parent / "data"),
    }
    target.write_text(json.dumps(measured, indent=2) + "\n")
    print(target.read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
