"""Time `verify` on many chains and on long ones, beside NumPy, and write verify.json.

    python scripts/bench_verify.py docs/benchmarks [--chains 500] [--repeats 3] [--flat 100000] [--only throughput]

All sides of a question run in one process and take turns in random order. The peer is `numpy_peer.verify` in a loop
over chains: it answers the same questions by the same algorithm, and its answers are compared with ours in the same
run. It runs with one thread of BLAS; a row says what a second one does to it. Rows of `verify_batches` are taken in
processes of their own, whose XLA has one thread per core: it needs no spare ones, which would cost it a tenth.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import spectral_theorem as st  # isort: skip  (sets XLA's threads)
import jax
import jax.numpy as jnp
import numpy as np
import numpy_peer

from spectral_theorem.benchrecord import surroundings
from spectral_theorem.peakmemory import resident
from spectral_theorem.storage import json_ready, write_atomically
from spectral_theorem.timing import Side, compare, fit_power, ratio

FILE = "verify.json"
SIZES = {"layers": 32, "width": 64, "context": 32}
Record = dict[str, Any]


def pick(chains: Any, index: Any) -> Any:
    """Return one chain of a batch."""
    return jax.tree.map(lambda leaf: leaf[index], chains)


def everything(found: Any) -> Any:
    """Keep the whole verification, as the peer does."""
    return found


def draw(count: int, **sizes: int) -> Any:
    """Draw Gaussian chains: generic singular values, which spare LAPACK nothing."""
    one = lambda key: st.ensembles.gaussian(key, **{**SIZES, **sizes})
    return jax.block_until_ready(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), count)))


def run_all(chains: Any, count: int, **how: Any) -> list[Any]:
    """Verify the first chains of a batch, everything kept."""
    return list(st.verify_batches(jax.tree_util.Partial(pick, chains), jnp.arange(count), keep=everything, **how))


def agreement(chains: Any, w: np.ndarray, g: np.ndarray) -> dict[str, float]:
    """Return the largest differences of logarithms and of scalars between the peer and us."""
    found = run_all(chains, len(w), batch=len(w))[0]
    worst: dict[str, float] = {}

    def note(name: str, ours: Any, theirs: Any) -> None:
        ours, theirs = np.asarray(ours), np.asarray(theirs)
        with np.errstate(invalid="ignore"):  # a bound of zero, whose logarithm is -inf on both sides
            off = np.max(np.where(ours == theirs, 0.0, np.abs(ours - theirs)))
        worst[name] = float(np.maximum(worst.get(name, 0.0), off))  # which keeps a NaN

    for i, (one_w, one_g) in enumerate(zip(w, g, strict=True)):
        peer = numpy_peer.verify(one_w, one_g)
        bounds = dict(peer["bounds"])
        products = bounds.pop("products")
        note("bounds on products", found.bounds.log_propagator_norm[i], np.log(products[1:]))
        for name, value in bounds.items():
            with np.errstate(divide="ignore"):
                note("bounds", getattr(found.bounds, f"log_{name}")[i], np.log(value))
        note("residual", found.path.log_residual_norm[i], np.log(peer["path"]["residual"]))
        note("psi", found.path.log_psi_norm[i], np.log(np.linalg.norm(peer["path"]["psi"])))
        note("coherence", found.coherence_solution.value[i], peer["coherence"])
        note("first exponent", found.regime.lyapunov[i][0], peer["regime"]["lyapunov"][0])
        for name in ("gain", "alignment", "projection", "purity"):
            note("hypotheses", found.conditions[name].value[i], peer["conditions"][name])
    return {f"largest difference: {name}": value for name, value in worst.items()}


def throughput(chains_wanted: int, repeats: int) -> Record:
    """Time us, the peer, a peer that answers less, and the SVDs alone, on the same chains."""
    chains = draw(chains_wanted)
    w, g = np.asarray(chains.propagators), np.asarray(chains.injections)

    def residual_only() -> None:
        for one_w, one_g in zip(w, g, strict=True):
            t = numpy_peer.triplets(one_w)
            numpy_peer.bounds(one_g, t, numpy_peer.path(one_w, one_g, t), 1.0)

    loop = lambda: [numpy_peer.verify(one_w, one_g) for one_w, one_g in zip(w, g, strict=True)]
    row = compare(
        {
            "verify": Side(lambda: run_all(chains, chains_wanted), "verify_batches, everything kept", chains_wanted),
            "numpy loop": Side(loop, "the same answers by NumPy, chain by chain", chains_wanted),
            "numpy, residual only": Side(residual_only, "no products, exponents, hypotheses", chains_wanted),
            "svds alone": Side(lambda: [np.linalg.svd(one) for one in w], "NumPy's SVD of every layer", chains_wanted),
        },
        repeats=repeats,
    )
    pairs = (("numpy loop", "verify"), ("numpy, residual only", "verify"), ("svds alone", "verify"))
    few = min(8, chains_wanted)
    row |= {
        "ratios": {f"{a} / {b}": ratio(row, a, b) for a, b in pairs},
        "numbers": agreement(chains, w[:few], g[:few]),
    }
    bar = {"name": "numpy loop / verify", "value": row["ratios"]["numpy loop / verify"]["median"], "limit": 2.0}
    return row | {"question": "throughput", **SIZES, "chains": chains_wanted,
                  "bars": [bar | {"sense": ">=", "met": bar["value"] >= 2.0}]}  # fmt: skip


def peer_threads(count: int) -> Record:
    """Time the peer alone with one and with two threads of BLAS, each in a process of its own."""
    found = {}
    for threads in (1, 2):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": str(threads)}
        call = [sys.executable, str(Path(__file__).with_name("numpy_peer.py")), str(count)]
        found[str(threads)] = float(subprocess.run(call, env=environment, check=True, capture_output=True).stdout)
    return {
        "question": "peer's threads",
        "chains": count,
        "load_1min": [os.getloadavg()[0]],
        "seconds_per_chain": found,
    }


def growth(what: str, against: str, sizes: list[int], side: Callable[[int], Side], repeats: int) -> Record:
    """Time one way at several sizes, turn by turn, and fit a power to the medians."""
    row = compare({str(size): side(size) for size in sizes}, repeats=repeats)
    times = [row["sides"][str(size)]["seconds"]["median"] for size in sizes]
    fit = fit_power(sizes, times)
    met = fit["exponent"] is not None and fit["exponent"] <= 1.1
    bar = {"name": f"power of {against}", "value": fit["exponent"], "limit": 1.1, "sense": "<=", "met": met}
    return row | {"what": what, "against": against, "sizes": sizes, "fit": fit, "bars": [bar]}


def by_depth(deepest: int, repeats: int) -> Record:
    """Time one chain of more and more layers."""
    sizes = [size for size in (32, 64, 128, 256, 512, 1024) if size <= deepest]

    def side(layers: int) -> Side:
        chain = pick(draw(1, layers=layers), 0)
        return Side(lambda: jax.block_until_ready(st.verify(chain)), f"verify, {layers} layers")

    return growth("time of verify, D=64, C=32", "layers", sizes, side, repeats)


def by_chains(most: int, repeats: int) -> Record:
    """Time more and more chains."""
    sizes = [size for size in (32, 64, 128, 256, 512) if size <= most]
    chains = draw(sizes[-1])
    side = lambda count: Side(lambda: run_all(chains, count), f"verify_batches, {count} chains")
    return growth("time of verify_batches, L=32, D=64, C=32", "chains", sizes, side, repeats)


def flat(count: int, width: int) -> Record:
    """Make, verify and forget chains; note the process's memory on the way."""
    make = functools.partial(st.ensembles.gaussian, layers=32, width=width, context=width // 2)
    keys = jax.random.split(jax.random.key(0), count)
    seen, violated, most = 0, 0, 0.0
    marks, start = [], time.perf_counter()
    for part in st.verify_batches(make, keys, batch=32):
        seen, most = seen + len(part["regime"]), max(most, resident())
        violated += int((part["claims"] == int(st.Verdict.VIOLATED)).any(axis=1).sum())
        if seen >= count * 0.01 * 10 ** len(marks) or seen == count:
            marks.append({"chains": seen, "most_mb": most, "seconds": time.perf_counter() - start})
    grown = marks[-1]["most_mb"] / marks[0]["most_mb"] - 1
    bar = {
        "name": "growth of resident memory from 1 % of the chains to all",
        "value": grown,
        "limit": 0.1,
        "sense": "<=",
        "met": grown <= 0.1,
    }
    return {"question": "flat", "layers": 32, "width": width, "context": width // 2, "chains": count, "marks": marks,
            "violated": violated, "load_1min": [os.getloadavg()[0]], "bars": [bar]}  # fmt: skip


def deep(deepest: int) -> Record:
    """Follow one chain to 10^5 layers, and say what it costs and how tight its bound is."""
    sizes = [size for size in (1_000, 10_000, 100_000) if size <= deepest]
    rows, times = [], []
    for depth in sizes:
        rng = np.random.default_rng(0)
        layer = lambda _, rng=rng: (rng.standard_normal((8, 8)) / np.sqrt(8), rng.standard_normal((8, 4)))
        st.stream(layer, depth=64)  # compiles
        start = time.perf_counter()
        found = st.stream(layer, depth=depth)
        times.append(time.perf_counter() - start)
        relative = lambda x, found=found: float(x - found.log_residual_norm)
        rows.append({
            "layers": depth, "seconds": times[-1], "resident_mb": resident(),
            "log_identity_error_over_residual": relative(found.log_identity_error),
            "log_row_exact_over_residual": relative(found.log_row_exact),
            "log_telescoping_over_residual": relative(found.log_telescoping),
        })  # fmt: skip
    fit = fit_power(sizes, times)
    return {"question": "deep", "width": 8, "context": 4, "bound": "row-exact, linear in L", "rows": rows, "fit": fit,
            "load_1min": [os.getloadavg()[0]]}  # fmt: skip


def apart(name: str, given: argparse.Namespace) -> Record:
    """Take one row in another process, without spare threads."""
    asked = [f"--{key.replace('_', '-')}={value}" for key, value in vars(given).items() if key not in ("out", "row")]
    threads = {"PJRT_NPROC": str(os.cpu_count() or 1)}
    run = [sys.executable, __file__, str(given.out), f"--row={name}", *asked]
    done = subprocess.run(run, env=os.environ | threads, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1]) | {"threads": threads}


def main() -> None:
    """Ask the questions that were asked for, and write after each."""
    jax.config.update("jax_enable_x64", True)
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path, help=f"folder of {FILE}")
    parser.add_argument("--chains", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, default=1024, help="most layers of the power of L")
    parser.add_argument("--flat", type=int, default=100_000, help="chains of the memory row")
    parser.add_argument("--flat-width", type=int, default=16, help="D of the memory row")
    parser.add_argument("--deep", type=int, default=100_000, help="most layers of the streamed chain")
    parser.add_argument("--only", default="throughput,threads,depth,chains,flat,deep")
    parser.add_argument("--row", help="print this row alone, as JSON")
    given = parser.parse_args()
    questions: dict[str, Callable[[], Record]] = {
        "throughput": lambda: throughput(given.chains, given.repeats),
        "threads": lambda: peer_threads(min(60, given.chains)),
        "depth": lambda: by_depth(given.layers, given.repeats),
        "chains": lambda: by_chains(given.chains, given.repeats),
        "flat": lambda: flat(given.flat, given.flat_width),
        "deep": lambda: deep(given.deep),
    }
    if given.row:
        print(json.dumps(json_ready(questions[given.row]())[0], allow_nan=False))
        return
    for name in ("throughput", "chains", "flat"):
        questions[name] = functools.partial(apart, name, given)
    path = given.out / FILE
    kept = json.loads(path.read_text())["rows"] if path.exists() else {}
    plan = {
        name: str(value) for name, value in vars(given).items() if name not in ("out", "row")
    }  # a folder of this machine is no figure
    record: Record = {"schema": 1, "environment": surroundings(), "plan": plan}
    record["rows"] = kept
    if jax.default_backend() != "gpu":
        record["skipped"] = {"gpu": "no GPU here; with one, the same command times `verify` on it"}
    for name in given.only.split(","):
        print(name, flush=True)
        record["rows"][name] = questions[name]() | {"date": record["environment"]["date"]}
        content = json.dumps(json_ready(record)[0], indent=1, allow_nan=False) + "\n"
        write_atomically(path, lambda file, content=content: file.write(content.encode()))


if __name__ == "__main__":
    main()
