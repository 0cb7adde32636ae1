"""Compare Lyapunov exponents with closed forms, and write lyapunov.json, its page and its picture.

python scripts/measure_lyapunov.py docs/benchmarks [--layers 100000] [--streamed]
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax

from spectral_theorem.benchrecord import surroundings
from spectral_theorem.canvas import to_svg
from spectral_theorem.experiment import load
from spectral_theorem.solvable import ENSEMBLES
from spectral_theorem.storage import json_ready, write_atomically

HERE = Path(__file__).resolve().parents[1]
STANDALONE = 'style="font-family: Verdana, DejaVu Sans, sans-serif; color: #010101; background: #ffffff" '


def page(record: dict) -> str:
    """Return the page, every number from the record."""
    rows, where = record["rows"], record["environment"]
    lines = ["| ensemble | reason | found, with standard error | closed form | worst, in standard errors |"]
    lines.append("| --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(row["ensemble"] for row in rows):
        mine = [row for row in rows if row["ensemble"] == name]
        found = ", ".join(f"{row['exponent']:.4f} ± {row['standard_error']:.1g}" for row in mine)
        exact = ", ".join(f"{row['exact']:.4f}" for row in mine)
        worst = max(abs(row["deviation"]) for row in mine)
        lines.append(f"| {name} | {record['why'][name]} | {found} | {exact} | {worst:.2f} |")
    return (
        "\n\n".join(
            [
                "# Lyapunov exponents against closed forms",
                "Drawn by `scripts/measure_lyapunov.py` from [lyapunov.json](lyapunov.json). One chain per ensemble of "
                f"{rows[0]['layers']} layers, in nats per layer; what the ensembles are is on the page on "
                "[deep chains](../theory/deep.md).",
                f"**{record['verdict'][0]}**: {record['verdict'][1]}.",
                "![Deviation of every exponent from its closed form, in standard errors](lyapunov.svg)",
                "\n".join(lines),
                f"{where['cpu']}; {where['date']}, commit {str(where['commit'])[:12]}; {record['seconds']:.0f} s, "
                f"load {where['load_1min']:.1f}.",
            ]
        )
        + "\n"
    )


def main() -> None:
    """Run the experiment and write what it finds."""
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=100_000)
    parser.add_argument("--streamed", action="store_true", help="by `stream`, not by a loop over NumPy's QR")
    given = parser.parse_args()
    experiment = load(HERE / "experiments" / "synthetic" / "lyapunov.py")
    start = time.perf_counter()
    rows = experiment.run(experiment.config(layers=given.layers, streamed=given.streamed))
    record = {"schema": 1, "environment": surroundings(), "layers": given.layers, "streamed": given.streamed,
              "seconds": time.perf_counter() - start, "verdict": experiment.verdict(rows), "rows": rows,
              "why": {name: e.why for name, e in ENSEMBLES.items()}}  # fmt: skip
    content = json.dumps(json_ready(record)[0], indent=1, allow_nan=False) + "\n"
    write_atomically(given.out / "lyapunov.json", lambda file: file.write(content.encode()))
    svg = to_svg(experiment.figure(rows), salt="lyapunov", label=record["verdict"][1])
    (given.out / "lyapunov.svg").write_text(svg.replace("<svg ", f"<svg {STANDALONE}", 1), encoding="utf-8")
    (given.out / "lyapunov.md").write_text(page(record), encoding="utf-8")
    print(record["verdict"][0], record["verdict"][1])


if __name__ == "__main__":
    main()
