"""Keep what a run found: one folder, one summary, one long table, written so that a kill loses nothing.

The files are defined in docs/schema.md. Nothing here knows what a verdict means; rows and summaries
arrive as plain mappings, and numbers that JSON cannot hold become null with the reason beside them.
"""

import dataclasses
import datetime
import enum
import json
import math
import os
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .provenance import environment
from .storage import json_ready, write_atomically
from .types import refuse

if TYPE_CHECKING:
    import pyarrow

SCHEMA = 1
SUMMARY = "summary.json"
TABLE = "table"
RESULTS = (
    f"{TABLE}/part-*.parquet",
    "clips/*.json",
    "cells/*.npz",
    "study.json",
    "tables/*",
    "suspicious.csv",
    "*.npz",
    "report.html",
)
LAYER_QUANTITIES = {
    "sigma1": ("sigma_error", "1"),
    "sigma2": ("sigma2_error", "1"),
    "xi": ("xi_error", "1"),
    "kappa_abs": ("kappa_error", "1"),
    "misalignment": ("", "1"),
    "rho": ("rho_error", "1"),
    "lam": ("lam_error", "nats/layer"),
    "injection_norm": ("", "1"),
    "injection_sigma1": ("injection_error", "1"),
}
COLUMNS = {
    "run_id": "string",
    "clip": "string",
    "condition": "string",
    "component": "string",
    "granularity": "string",
    "scope": "string",
    "context": "string",
    "layer": "int32",
    "step": "int32",
    "quantity": "string",
    "value": "float64",
    "error": "float64",
    "unit": "string",
    "verdict": "string",
    "dtype": "string",
    "text": "string",
}
ADDED = ("text",)  # columns that parts of earlier versions lack


class RunFolder:
    """Write one run: `summary.json`, parts of the table, and files that others put beside them.

    Parameters
    ----------
    path : folder to make, or an empty one, or one of an earlier run, which is then replaced
        at the first write and not before.
    run_id : name of this run in every row; a fresh random one if absent. With the id of the run
        that the folder holds, that run goes on and its files stay.

    Raises
    ------
    InputError
        When `path` is a file, cannot be written, or holds files that no run of ours wrote.

    Notes
    -----
    While a run is under way its summary says ``"status": "running"``; `write_summary` makes it "done".

    References
    ----------
    docs/schema.md

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = RunFolder(Path(folder) / "run")
    ...     _ = run.write_table([{"quantity": "kappa", "layer": 1, "value": 0.5}])
    ...     _ = run.write_summary({"seeds": [0]})
    ...     read_run(run.path).table["value"].to_pylist()
    [0.5]
    """

    def __init__(self, path: str | os.PathLike[str], *, run_id: str | None = None) -> None:
        self.path = Path(path)
        self.run_id = run_id or uuid.uuid4().hex[:12]
        self.begun = False
        held = None
        try:
            if self.path.exists() and not self.path.is_dir():
                refuse(f"--out {self.path}, which is a file", "a folder", f"--out {self.path}-run")
            if self.path.is_dir() and any(not _is_leftover(entry) for entry in self.path.iterdir()):
                held = _held_run(self.path)
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe.{os.getpid()}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as problem:
            refuse(
                f"--out {self.path}, which cannot be written ({_why(problem)})",
                "a folder in which files can be made",
                "--out run1",
            )
        self.continues = held == self.run_id

    def begin(self) -> None:
        """Mark the folder as this run's, and remove what another run left in it."""
        if self.begun:
            return
        self.begun = True
        marker = {"schema": SCHEMA, "run_id": self.run_id, "status": "running", "written": _now()}
        write_atomically(self.path / SUMMARY, lambda file: file.write(_text(marker)))
        results = () if self.continues else RESULTS
        for pattern in (".*.tmp", f"{TABLE}/.*.tmp", "cells/.*.tmp", *results):
            for stale in self.path.glob(pattern):
                stale.unlink()

    def write_summary(self, content: Mapping[str, Any]) -> Path:
        """Write `summary.json` and call the run done.

        Parameters
        ----------
        content : config, seeds, dtype, verdicts and whatever else the run has to say; the schema
            version, run_id, versions, device, platform and commit are added.

        Returns
        -------
        Path
            The file.
        """
        self.begin()
        text = summary_text(self.run_id, content)
        return write_atomically(self.path / SUMMARY, lambda file: file.write(text))

    def write_table(self, rows: Iterable[Mapping[str, Any]], *, part: str = "all") -> Path:
        """Write rows of the long table as one Parquet part.

        Parameters
        ----------
        rows : mappings from column to value; `quantity` is required, absent columns are null,
            NaN in `value` or `error` becomes null, `run_id` is added.
        part : name of the part; writing a part again replaces it.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ValueError
            On a column that docs/schema.md does not define, or a row without `quantity`.
        """
        import pyarrow
        import pyarrow.parquet

        columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for row in rows:
            if unknown := sorted(row.keys() - COLUMNS.keys()):
                raise ValueError(f"got columns {unknown}; expected columns among {list(COLUMNS)}")
            if row.get("quantity") is None:
                raise ValueError(f"got a row without quantity: {dict(row)}")
            for name, kind in COLUMNS.items():
                columns[name].append(_cell(self.run_id if name == "run_id" else row.get(name), kind))
        table = pyarrow.table(columns, schema=_arrow_schema())
        self.begin()
        folder = self.path / TABLE
        folder.mkdir(exist_ok=True)
        return write_atomically(
            folder / f"part-{part}.parquet", lambda file: pyarrow.parquet.write_table(table, file, compression="zstd")
        )


def summary_text(run_id: str, content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a `summary.json` of a run that is done.

    Parameters
    ----------
    run_id : of the run.
    content : config, seeds, dtype, verdicts and whatever else the run has to say; the schema version, run_id,
        versions, device, platform and commit are added.

    Raises
    ------
    ValueError
        When `content` has a key that is added here.

    Examples
    --------
    >>> json.loads(summary_text("0123456789ab", {"verb": "sweep"}))["status"]
    'done'
    """
    head = {"schema": SCHEMA, "run_id": run_id, "status": "done", "written": _now(), **environment()}
    clash = sorted(head.keys() & content.keys())
    if clash:
        raise ValueError(f"the run folder itself writes {clash}")
    ready, nulls = json_ready(content)
    return _text({**head, **ready, "nulls": nulls})


def verification_rows(chain: Mapping[str, Any], **labels: Any) -> list[dict[str, Any]]:
    """Turn one verification into rows of the long table.

    Parameters
    ----------
    chain : a verification as `Verification.to_dict` gives it.
    labels : the same in every row: any of clip, condition, component, granularity, scope, context,
        step, dtype.

    Returns
    -------
    list of dict
        One row per condition, per claim, and per layer and quantity.

    References
    ----------
    docs/schema.md

    Examples
    --------
    >>> layer = {"layer": 1, "sigma1": 2.0, "sigma_error": 0.0, "xi": 0.5, "xi_error": 0.0}
    >>> rows = verification_rows({"conditions": {}, "claims": {}, "layers": [layer]}, clip="a")
    >>> [(row["quantity"], row["value"]) for row in rows if row["value"] is not None]
    [('sigma1', 2.0), ('xi', 0.5)]
    """
    rows: list[dict[str, Any]] = []
    for name, entry in chain["conditions"].items():
        found = {"value": entry["value"], "error": entry["error"], "layer": entry["layer"] or None}
        rows.append({"quantity": f"condition.{name}", "unit": "1", "verdict": entry["verdict"], **found})
    for name, entry in chain["claims"].items():
        found = {"value": entry["slack"], "error": entry["tolerance"]}
        rows.append({"quantity": f"claim.{name}", "unit": "1", "verdict": entry["verdict"], **found})
    for entry in chain["layers"]:
        for quantity, (error, unit) in LAYER_QUANTITIES.items():
            if quantity.startswith("injection") and quantity not in entry:
                continue  # chains on a short context have injections of their own
            found = {"value": entry.get(quantity), "error": entry.get(error)}
            rows.append({"quantity": quantity, "unit": unit, "layer": entry["layer"], **found})
    return [{**labels, **row} for row in rows]


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """Hold what a run folder says: its summary and its table (a `pyarrow.Table`)."""

    path: Path
    summary: dict[str, Any]
    table: "pyarrow.Table"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of the table as dictionaries."""
        return self.table.to_pylist()


def read_run(path: str | os.PathLike[str]) -> RunRecord:
    """Read a run folder back.

    Parameters
    ----------
    path : the folder.

    Returns
    -------
    RunRecord
        Parts of other runs and unfinished files are left out.

    Raises
    ------
    InputError
        When there is no such folder, it is no run, a file in it cannot be read, or a newer version wrote it.

    References
    ----------
    docs/schema.md

    Examples
    --------
    >>> read_run("/nowhere")
    Traceback (most recent call last):
    ...
    spectral_theorem.types.InputError: got /nowhere, which does not exist; expected a run folder; try ...
    """
    import pyarrow
    import pyarrow.compute
    import pyarrow.parquet

    path = Path(path)
    summary = read_summary(path)
    schema = _arrow_schema()
    parts = [schema.empty_table()]
    for file in sorted((path / TABLE).glob("part-*.parquet")):
        try:
            part = pyarrow.parquet.ParquetFile(file).read()
            for name in set(ADDED) - set(part.column_names):
                part = part.append_column(name, pyarrow.nulls(len(part), schema.field(name).type))
            parts.append(part.select(schema.names).cast(schema))
        except (OSError, KeyError, pyarrow.ArrowException) as problem:
            refuse(f"{file}, which cannot be read ({_why(problem)})", "a Parquet part of the table", "the run again")
    table = pyarrow.concat_tables(parts)
    return RunRecord(path, summary, table.filter(pyarrow.compute.field("run_id") == summary["run_id"]))


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read `summary.json` of a run folder, without its table.

    Raises
    ------
    InputError
        As `read_run`.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = RunFolder(folder).write_summary({"verb": "verify"})
    ...     read_summary(folder)["status"]
    'done'
    """
    path = Path(path)
    hint = "spectral-theorem demo --out run-demo, which makes one"
    if not path.exists():
        refuse(f"{path}, which does not exist", "a run folder", hint)
    try:
        summary = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        refuse(f"{path} without a readable {SUMMARY} ({_why(problem)})", "a run folder", hint)
    if not isinstance(summary, dict) or not isinstance(summary.get("run_id"), str):
        refuse(f"{path / SUMMARY} without a run_id", "the summary of a run", hint)
    if summary.get("schema") != SCHEMA:
        refuse(
            f"{path / SUMMARY} with schema {summary.get('schema')!r}", f"schema {SCHEMA}", "the version that wrote it"
        )
    return summary


def _held_run(path: Path) -> str:
    """Name the run a folder holds; refuse one whose files are not a run's, lest they be mixed up with ours."""
    try:
        found = json.loads((path / SUMMARY).read_text(encoding="utf-8"))
        return found["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        refuse(
            f"--out {path}, a folder with other files in it", "a new, empty or earlier run folder", f"--out {path}-run"
        )


def _is_leftover(entry: Path) -> bool:
    """Tell the temporary files of a killed run from what somebody keeps."""
    return entry.name.startswith(".") and entry.name.endswith(".tmp")


def _arrow_schema() -> "pyarrow.Schema":
    import pyarrow

    fields = [(name, getattr(pyarrow, kind)()) for name, kind in COLUMNS.items()]
    return pyarrow.schema(fields, metadata={"spectral_theorem_schema": str(SCHEMA)})


def _cell(value: Any, kind: str) -> Any:
    if value is None:
        return None
    if kind == "float64":
        number = float(value)
        return None if math.isnan(number) else number
    if kind == "int32":
        return int(value)
    return value.name if isinstance(value, enum.Enum) else str(value)


def _text(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _why(problem: BaseException) -> str:
    text = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return " ".join(text.split())


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
