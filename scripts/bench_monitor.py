"""Time the monitor beside plain decoding, in one process, turn by turn, and say what it measures there.

    python scripts/bench_monitor.py MODELS docs/benchmarks/monitor.json [--repeats 15] [--tokens 64]

MODELS is the folder with `whisper-tiny.en-digits`; random weights of the sizes of tiny.en and base.en stand beside it.
Decoding never ends before its tokens, so that all sides do the same work; the encoder is left out, which makes the
ratios larger than a user sees. A side of the monitor makes every record and its line of JSON.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import spectral_theorem  # noqa: F401, I001  (before jax: it sets how many threads XLA's client has)
import jax
import jax.numpy as jnp
import numpy as np

from spectral_theorem.benchrecord import surroundings
from spectral_theorem.engine import layer_quantities, layer_triplets
from spectral_theorem.monitor import Monitor, Step
from spectral_theorem.storage import json_ready, write_atomically
from spectral_theorem.timing import Side, compare, ratio
from spectral_theorem.whisper import Generation, WhisperModel, catalogue, load, random_model, token_factors
from spectral_theorem.whisper.decode import decode

# ratio of two sides to its limit, judged by the median
BARS = {"activations / decode": 1.10, "gains / decode": 3.0}
ENGLISH = Generation(prompt=(50257, 50362), end=50256)
RANDOM = ("tiny.en", "base.en")


def models(folder: Path) -> Iterator[tuple[str, Callable[[], WhisperModel]]]:
    """Name the models, each with a function that makes it."""
    yield "digits", lambda: load(folder / "whisper-tiny.en-digits")
    for size in RANDOM:
        prompt = Generation(prompt=(50257, 50362), end=50256)
        dims = catalogue[f"openai/whisper-{size}"].dims
        yield (
            f"random {size}",
            lambda dims=dims, prompt=prompt: random_model(jax.random.key(0), dims, generation=prompt),
        )


def lines(steps: Iterator[Step]) -> list[Step]:
    """Do what a record needs: every step, and its line."""
    found = list(steps)
    for step in found:
        json.dumps(step.to_dict(), allow_nan=False)
    return found


def rows_of(name: str, model: WhisperModel, repeats: int, tokens: int) -> dict[str, Any]:
    """Compare the sides on one model."""
    sound = np.random.default_rng(0).standard_normal((model.dims.mels, 2 * model.dims.frames))
    context = model.encode(jnp.asarray(sound, jnp.float32))
    prompt = model.generation.prompt
    options: dict[str, Any] = {"new": tokens, "forced": True}
    plain = Monitor(model)
    always, sometimes = (Monitor(model, every=every) for every in (1, 8))
    run = lambda monitor: lambda: lines(monitor.watch_context(context, **options))
    sides = {
        "decode": Side(
            lambda: jax.block_until_ready(decode(model, context[None], [prompt], **options)), "plain decoding", tokens
        ),
        "activations": Side(run(plain), "slope and effective rank at every token and place", tokens),
        "gains": Side(run(always), "and lambda of every layer at every token", tokens),
        "gains at every 8th": Side(run(sometimes), "and lambda at every eighth token", tokens),
    }
    row = compare(sides, repeats=repeats)
    row |= {
        "model": name,
        "width": model.dims.width,
        "layers": model.dims.decoder_layers,
        "vocabulary": model.dims.vocabulary,
        "tokens": tokens,
        "places": 3 * model.dims.decoder_layers,
        "window": plain.window,
        "group": plain.group,
        "tolerance": always.tolerance,
    }
    row["ratios"] = {f"{side} / decode": ratio(row, side, "decode") for side in sides if side != "decode"}
    row["bars"] = [
        {"name": bar, "value": row["ratios"][bar]["median"], "limit": most, "met": row["ratios"][bar]["median"] <= most}
        for bar, most in BARS.items()
    ]
    row["numbers"] = agreement(model, context, list(always.watch_context(context, **options)))
    return row


def agreement(model: WhisperModel, context: Any, steps: list[Step]) -> dict[str, float]:
    """Compare lambda with what full convergence gives at the same tokens."""
    sequence = [*model.generation.prompt, *(step.token for step in steps)]
    factors = token_factors(model, context, sequence, [step.position for step in steps])
    exact = layer_quantities([layer_triplets(f) for f in factors])
    pick = lambda name: np.asarray(exact[name], np.float64)[:, :-1]
    ours = np.stack([step.gains["lam"][:-1] for step in steps if step.gains is not None])
    error = np.stack([step.gains["lam_error"][:-1] for step in steps if step.gains is not None])
    known, off = np.isfinite(error), np.abs(ours - pick("lam"))
    return {
        "share_with_finite_error": float(known.mean()),
        "median_error": float(np.median(error[known])) if known.any() else float("nan"),
        "median_off": float(np.median(off)),
        "largest_off": float(off.max()),
        "largest_off_over_error": float((off / (error + pick("lam_error")))[known].max())
        if known.any()
        else float("nan"),
    }


def said(row: dict[str, Any]) -> str:
    """Lay out a row for a person."""
    times = {name: f"{1e3 * side['seconds']['median']:.2f} ms" for name, side in row["sides"].items()}
    ratios = {name: f"{r['median']:.2f} ({r['min']:.2f} to {r['max']:.2f})" for name, r in row["ratios"].items()}
    return f"{row['model']}: {times}\n  {ratios}\n  {row['numbers']}\n  load {row['load_1min']}"


def main() -> None:
    """Compare on all models and write the file after each."""
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--only", default="", help="take models whose name holds this")
    options = parser.parse_args()
    command = " ".join(["scripts/bench_monitor.py", *(Path(a).name for a in sys.argv[1:])])
    record: dict[str, Any] = {
        "schema": 1,
        "status": "running",
        "environment": surroundings() | {"command": command},
        "plan": {"repeats": options.repeats, "tokens": options.tokens},
        "rows": [],
    }
    options.target.parent.mkdir(parents=True, exist_ok=True)
    chosen = [each for each in models(options.models) if options.only in each[0]]
    for name, make in chosen:
        row = rows_of(name, make(), options.repeats, options.tokens)
        print(said(row), flush=True)
        record["rows"].append(row)
        record["status"] = "done" if len(record["rows"]) == len(chosen) else "running"
        content = json.dumps(json_ready(record)[0], indent=1, allow_nan=False) + "\n"
        write_atomically(options.target, lambda file, content=content: file.write(content.encode()))


if __name__ == "__main__":
    main()
