"""Keep rows of finished cells as Parquet shards, in a folder or behind any URI that pyarrow opens.

Every file appears whole or not at all. A shard is named by what it holds, so that writing it twice is harmless, and a
row that two shards hold counts once: nothing is lost whoever is killed when, and however many write.
"""

import hashlib
import io
import json
import os
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .storage import FORGOTTEN, remove_leftovers, write_atomically
from .types import refuse

if TYPE_CHECKING:
    import pyarrow

CELLS = "cells"  # folder of the shards
KEYS = ("key", "cell", "row")  # columns that every shard has
AGAIN = "the same command again once there is; finished cells stay"


class Store:
    """Read and write whole files below one folder, local or remote.

    Parameters
    ----------
    where : a path, or a URI such as s3://bucket/sweep or fsspec+memory://sweep.

    Raises
    ------
    InputError
        When nothing opens the URI, the folder is a file, or a file in it cannot be read or written.

    Notes
    -----
    Locally a file is synced and renamed (`storage.write_atomically`). Elsewhere it is written under a temporary name
    and moved.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = Store(folder)
    ...     store.write("cells/a.txt", b"whole")
    ...     store.read("cells/a.txt"), store.names("cells"), store.read("cells/b.txt")
    (b'whole', ['a.txt'], None)
    """

    def __init__(self, where: str | os.PathLike[str]) -> None:
        self.where = os.fspath(where)
        self.local: Path | None = Path(self.where)
        if "://" in self.where:
            import pyarrow
            from pyarrow import fs

            try:
                self.filesystem, self.root = fs.FileSystem.from_uri(self.where)
            except (pyarrow.ArrowException, ValueError, ImportError, OSError) as problem:
                refuse(
                    f"--out {self.where}, which nothing opens ({_why(problem)})",
                    "a folder, or a URI that pyarrow opens",
                    "--out sweep1",
                )
            self.local = Path(self.root) if isinstance(self.filesystem, fs.LocalFileSystem) else None
        if self.local is not None and self.local.exists() and not self.local.is_dir():
            refuse(f"--out {self.where}, which is a file", "a folder", f"--out {self.where}-sweep")

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None where there is none."""
        try:
            if self.local is not None:
                return (self.local / name).read_bytes()
            with self.filesystem.open_input_stream(f"{self.root}/{name}") as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as problem:
            refuse(f"{self.where}/{name}, which cannot be read ({_why(problem)})", "a file that can", AGAIN)

    def write(self, name: str, content: bytes) -> None:
        """Give a file its content, whole or not at all."""
        try:
            if self.local is not None:
                path = self.local / name
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, lambda file: file.write(content))
                return
            path = f"{self.root}/{name}"
            folder, _, last = path.rpartition("/")
            temporary = f"{folder}/.{last}.{uuid.uuid4().hex[:8]}.tmp"
            self.filesystem.create_dir(folder, recursive=True)
            with self.filesystem.open_output_stream(temporary) as stream:
                stream.write(content)
            self.filesystem.move(temporary, path)
        except OSError as problem:
            refuse(f"{self.where}/{name}, which cannot be written ({_why(problem)})", "room and leave to write", AGAIN)

    def names(self, folder: str = "") -> list[str]:
        """List what a folder holds, in order, leftovers of killed processes apart."""
        if self.local is not None:
            path = self.local / folder
            found = [entry.name for entry in path.iterdir()] if path.is_dir() else []
        else:
            from pyarrow import fs

            selector = fs.FileSelector(f"{self.root}/{folder}".rstrip("/"), allow_not_found=True)
            found = [entry.base_name for entry in self.filesystem.get_file_info(selector)]
        return sorted(name for name in found if not name.startswith("."))

    def tidy(self, *folders: str) -> None:
        """Remove what killed processes left half written (`storage.remove_leftovers`); elsewhere by age alone."""
        for folder in folders:
            if self.local is not None:
                remove_leftovers(self.local / folder)
                continue
            from pyarrow import fs

            selector = fs.FileSelector(f"{self.root}/{folder}".rstrip("/"), allow_not_found=True)
            for entry in self.filesystem.get_file_info(selector):
                hidden = entry.base_name.startswith(".") and entry.base_name.endswith(".tmp")
                if hidden and entry.mtime_ns and time.time() - entry.mtime_ns / 1e9 > FORGOTTEN:
                    self.remove(f"{folder}/{entry.base_name}".lstrip("/"))

    def remove(self, name: str) -> None:
        """Delete a file, if it is there."""
        if self.local is not None:
            (self.local / name).unlink(missing_ok=True)
            return
        try:
            self.filesystem.delete_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return


def write_shard(store: Store, rows: Sequence[Mapping[str, Any]], *, stem: str = "part") -> str:
    """Write the rows of some cells as one shard, all rows of a cell together.

    Parameters
    ----------
    rows : each with "key", "cell" and "row" first; values are numbers, truth values, text or None.
    stem : beginning of the name.

    Returns
    -------
    str
        The name of the shard, which is that of its cells.

    Raises
    ------
    InputError
        When it cannot be written, or a column holds values of several types.
    """
    import pyarrow

    names = dict.fromkeys(name for row in rows for name in row)
    try:
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as problem:
        refuse(
            f"records with a column of several types ({_why(problem)})", "one type for each name", "float(...) in run"
        )
    return _write_table(store, table, stem)


def read_rows(store: Store) -> "pyarrow.Table":
    """Read all rows: in order of cells, each once.

    Raises
    ------
    InputError
        On a shard that cannot be read, or shards whose columns have different types.
    """
    return _joined(store, _shards(store))


def digest(table: "pyarrow.Table") -> str:
    """Digest a table, 16 hexadecimal digits: equal for tables that are equal to the bit, NaN included.

    Examples
    --------
    >>> import pyarrow
    >>> digest(pyarrow.table({"x": [float("nan")]})) == digest(pyarrow.table({"x": [float("nan")]}))
    True
    """
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks(), max_chunksize=1 << 30)
    return hashlib.blake2b(sink.getvalue(), digest_size=8).hexdigest()


def finished(store: Store) -> set[str]:
    """Return the keys of all cells that the store holds.

    Raises
    ------
    InputError
        On a shard that cannot be read.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_shard(Store(folder), [{"key": "a", "cell": 0, "row": 0, "x": 1.0}])
    ...     finished(Store(folder)), read_rows(Store(folder)).to_pylist()
    ({'a'}, [{'key': 'a', 'cell': 0, 'row': 0, 'x': 1.0}])
    """
    return {key for name in _shards(store) for key in _read(store, name, ["key"]).column("key").to_pylist()}


def compact(store: Store) -> int:
    """Join all shards into one, and return how many there were.

    Notes
    -----
    The new shard is there before the old ones go, and its name says which cells it holds; so processes that write, or
    compact, at the same time lose nothing.
    """
    names = _shards(store)
    if len(names) > 1:
        whole = _write_table(store, _joined(store, names), "whole")
        for name in names:
            if name != whole:
                store.remove(f"{CELLS}/{name}")
    return len(names)


def plain(value: Any) -> Any:
    """Turn a value of a record or config into what a column holds; tuples become JSON.

    Examples
    --------
    >>> plain((1, 2)), plain(Path("a")), plain(0.5)
    ('[1, 2]', 'a', 0.5)
    """
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, (tuple, list)):
        return json.dumps(value, default=str)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _shards(store: Store) -> list[str]:
    return [name for name in store.names(CELLS) if name.endswith(".parquet")]


def _joined(store: Store, names: Iterable[str]) -> "pyarrow.Table":
    import numpy
    import pyarrow

    tables = [_read(store, name) for name in names]
    if not tables:
        return pyarrow.table({"key": pyarrow.array([], pyarrow.string()), **{name: [] for name in KEYS[1:]}})
    try:
        table = pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException as problem:
        refuse(
            f"shards in {store.where} that do not fit together ({_why(problem)})",
            "one type for each name",
            "--out of a new folder",
        )
    table = table.sort_by([("cell", "ascending"), ("row", "ascending")])
    place = numpy.stack([table.column(name).to_numpy() for name in KEYS[1:]])
    new = numpy.append(True, (place[:, 1:] != place[:, :-1]).any(axis=0)) if len(table) else numpy.zeros(0, bool)
    rest = sorted(name for name in table.column_names if name not in KEYS)
    return table.filter(pyarrow.array(new)).combine_chunks().select([*KEYS, *rest])


def _read(store: Store, name: str, columns: list[str] | None = None) -> "pyarrow.Table":
    import pyarrow
    import pyarrow.parquet

    content = store.read(f"{CELLS}/{name}")
    try:
        if content is None:  # joined with others since it was listed
            whole = [found for found in _shards(store) if found.startswith("whole-")]
            return pyarrow.concat_tables(
                [_read(store, found, columns) for found in whole], promote_options="permissive"
            )
        return pyarrow.parquet.ParquetFile(io.BytesIO(content)).read(columns)
    except pyarrow.ArrowException as problem:
        refuse(
            f"{store.where}/{CELLS}/{name}, which cannot be read ({_why(problem)})",
            "a shard of a sweep",
            "the same command after removing that file; its cells are computed again",
        )


def _write_table(store: Store, table: "pyarrow.Table", stem: str) -> str:
    import pyarrow.parquet

    keys = "\n".join(dict.fromkeys(table.column("key").to_pylist()))
    name = f"{stem}-{hashlib.blake2b(keys.encode(), digest_size=8).hexdigest()}.parquet"
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, compression="zstd")
    store.write(f"{CELLS}/{name}", buffer.getvalue())
    return name


def _why(problem: BaseException) -> str:
    text = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return " ".join(text.split())
