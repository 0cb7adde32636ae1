"""Keep what a monitor sees as lines of JSON, each whole as soon as it is written; docs/schema.md describes them."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from .storage import json_ready, write_atomically
from .types import refuse

SCHEMA = 1
_KEY = ("model_digest", "dtype", "settings")  # what two records must share for one to be compared with the other


class MonitorFile:
    """Append lines to a file; go on where a run of the same command was stopped.

    Parameters
    ----------
    path : file to write. header : what the records belong to; its `schema` and `kind` are added.

    Raises
    ------
    InputError
        If the file is there and belongs to something else.

    Notes
    -----
    Every line is handed to the system when it is written, and synced at the end of a clip. Lines of a clip that was not
    finished are dropped when a later run goes on, and written again by it.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self.path, self.finished = path, {}
        header = {"kind": "monitor", "schema": SCHEMA, **json_ready(header)[0]}
        kept = [header]
        if path.exists() and path.stat().st_size:
            lines = read_lines(path)
            same = lambda one: {name: value for name, value in one.items() if name != "written"}
            if same(lines[0]) != same(header):
                differs = [name for name in header if name != "written" and lines[0].get(name) != header[name]]
                refuse(
                    f"{path}, which differs in {', '.join(differs) or 'its header'}",
                    "the record of this command",
                    "another --out",
                )
            self.finished = {line["clip"]: line for line in lines if line["kind"] == "end"}
            kept += [line for line in lines[1:] if line.get("clip") in self.finished]
        self.file = self._begun(kept)

    def _begun(self, lines: list[dict[str, Any]]) -> TextIO:
        content = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        write_atomically(self.path, lambda file: file.write(content.encode()))
        # a line at a time: what was written is kept, whatever ends the process
        return open(self.path, "a", encoding="utf-8", buffering=1)

    def found(self, clip: str, samples: str) -> dict[str, Any] | None:
        """Return the last line of a clip that an earlier run finished; of another recording, its lines are dropped.

        Parameters
        ----------
        clip : name. samples : digest of its samples.
        """
        end = self.finished.pop(clip, None)
        if end is None or end.get("samples") == samples:
            return end
        self.close()
        self.file = self._begun([line for line in read_lines(self.path) if line.get("clip") != clip])
        return None

    def write(self, line: Mapping[str, Any], *, sync: bool = False) -> None:
        """Append one line. sync : wait until it is on the disk."""
        self.file.write(json.dumps(line, allow_nan=False) + "\n")
        if sync:
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file."""
        self.file.close()


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read the lines of a record; one that a killed process left half written at the end is left out.

    Raises
    ------
    InputError
        If the file is no record of a monitor, or a line before the last is not whole.
    """
    expected = (f"a record of `monitor`, schema {SCHEMA}", "spectral-theorem monitor MODEL AUDIO --out FILE")
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        refuse(f"{path}, which cannot be read ({problem.strerror})", *expected)
    except ValueError:
        refuse(f"{path}, which is no text", *expected)
    lines: list[dict[str, Any]] = []
    whole = text.split("\n")
    for number, line in enumerate(whole, 1):
        try:
            value = json.loads(line) if line else None
        except ValueError:
            if number == len(whole):
                break
            refuse(f"{path}, line {number} of which is no JSON", *expected)
        if value is not None:
            lines.append(value if isinstance(value, dict) else {})
    if not lines or lines[0].get("kind") != "monitor" or lines[0].get("schema") != SCHEMA:
        refuse(f"{path}, which is something else", *expected)
    if any("kind" not in line or (line["kind"] == "end" and "scores" not in line) for line in lines):
        refuse(f"{path}, lines of which are incomplete", *expected)
    return lines


def clean_scores(path: Path, like: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the scores of all finished clips of a record, for `alarms.calibrate`.

    Parameters
    ----------
    path : record of clean clips. like : header of the record that is to be judged.

    Raises
    ------
    InputError
        If model, precision or settings differ, or no clip is finished.
    """
    lines = read_lines(path)
    like = json_ready(like)[0]
    for name in _KEY:
        if lines[0].get(name) != like[name]:
            refuse(
                f"{path}, made with another {name.replace('_', ' ')}",
                "clean clips watched in the same way",
                "--window, --modes, --every as there",
            )
    found = {line["clip"]: line["scores"] for line in lines if line["kind"] == "end"}
    if not found:
        refuse(f"{path}, in which no clip is finished", "finished clean clips", "the command that wrote it, once more")
    return [{name: -float("inf") if x is None else float(x) for name, x in scores.items()} for scores in found.values()]


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
