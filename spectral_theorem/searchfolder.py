"""Keep the record of a search in a folder: begin it, go on with it, refuse what is another's."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .storage import json_ready, write_atomically
from .types import refuse


def begun(folder: Path, name: str, blank: dict[str, Any], parts: Iterable[str] = ()) -> dict[str, Any]:
    """Return the record that a folder holds, or the blank one, and make the folder with its parts.

    Parameters
    ----------
    folder : of the search.
    name : of the record in it.
    blank : the record of a search that has not begun, with `schema` and `config`, what a continuation must agree with.
    parts : folders to make in it.

    Returns
    -------
    dict

    Raises
    ------
    InputError
        When the record is another search's or cannot be read, or the folder holds other files.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     begun(Path(folder) / "hunt", "record.json", {"schema": 1, "config": {"seed": 0}})
    {'schema': 1, 'config': {'seed': 0}}
    """
    file, record = folder / name, blank
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            wanted = json_ready(blank)[0]
            same = all(before[key] == wanted[key] for key in ("schema", "config"))
            missing = [key for key in blank if key not in before]
        except (ValueError, KeyError, TypeError, OSError) as problem:
            said = type(problem).__name__
            refuse(f"{file}, which cannot be read ({said})", "the record of a search", "another --out")
        if not same or missing:
            refuse(f"{folder}, the folder of another search", "the same options or a new folder", "another --out")
        record = before
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        refuse(f"{folder}, which holds other files", "a new folder, or that of the same search", "another --out")
    for part in (folder, *(folder / part for part in parts)):
        part.mkdir(parents=True, exist_ok=True)
    return record


def write_record(folder: Path, name: str, record: dict[str, Any]) -> None:
    """Give the record its new content, whole or not at all."""
    text = json.dumps(json_ready(record)[0], indent=1, allow_nan=False) + "\n"
    write_atomically(folder / name, lambda file: file.write(text.encode()))


def load() -> float | None:
    """Return the load of the last minute, which decides what seconds mean."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def file_name(words: str) -> str:
    """Return words as the stem of a file.

    Examples
    --------
    >>> file_name("paper:decay")
    'paper-decay'
    """
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in words)
