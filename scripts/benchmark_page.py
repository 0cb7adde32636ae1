"""Draw the pages of docs/benchmarks from the JSON files beside them, so that no number is typed by hand.

python scripts/benchmark_page.py
"""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


ORDER = ("ours", "eager", "sdpa")
HEAD = (
    "",
    "torch's threads",
    "ours",
    "torch, eager",
    "torch, sdpa",
    "ratio to eager",
    "ratio to sdpa",
    "ours, first call",
    "load",
)


def speed_table(measured: dict[str, Any]) -> str:
    """Return one line per comparison: seconds of each side, and how many times as fast ours is."""
    lines = [f"| {' | '.join(HEAD)} |", "| --- " * len(HEAD) + "|"]
    for row in measured["rows"]:
        sides = row["seconds"]
        cells = [f"{sides[s]['min']:.2f}, {sides[s]['median']:.2f}, {sides[s]['max']:.2f}" for s in ORDER]
        kinds = ("speedup_min", "speedup_median", "speedup_processor")
        ratios = [", ".join(f"{row[kind][side]:.2f}" for kind in kinds) for side in ORDER[1:]]
        first, load = row["first_call_s"]["ours"], row["load_1min"]
        ends = [f"{first:.1f}", f"{load[0]:.0f}, {load[1]:.0f}"]
        lines.append(f"| {' | '.join([row['name'], str(row['torch_threads']), *cells, *ratios, *ends])} |")
    return "\n".join(lines)


def page(speed: dict[str, Any], wer: dict[str, Any]) -> str:
    """Return the page."""
    where, rows = speed["environment"], speed["rows"]
    lowest = {
        kind: min(min(row[f"speedup_{kind}"].values()) for row in rows) for kind in ("min", "median", "processor")
    }
    same = [all(row["same_tokens"].values()) for row in rows if "same_tokens" in row]
    repeats = min(len(row["seconds"]["ours"]["all"]) for row in rows)
    by = lambda name: ", ".join(f"{key} {100 * value:.1f} %" for key, value in wer[name].items())
    low, high = (100 * value for value in wer["interval_95"])
    return f"""# Whisper: speed and word error rate

Drawn by `scripts/benchmark_page.py` from [whisper_speed.json](whisper_speed.json) and [wer.json](wer.json).

## Speed beside transformers

`scripts/bench_whisper.py` runs both sides in one process and changes sides at random within each of {repeats} repeats:
float32, {where["cpus"]} cores. Cells give minimum, median and maximum in seconds. The three ratios are those of the minima, the
median of the ratios within a repeat, and that of the least processor times; above 1, ours is faster. Our first call
compiles, and is timed apart. The load is that of the whole machine, at the start and the end of a row.

{speed_table(speed)}

Lowest ratios: {lowest["min"]:.2f} of minima, {lowest["median"]:.2f} of medians, {lowest["processor"]:.2f} of processor times. The tokens generated, end-of-text
barred, were the same on all sides in {sum(same)} of {len(same)} comparisons. jax {where["jax"]}, torch {where["torch"]}, transformers
{where["transformers"]}, {where["date"]}. "Digits" is `whisper-tiny.en-digits`, whose vocabulary has 13 tokens; "random tiny.en" has random
weights and the vocabulary of 51,864.

### What holds the encoder back

A block of tiny.en takes 8.8 Gflop for one window: 28 ms on two cores if every product ran at the 156 GF/s per core that
XLA's float32 product of 1500 x 384 by 384 x 1536 reaches here (torch takes 29.5 ms for the whole block). What is
left beside products, softmax above all, is a pass of its own in XLA and part of the attention kernel in torch. Trials
on a busy machine (load 6 to 14), so least processor times only, and no bars:

| trial | found |
| --- | --- |
| other products by `compiler_options`, per `jit` | oneDNN 150, YNNPACK 142, XNNPACK 140, 512-bit vectors 139 GF/s per core; the default 156 |
| float32 as six bfloat16 products in tile units (AMX) | 24.5 ms against 11.9 ms of processor time; largest error 1.6e-5 against 7.8e-5 |
| the same as one product over a sixfold inner axis | 22 ms against 11.3 ms: its operands no longer fit the cache; a smaller output tile gains nothing |
| the same with three products | 12.3 ms against 11.9 ms, and an error of 5e-4 |
| one thread on each side | encoder 354 ms against torch's 358 ms, a block 85 against 80, of processor time |
| smaller query tiles, keys transposed, heads batched or unrolled, q, k, v in one product, no maximum | no gain, in earlier runs |

A single bfloat16 product runs at 850 to 1350 GF/s per core by default, so six of them would pay if their sum were
formed in the tiles. XLA's CPU backend of jaxlib 0.10.2 does not do that: it takes the algorithms `BF16_BF16_F32_X3` and
`BF16_BF16_F32_X6` and computes plain float32 (same time, same error).

## Word error rate

`scripts/measure_wer.py`, with {wer["model"]}, whose behaviour means something on digits only.
{wer["data"]}: {wer["strings"]} strings, {wer["words"]} words, greedy, {wer["dtype"]}.

**{100 * wer["wer"]:.2f} %** ({low:.2f} to {high:.2f} % in 95 % of resampled sets of strings): {wer["substitutions"]} substitutions,
{wer["deletions"]} deletions, {wer["insertions"]} insertions.

- by number of digits: {by("wer_by_length")}
- by speaker: {by("wer_by_speaker")}
"""  # noqa: E501


def rows_of(head: str, rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(
        [f"| {head} |", "| --- " * (head.count("|") + 1) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    )


def parity_page(parity: dict[str, Any], others: dict[str, dict[str, Any]], memory: dict[str, Any]) -> str:
    """Return the page on agreement with the reference implementations, and on memory."""
    where, real = parity["environment"], parity["real_blocks"]
    number = lambda x: f"{x:.1e}"
    random = [
        [name, f"{row['width']}, {row['mels']}, {row['vocabulary']}"]
        + [number(row[f"{what}_{dtype}"]) for dtype in ("float32", "float64") for what in ("states", "logits")]
        for name, row in parity["random_models"].items()
    ]
    mel = [[name, *map(number, row.values())] for name, row in parity["log_mel"].items()]
    beside = [
        [f"{name} {case}", number(row["states_difference"]), number(row["logits_difference"])]
        for name, measured in others.items()
        for case, row in measured["cases"].items()
    ]
    versions = "; ".join(
        f"{name}: {', '.join(f'{k} {v}' for k, v in measured['environment']['theirs'].items())}"
        for name, measured in others.items()
    )
    used = [
        [dtype, f"{row['weights_gb']:.2f}", f"{row['loading_over_weights']:.2f}", f"{row['peak_gb']:.2f}"]
        for dtype, row in memory["figures"].items()
    ]
    states = real["states"]
    return f"""# Whisper: agreement with the reference implementations

Drawn by `scripts/benchmark_page.py` from [parity.json](parity.json) (`scripts/measure_parity.py`), [parity_openai.json](parity_openai.json),
[parity_flax.json](parity_flax.json) and [memory.json](memory.json). All numbers are largest absolute differences.

## transformers {where["transformers"]}, torch {where["torch"]}

Random weights, the reference in float64, ours in two precisions:

{rows_of("model | width, mels, vocabulary | states, float32 | logits, float32 | states, float64 | logits, float64", random)}

Log-mel in float32. The reference's extractor has two routes, which differ from each other by more than ours does from
the exact one:

{rows_of("sound | ours to the NumPy route | ours to the torch route | torch route to NumPy route", mel)}

Real blocks of tiny.en on {real["clips"]} strings of spoken digits: greedy tokens are the same on **{real["same_greedy_tokens"]} of {real["clips"]}**. Encoder states
agree to {number(states["float64"])} in float64 and to {number(states["float32"])} in float32, where the largest state is {states["largest_state"]:.0f}. States of silent frames are
ill-conditioned: the reference's own float32 is {number(states["reference_float32_to_its_float64"])} from its float64.

## Other implementations, out of process

{rows_of("case | states | logits", beside)}

Float32 on both sides. {versions}.

## Memory: the shape of large-v3-turbo, one window and five tokens

{rows_of("weights in | weights, GB | peak while loading / weights | peak, GB", used)}
"""  # noqa: E501


def main() -> None:
    """Write the pages."""
    read = lambda name: json.loads((FOLDER / f"{name}.json").read_text())
    (FOLDER / "whisper.md").write_text(page(read("whisper_speed"), read("wer")), encoding="utf-8")
    others = {"openai-whisper": read("parity_openai"), "Flax Whisper": read("parity_flax")}
    (FOLDER / "parity.md").write_text(parity_page(read("parity"), others, read("memory")), encoding="utf-8")


if __name__ == "__main__":
    main()
