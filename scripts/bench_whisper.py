"""Time the encoder and greedy decoding beside transformers' Whisper in torch, in one process, turn by turn.

    python scripts/bench_whisper.py MODELS docs/benchmarks/whisper_speed.json [--repeats 7]

MODELS is the folder with `whisper-tiny.en-digits` and `whisper-tokenizer`. Needs the parity extra.
Both sides compute in float32 on two threads; with `--torch-threads 1` torch takes one, which is faster
for it where other work keeps the cores busy, because its threads wait for each other. `--append` adds
rows to the file. Every repeat times each side once, in changing order, so that whatever else the
machine does meets all of them; compilation and first calls are timed apart.
"""

import argparse
import importlib.metadata
import itertools
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("PJRT_NPROC", str(os.cpu_count()))  # as `spectral-theorem transcribe` sets it

import jax
import jax.numpy as jnp
import numpy as np
import torch
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import logging

from spectral_theorem import whisper
from spectral_theorem.whisper.decode import decode

NEW = 64
REFERENCES = ("eager", "sdpa")


def random_tiny(models: Path, folder: Path) -> Path:
    """Write a Whisper of the size of tiny.en with random weights, as transformers draws them."""
    torch.manual_seed(0)
    ends = {"eos_token_id": 50256, "bos_token_id": 50256, "pad_token_id": 50256, "decoder_start_token_id": 50257}
    config = WhisperConfig(
        vocab_size=51864, d_model=384, encoder_layers=4, decoder_layers=4, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=1536, decoder_ffn_dim=1536, **ends,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    described = {**ends, "is_multilingual": False, "suppress_tokens": [], "forced_decoder_ids": [[1, 50362]]}
    (folder / "generation_config.json").write_text(json.dumps(described))
    shutil.copy(models / "whisper-tokenizer" / "tokenizer.json", folder)
    return folder


def references(folder: Path, suppressed: list[int]) -> dict[str, Any]:
    """Load a folder with transformers, once per attention, set to generate freely without ever ending."""
    loaded = {}
    for attention in REFERENCES:
        model = WhisperForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention
        ).eval()
        settings = model.generation_config
        settings.suppress_tokens, settings.begin_suppress_tokens = suppressed, None
        settings.forced_decoder_ids, settings.max_length = None, 448
        loaded[attention] = model
    return loaded


def compare(name: str, sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Time every side once per repeat, in random order."""
    first = {}
    for side, run in sides.items():
        start = time.perf_counter()
        run()
        first[side] = time.perf_counter() - start
        run()
    times: dict[str, list[float]] = {side: [] for side in sides}
    work: dict[str, list[float]] = {side: [] for side in sides}
    load = os.getloadavg()
    order = random.Random(0)
    for _ in range(repeats):
        for side in order.sample(list(sides), len(sides)):
            start, used = time.perf_counter(), time.process_time()
            sides[side]()
            times[side].append(time.perf_counter() - start)
            work[side].append(time.process_time() - used)
    ours = times["ours"]
    row = {
        "name": name,
        "torch_threads": torch.get_num_threads(),
        "load_1min": [load[0], os.getloadavg()[0]],
        "first_call_s": first,
        "seconds": {
            side: {"min": min(all), "median": statistics.median(all), "max": max(all), "all": all}
            for side, all in times.items()
        },
        "processor_seconds": {side: {"min": min(all), "all": all} for side, all in work.items()},
        "speedup_median": {
            side: statistics.median([b / a for a, b in zip(ours, times[side], strict=True)]) for side in REFERENCES
        },
        "speedup_min": {side: min(times[side]) / min(ours) for side in REFERENCES},
        "speedup_processor": {side: min(work[side]) / min(work["ours"]) for side in REFERENCES},
    }
    print(name, {k: round(v, 2) for k, v in row["speedup_min"].items()}, "by minimum;",
          {k: round(v, 2) for k, v in row["speedup_median"].items()}, "by median", flush=True)  # fmt: skip
    return row


def rows_of(folder: Path, label: str, repeats: int, only: str) -> Iterator[dict[str, Any]]:
    """Compare encoder and decoder on one model, row by row."""
    ours = whisper.load(folder)
    end, prompt = ours.generation.end, ours.generation.prompt
    suppressed = sorted({end, *ours.generation.suppress})
    theirs = references(folder, suppressed)
    draw = np.random.default_rng(0)
    mel = draw.standard_normal((8, 80, 3000)).astype(np.float32)
    for batch in (1,) if only in f"{label}: encoder, batch 1" else ():
        x, y = jnp.asarray(mel[:batch]), torch.tensor(mel[:batch])

        def encode(model: Any, y: torch.Tensor = y) -> Any:
            with torch.no_grad():
                return model.model.encoder(y)

        sides = {side: lambda model=model: encode(model) for side, model in theirs.items()}
        sides["ours"] = lambda x=x: ours.encode(x).block_until_ready()
        yield compare(f"{label}: encoder, batch {batch}", sides, repeats)
    states = np.asarray(ours.encode(jnp.asarray(mel)))
    for batch in (1, 8):
        if only not in f"{label}: {NEW} greedy tokens, batch {batch}":
            continue
        c, t = jnp.asarray(states[:batch]), torch.tensor(states[:batch])

        def generate(model: Any, t: torch.Tensor = t, batch: int = batch) -> Any:
            with torch.no_grad():
                return model.generate(
                    encoder_outputs=BaseModelOutput(last_hidden_state=t),
                    decoder_input_ids=torch.tensor([prompt] * batch),
                    max_new_tokens=NEW,
                    do_sample=False,
                    num_beams=1,
                )

        ours_run = lambda c=c, batch=batch: jax.block_until_ready(
            decode(ours, c, [prompt] * batch, new=NEW, forced=True)
        )
        sides = {side: lambda model=model: generate(model) for side, model in theirs.items()}
        sides["ours"] = ours_run
        row = compare(f"{label}: {NEW} greedy tokens, batch {batch}", sides, repeats)
        mine = np.asarray(ours_run().tokens)[:, len(prompt) :]
        row["same_tokens"] = {
            side: bool((generate(model).numpy()[:, -NEW:] == mine).all()) for side, model in theirs.items()
        }
        yield row


def main() -> None:
    """Compare on both models and write the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--torch-threads", type=int, default=2)
    parser.add_argument("--only", default="", help="take rows whose name holds this")
    parser.add_argument("--append", action="store_true")
    options = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(options.torch_threads)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "torch", "transformers", "numpy")}
    environment = {
        "python": platform.python_version(),
        **versions,
        "machine": platform.machine(),
        "device": str(jax.devices()[0]),
        "cpus": os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": " ".join(["scripts/bench_whisper.py", *map(lambda a: Path(a).name, sys.argv[1:])]),
        "date": time.strftime("%Y-%m-%d"),
    }
    options.target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        models = {
            "digits": options.models / "whisper-tiny.en-digits",
            "random tiny.en": random_tiny(options.models, Path(folder)),
        }
        rows = json.loads(options.target.read_text())["rows"] if options.append else []
        each = (rows_of(path, name, options.repeats, options.only) for name, path in models.items())
        for row in itertools.chain.from_iterable(each):
            rows.append(row)
            options.target.write_text(json.dumps({"environment": environment, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
