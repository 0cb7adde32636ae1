"""Draw docs/benchmarks/engine.md and its pictures from engine.json beside it, so that no number is typed by hand.

python scripts/engine_page.py [FOLDER]
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine_figures import Row, bars_of, kind_of, pictures, rows_of

from spectral_theorem.benchrecord import FILE, exponent, read
from spectral_theorem.canvas import to_svg

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
STANDALONE = 'style="font-family: Verdana, DejaVu Sans, sans-serif; color: #010101; background: #ffffff" '


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def milliseconds(seconds: float) -> str:
    """Write a time in milliseconds, three digits or all whole ones."""
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:.0f}"


def times_table(rows: Sequence[Row]) -> str:
    """Return a line per side: milliseconds per (layer, token) at every width."""
    head = ["", "what", *(f"D = {row['width']}, T = {row['tokens']}" for row in rows), "timed"]
    lines = []
    for name in dict.fromkeys(name for row in rows for name in row["sides"]):
        sides = [row["sides"].get(name) for row in rows]
        cells = [
            "-" if side is None else ", ".join(milliseconds(side["seconds"][k]) for k in ("min", "median", "max"))
            for side in sides
        ]
        there = [side for side in sides if side]
        timed = sorted({len(side["turns"]) for side in there})
        lines.append([name, there[0]["what"], *cells, " to ".join(map(str, {timed[0]: 0, timed[-1]: 0}))])
    loads = ["load", "of the machine, before and after", *(_load(row) for row in rows), ""]
    return table(head, [*lines, loads])


def _load(row: Row) -> str:
    return ", ".join(f"{load:.1f}" for load in row["load_1min"])


def ratios_text(rows: Sequence[Row]) -> str:
    """Say the ratios of a question, with spread."""
    said = [
        f"{name} at D = {row['width']}: {r['median']:.3g} ({r['min']:.3g} to {r['max']:.3g})"
        for row in rows
        for name, r in row["ratios"].items()
    ]
    return f"Ratios within a repeat, median (least to largest): {'; '.join(said)}." if said else ""


def first_calls(rows: Sequence[Row]) -> str:
    """Say how long first calls took, which compile."""
    seconds = lambda name: ", ".join(f"{row['sides'][name]['first_call_s']:.1f}" for row in rows)
    ours = [
        f"{name} {seconds(name)} s"
        for name in dict.fromkeys(name for row in rows for name in row["sides"])
        if kind_of(name) == "this package" and all(name in row["sides"] for row in rows)
    ]
    return f"First calls, which compile, by width: {'; '.join(ours)}." if ours else ""


def numbers_table(rows: Sequence[Row]) -> str:
    """Return a line per number of the rows."""
    names = list(dict.fromkeys(name for row in rows for name in row["numbers"]))
    cell = lambda value: "-" if value is None else value if isinstance(value, str) else f"{value:.3g}"
    lines = [[name.replace("_", " "), *(cell(row["numbers"].get(name)) for row in rows)] for name in names]
    return table(["", *(f"D = {row['width']}" for row in rows)], lines) if names else ""


SECTIONS = {
    "dense": "The dense Jacobian of one decoder block at one token",
    "triplets": "Two leading triplets of W, amortised over the tokens of a run",
    "injection": "Two leading triplets of the injection G",
    "clip": "A whole clip: every layer, every token, W and G, all conditions and bounds",
    "gpu": "On a GPU",
}


def page(record: Row, drawn: Mapping[str, str]) -> str:
    """Return the page; `drawn` maps pictures to what they show."""
    where = record["environment"]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    picture = lambda name: f"![{drawn[name]}](engine-{name}.svg)" if name in drawn else ""
    met = [bar["met"] for _, bar, _ in bars_of(record)]
    parts = [
        "# The engine: what one (layer, token) costs",
        f"""Drawn by `scripts/engine_page.py` from [engine.json](engine.json), which `scripts/bench_engine.py` wrote; without PyTorch,
`spectral-theorem bench` gives the same rows. All sides run in one process and take turns in random order; ratios are
taken within a repeat and given as median, least and largest. Float32, {where["cpus"]} processor cores, random weights in the
shapes of published models unless a row says otherwise.""",  # noqa: E501
        f"**{sum(met)} of {len(met)} figures that the engine is held to are met.**",
        picture("bars"),
    ]
    for question, title in SECTIONS.items():
        if rows := rows_of(record, question):
            parts += [f"## {title}", picture(question), times_table(rows), ratios_text(rows), first_calls(rows)]
            parts += [NOTES.get(question, "")]
            parts += ["Times are milliseconds per (layer, token): least, median, largest." if question != "clip" else
                      "Times are milliseconds per clip: least, median, largest.", numbers_table(rows)]  # fmt: skip
    if memory := [row for row in record["rows"] if row.get("measures") == "memory"]:
        lines = [
            [row["question"], *(str(row[k]) for k in ("width", "frames", "layers", "tokens"))]
            + ["-" if row["numbers"][k] is None else f"{row['numbers'][k]:.0f}" for k in MEMORY]
            for row in memory
        ]
        parts += ["## Peak memory, MB", PROCESS,
                  table(["", "D", "F", "L", "T", *MEMORY.values()], lines)]  # fmt: skip
    if record["scaling"]:
        parts += ["## Cost against sizes", picture("scaling")]
        parts += ["\n".join(f"- {exponent(row)}" for row in record["scaling"])]
        parts += ["Powers by least squares of logarithms over medians, with 95 % intervals by Student's t."]
    parts += [f"Not run: {name} ({why})." for name, why in record["skipped"].items()]
    parts += [f"{where['cpu']}; {where['device']}; {versions}; {where['date']}, commit {str(where['commit'])[:12]}."]
    return "\n\n".join(part for part in parts if part) + "\n"


NOTES = {
    "dense": """T tokens share a decoder run in `explicit`; the other ways take each token by itself. Errors are largest
differences from forward mode in float64 over the largest entry. In float32 the bar of 2e-6 is met where the entry
"explicit: error" is below it; two ways may differ by the sum of their errors, of which forward mode's own is the larger
on real blocks (5.1e-6 on tiny.en's against 1.6e-6 for the product of factors). In float64 all agree to 1e-12, which
`tests/test_sensitivity.py` holds them to.""",
    "triplets": "The T tokens of a row share products with every kernel; the section on sizes shows what fewer cost.",
}

MEMORY = {
    "before_mb": "before",
    "first_call_mb": "more at the first call, compiler included",
    "call_mb": "more at a second call",
    "peak_mb": "whole process",
}


PROCESS = "Each in a process of its own; before it are weights and inputs, and for G the factors that W needs too."


def draw(folder: Path) -> None:
    """Read a folder's record, and write its page and pictures beside it."""
    record = read(folder / FILE)
    drawn = {}
    for name, (figure, words) in pictures(record).items():
        svg = to_svg(figure, salt=name, label=words)
        (folder / f"engine-{name}.svg").write_text(svg.replace("<svg ", f"<svg {STANDALONE}", 1), encoding="utf-8")
        drawn[name] = words
    (folder / "engine.md").write_text(page(record, drawn), encoding="utf-8")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
