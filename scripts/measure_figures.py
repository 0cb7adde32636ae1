"""Measure what the documentation claims of this package's own cost, and keep it as JSON with its environment.

Usage: python scripts/measure_figures.py docs/benchmarks/first.json

Whole processes, started cold: `--help`, one `verify` with and without a run folder, and 1,000 chains in one
jitted call (peak resident memory). Each time is given as minimum and median of several runs.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VERIFY = ["verify", "--layers", "64", "--width", "64", "--context", "48"]
MANY = """
import resource, jax
jax.config.update("jax_enable_x64", True)
import spectral_theorem as st
plant = lambda key: st.ensembles.planted(key, layers=64, width=64, context=48, sigma=1.02, kappa=0.9999, xi=5e-4,
                                         gamma=0.5, coherence=0.9)
chains = jax.jit(lambda keys: jax.lax.map(plant, keys, batch_size=8))(jax.random.split(jax.random.key(0), COUNT))
found = st.verify_many(chains)
violated = sum(int((claim.code == st.Verdict.VIOLATED).sum()) for _, claim in found.claims.items())
print(violated, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


def seconds(arguments: list[str], runs: int) -> dict[str, float | int]:
    """Time whole processes of the command line."""
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "spectral_theorem", *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return {"min_s": min(times), "median_s": statistics.median(times), "max_s": max(times), "runs": runs}


def memory(count: int) -> dict[str, float | int]:
    """Verify many chains in one call, in a process of its own; gigabytes at the peak."""
    start = time.perf_counter()
    code = MANY.replace("COUNT", str(count))
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    return {"chains": count, "violated": int(out[0]), "peak_gb": float(out[1]), "wall_s": time.perf_counter() - start}


def main(target: Path) -> None:
    """Measure everything and write the file."""
    load = os.getloadavg()
    figures = {"help": seconds(["--help"], 5), "verify": seconds(VERIFY, 3)}
    with tempfile.TemporaryDirectory() as folder:
        figures["verify_with_report"] = seconds([*VERIFY, "--out", str(Path(folder) / "run")], 3)
    figures["verify_many"] = memory(1000)
    import jax
    import numpy

    environment = {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": numpy.__version__,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "load_before": load,
        "date": time.strftime("%Y-%m-%d"),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"environment": environment, "figures": figures}, indent=2) + "\n")
    print(target.read_text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
