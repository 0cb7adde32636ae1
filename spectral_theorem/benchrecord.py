"""Keep what a benchmark of the engine found: rows, what the engine is held to, and where it ran.

docs/schema.md describes the file. Nothing here runs the engine.
"""

import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .console import aligned, number
from .provenance import environment
from .storage import json_ready, write_atomically
from .timing import ratio
from .types import refuse

SCHEMA = 1
FILE = "engine.json"
# What the engine is held to: (question, ratio of two sides or number, width or None for any) to (limit, sense).
BARS: dict[tuple[str, str, int | None], tuple[float, str]] = {
    ("dense", "explicit / gemm", 384): (1.0, "<="),
    ("dense", "explicit / gemm", 768): (1.0, "<="),
    ("dense", "explicit / gemm", 1280): (1.0, "<="),
    ("triplets", "row loop + svd / ours", 384): (40.0, ">="),
    ("triplets", "row loop + svd / ours", 768): (130.0, ">="),
    ("triplets", "residual_over_sigma1", None): (1e-5, "<="),
    ("injection", "G / W", None): (2.0, "<="),
    ("injection", "first_call_mb", 1280): (200.0, "<"),
    ("sequence", "peak_mb", 1280): (4000.0, "<"),
    ("clip", "measure / transcribe", None): (3.0, "<="),
    ("clip", "torch / transcribe", None): (1.0, ">="),
}
_KEY = ("question", "what", "against", "weights", "width", "frames", "layers", "tokens", "clip", "measures")


def judged(row: Mapping[str, Any]) -> dict[str, Any]:
    """Add to a row the ratios that the engine is held to, and say whether they are met.

    Parameters
    ----------
    row : with `question`, `width`, `sides` and `numbers`.

    Returns
    -------
    dict
        The row with `ratios`: by name `min`, `median`, `max`; and `bars`: `name`, `value` (of a ratio the median),
        `limit`, `sense`, `met`. A bar whose sides or numbers are not there is left out.

    Examples
    --------
    >>> row = {"question": "sequence", "width": 1280, "sides": {}, "numbers": {"peak_mb": 500.0}}
    >>> judged(row)["bars"]
    [{'name': 'peak_mb', 'value': 500.0, 'limit': 4000.0, 'sense': '<', 'met': True}]
    """
    bars, ratios = [], {}
    for (question, name, width), (limit, sense) in BARS.items():
        if question != row["question"] or width not in (None, row["width"]):
            continue
        over, _, under = name.partition(" / ")
        if under and over in row["sides"] and under in row["sides"]:
            ratios[name] = ratio(row, over, under)
        value = ratios[name]["median"] if name in ratios else row["numbers"].get(name)
        if value is not None:
            met = {"<=": value <= limit, "<": value < limit, ">=": value >= limit}[sense]
            bars.append({"name": name, "value": value, "limit": limit, "sense": sense, "met": met})
    return {**row, "ratios": ratios, "bars": bars}


def surroundings() -> dict[str, Any]:
    """Say where and with what a benchmark runs.

    Examples
    --------
    >>> {"cpu", "cpus", "threads", "xla_flags", "load_1min", "date", "versions"} <= set(surroundings())
    True
    """
    found = environment()
    found["versions"] |= {name: importlib.metadata.version(name) for name in ("matfree", "scipy")}
    return found | {
        "cpu": _processor(),
        "cpus": os.cpu_count(),
        "threads": {name: os.environ.get(name, "") for name in ("PJRT_NPROC", "OPENBLAS_NUM_THREADS")},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "load_1min": os.getloadavg()[0],
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def empty(plan: Mapping[str, Any], also: Mapping[str, Any]) -> dict[str, Any]:
    """Start a record; `also` are more versions."""
    where = surroundings()
    where["versions"] |= also
    start = {"schema": SCHEMA, "status": "running", "environment": where, "plan": dict(plan)}
    return start | {"rows": [], "scaling": [], "skipped": {}}


def read(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises
    ------
    InputError
        If the file is no record of this schema.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        record = None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA or "rows" not in record:
        refuse(f"{path}, which is no benchmark of schema {SCHEMA}", "a file that `bench` wrote", "another folder")
    return record


def add(record: dict[str, Any], kind: str, entry: Mapping[str, Any]) -> None:
    """Put an entry into a record, in the place of an older one of the same sizes.

    Parameters
    ----------
    record : changed in place.
    kind : "rows" or "scaling", or "skipped" for {question: reason}.
    entry : what was found.
    """
    if kind == "skipped":
        record["skipped"] |= entry
        return
    where = record["environment"]
    entry = {**entry, "date": where["date"], "commit": where["commit"]}
    key = lambda row: tuple(row.get(name) for name in _KEY)
    places = [index for index, row in enumerate(record[kind]) if key(row) == key(entry)]
    if places:
        record[kind][places[0]] = entry
    else:
        record[kind].append(entry)


def write(folder: Path | None, record: Mapping[str, Any]) -> None:
    """Write a record whole, or nothing where there is no folder."""
    if folder is not None:
        content = json.dumps(json_ready(record)[0], indent=1, allow_nan=False) + "\n"
        write_atomically(folder / FILE, lambda file: file.write(content.encode()))


def text(record: Mapping[str, Any]) -> str:
    """Lay out a record for a person: times per (layer, token), bars, exponents."""
    parts = [*map(_row, record["rows"]), *(exponent(row) for row in record["scaling"])]
    parts += [f"skipped {name}: {why}" for name, why in record["skipped"].items()]
    return "\n\n".join(parts)


def exponent(row: Mapping[str, Any]) -> str:
    """Say in a line how a cost grows.

    Examples
    --------
    >>> exponent({"what": "cost", "against": "width", "fit": {"exponent": 2.0, "low": 1.9, "high": 2.1}})
    'cost grows with width to the power 2.00 (1.90 to 2.10)'
    """
    fit = row["fit"]
    between = "" if fit["low"] is None else f" ({fit['low']:.2f} to {fit['high']:.2f})"
    return f"{row['what']} grows with {row['against']} to the power {fit['exponent']:.2f}{between}"


def _row(row: Mapping[str, Any]) -> str:
    sizes = f"D={row['width']}, F={row['frames']}, L={row['layers']}, T={row['tokens']}"
    load = " to ".join(f"{load:.1f}" for load in row["load_1min"])
    lines = [f"{row['question']}: {sizes}, {row['weights']} weights; load {load}"]
    if row["sides"]:
        table = [["ms per item", "min", "median", "max", ""]]
        for name, side in row["sides"].items():
            table.append([name, *(f"{1e3 * side['seconds'][k]:.3g}" for k in table[0][1:4]), side["what"]])
        lines.append(aligned(table, words=1))
    for name, value in row["numbers"].items():
        lines.append(f"{name}: {value if isinstance(value, str) else number(float(value))}")
    for bar in row["bars"]:
        lines.append(
            f"{'met' if bar['met'] else 'MISSED'}: {bar['name']} = {bar['value']:.4g} {bar['sense']} {bar['limit']:g}"
        )
    return "\n".join(lines)
