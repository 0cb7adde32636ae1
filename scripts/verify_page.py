"""Draw docs/benchmarks/verify.md from verify.json beside it, so that no number is typed by hand.

python scripts/verify_page.py [FOLDER]
"""

import json
import sys
from pathlib import Path
from typing import Any

from engine_page import milliseconds, table

from spectral_theorem.benchrecord import exponent

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"
Row = dict[str, Any]


def load_of(row: Row) -> str:
    """Say the load before and after."""
    return "load " + ", ".join(f"{load:.1f}" for load in row["load_1min"])


def bars(row: Row) -> str:
    """Say what the row is held to, met or missed."""
    return "\n".join(
        f"- {'met' if bar['met'] else '**missed**'}: {bar['name']} = {bar['value']:.3g} {bar['sense']} {bar['limit']:g}"
        for bar in row.get("bars", ())
    )


def throughput(row: Row) -> list[str]:
    """Write times per chain, ratios, and how far the two answers are apart."""
    head = ["", "what", "ms per chain: least, median, most", "processor ms"]
    cell = lambda side, kind: ", ".join(milliseconds(side[kind][k]) for k in ("min", "median", "max"))
    lines = [
        [name, s["what"], cell(s, "seconds"), milliseconds(s["processor_seconds"]["median"])]
        for name, s in row["sides"].items()
    ]
    said = "; ".join(f"{n}: {r['median']:.3g} ({r['min']:.3g} to {r['max']:.3g})" for n, r in row["ratios"].items())
    apart = "; ".join(f"{name.split(': ')[1]} {value:.1g}" for name, value in row["numbers"].items())
    return [
        "## Many chains",
        f"{row['chains']} Gaussian chains of L = {row['layers']}, D = {row['width']}, C = {row['context']}, float64, "
        f"{load_of(row)}.",
        bars(row),
        table(head, lines),
        f"Ratios within a repeat, median (least to most): {said}.",
        f"Largest difference between the two answers, logarithms and scalars: {apart}.",
    ]


def growth(row: Row) -> list[str]:
    """Write how a time grows with a size."""
    cells = [[size, milliseconds(side["seconds"]["median"])] for size, side in row["sides"].items()]
    words = f"{exponent(row)}; {load_of(row)}."
    return [f"## Time against {row['against']}", words, bars(row), table([row["against"], "ms, median"], cells)]


def flat(row: Row) -> list[str]:
    """Write what memory does while chains go by."""
    cells = [[str(m["chains"]), f"{m['most_mb']:.0f}", f"{m['seconds']:.0f}"] for m in row["marks"]]
    words = (
        f"{row['chains']} chains of L = {row['layers']}, D = {row['width']}, C = {row['context']} made, verified and "
        f"forgotten by `verify_batches`; {row['violated']} with a violated claim. Compilation is in the first line; "
        f"{load_of(row)}."
    )
    return ["## Flat memory", words, bars(row), table(["chains", "most resident MB so far", "seconds"], cells)]


def deep(row: Row) -> list[str]:
    """Write what a streamed chain costs and how tight its bounds are."""
    head = ["layers", "seconds", "resident MB", "identity", "row-exact", "telescoping"]
    names = ("log_identity_error", "log_row_exact", "log_telescoping")
    cells = [
        [str(r["layers"]), f"{r['seconds']:.1f}", f"{r['resident_mb']:.0f}"]
        + [f"{r[f'{name}_over_residual']:.4g}" for name in names]
        for r in row["rows"]
    ]
    words = (
        f"One Gaussian chain, D = {row['width']}, C = {row['context']}, by `stream`; the bound used is the "
        f"{row['bound']}. The last columns are logarithms of the error of the identity and of two bounds over the "
        f"residual's norm; time grows with depth to the power {row['fit']['exponent']:.2f}; {load_of(row)}."
    )
    return ["## One deep chain", words, table(head, cells)]


def threads(row: Row) -> list[str]:
    """Write what a second thread of BLAS does to the peer."""
    said = " and ".join(f"{1e3 * s:.0f} ms with {n}" for n, s in row["seconds_per_chain"].items())
    return [f"The NumPy loop alone, by threads of BLAS, in processes of their own: {said}; {load_of(row)}."]


WRITERS = {"throughput": throughput, "threads": threads, "depth": growth, "chains": growth, "flat": flat, "deep": deep}


def page(record: Row) -> str:
    """Return the page."""
    where, rows = record["environment"], record["rows"]
    parts = [
        "# verify: many chains and long ones",
        "Drawn by `scripts/verify_page.py` from [verify.json](verify.json), which `scripts/bench_verify.py` wrote. "
        "The peer is `scripts/numpy_peer.py`: the same answers by the same algorithm, in a loop over chains. All sides "
        f"run in one process and take turns; {where['cpus']} processor cores. A load far above {where['cpus']} means "
        "that others used the machine.",
    ]
    for name, write in WRITERS.items():
        parts += write(rows[name]) if name in rows else []
    parts += [f"Not run: {name} ({why})." for name, why in record.get("skipped", {}).items()]
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    parts += [f"{where['cpu']}; {where['device']}; {versions}; {where['date']}, commit {str(where['commit'])[:12]}."]
    return "\n\n".join(part for part in parts if part) + "\n"


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    (folder / "verify.md").write_text(page(json.loads((folder / "verify.json").read_text())), encoding="utf-8")
