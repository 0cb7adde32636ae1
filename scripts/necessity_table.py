"""Search the instances that break a conclusion when one hypothesis is dropped; write JSON, files and the table.

    python scripts/necessity_table.py docs/benchmarks/necessity.json --save docs/benchmarks/necessity

The search is `experiments/synthetic/necessity.py` with more restarts. The table goes between the marks of
docs/theory/necessity.md.
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments" / "synthetic"))

import jax
import necessity

from spectral_theorem import provenance
from spectral_theorem.storage import write_atomically

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "theory" / "necessity.md"
MARKS = re.compile(r"(<!-- table -->\n).*?(<!-- /table -->)", re.DOTALL)


def main() -> None:
    """Search, judge, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", type=Path)
    parser.add_argument("--save", type=Path, default=Path())
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--restarts", type=int, default=128)
    parser.add_argument("--steps", type=int, default=256)
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    config = necessity.Config(
        dropped="all", rounds=options.rounds, restarts=options.restarts, steps=options.steps, save=options.save
    )
    before, start = os.getloadavg()[0], time.perf_counter()
    records = necessity.run(config)
    verdict, words = necessity.verdict(records)
    result = {
        "schema": 1,
        "environment": provenance.environment() | {"load_1min": [before, os.getloadavg()[0]], "cpus": os.cpu_count()},
        "config": {name: str(value) if name == "save" else value for name, value in vars(config).items()},
        "seconds": round(time.perf_counter() - start, 1),
        "verdict": verdict,
        "words": words,
        "records": records,
    }
    write_atomically(options.target, lambda file: file.write((json.dumps(result, indent=1) + "\n").encode()))
    drawn = necessity.table(records)
    page = MARKS.sub(lambda found: f"{found[1]}{drawn}\n{found[2]}", PAGE.read_text(encoding="utf-8"))
    write_atomically(PAGE, lambda file: file.write(page.encode()))
    print(drawn, verdict, words, f"{result['seconds']} s", sep="\n")


if __name__ == "__main__":
    main()
