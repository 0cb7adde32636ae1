"""Draw docs/benchmarks/whisper.md from the JSON files beside it, so that no number is typed by hand.

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

`scripts/bench_whisper.py` runs both sides in one process and changes sides at random within each of {repeats} repeats or
more: float32, {where["cpus"]} cores, ours always on both. Cells give minimum, median and maximum in seconds. The three ratios are
those of the minima, the median of the ratios within a repeat, and that of the least processor times; above 1, ours is
faster. Our first call compiles, and is timed apart. The load is that of the whole machine, at the start and the end of
a row: what else ran took time from both sides, and from torch's two threads, which wait for each other, most of all.
Rows with one thread of torch are the fair ones under load, and its processor time there is not spent waiting.

{speed_table(speed)}

Lowest ratios: {lowest["min"]:.2f} of minima, {lowest["median"]:.2f} of medians, {lowest["processor"]:.2f} of processor times. The tokens generated, end-of-text
barred, were the same on all sides in {sum(same)} of {len(same)} comparisons. jax {where["jax"]}, torch {where["torch"]}, transformers
{where["transformers"]}, {where["date"]}. "Digits" is `whisper-tiny.en-digits`, whose vocabulary has 13 tokens; "random tiny.en" has random
weights and the vocabulary of 51,864.

## Word error rate

`scripts/measure_wer.py`, with {wer["model"]}, whose behaviour means something on digits only.
{wer["data"]}: {wer["strings"]} strings, {wer["words"]} words, greedy, {wer["dtype"]}.

**{100 * wer["wer"]:.2f} %** ({low:.2f} to {high:.2f} % in 95 % of resampled sets of strings): {wer["substitutions"]} substitutions,
{wer["deletions"]} deletions, {wer["insertions"]} insertions.

- by number of digits: {by("wer_by_length")}
- by speaker: {by("wer_by_speaker")}
"""  # noqa: E501


def main() -> None:
    """Write the page."""
    speed, wer = (json.loads((FOLDER / name).read_text()) for name in ("whisper_speed.json", "wer.json"))
    (FOLDER / "whisper.md").write_text(page(speed, wer), encoding="utf-8")


if __name__ == "__main__":
    main()
