"""Keep one chain in a file: an .npz without pickles, read with distrust.

A file may come from anywhere. Nothing in it is believed before it is checked, and no memory is
taken for an array before its header, its declared size and its actual size agree.
"""

import json
import math
import os
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from jax.core import Tracer

from . import __version__
from .storage import json_ready, write_atomically
from .types import InputError, LayerChain, Thresholds, Verdict, refuse

SCHEMA = 1
LIMIT_BYTES = 4 * 2**30
_RANKS = {"propagators": 3, "injections": 3, "initial": 2}
_META = "meta.npy"
_META_BYTES = 2**20
# Deflate cannot shrink more than this, so a larger ratio is a lie about a size.
_DEFLATE_RATIO = 1032


def save_chain(
    path: str | os.PathLike[str], chain: LayerChain, meta: Mapping[str, Any] | None = None, /, **more: Any
) -> Path:
    """Write one chain to an .npz file, whole or not at all.

    Parameters
    ----------
    path : where to write; an existing file is replaced, and stays as it was if anything fails.
    chain : LayerChain
        One chain, not a batch.
    meta, more : what to keep beside it, as a mapping, as keywords, or both
        Anything that JSON can hold, with arrays, Enum members and dataclasses turned into it. Known
        names: claim (str), expected (`Verdict` or its name), thresholds (`Thresholds` or a mapping),
        note (str). A number that is not finite becomes null and is listed under "nulls"; "created_by"
        is always this package's.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InputError
        On a batch, a traced chain, meta that JSON cannot hold or that `load_chain` would refuse, a
        missing folder, a folder in the file's place, or no permission.

    Notes
    -----
    Arrays are stored uncompressed, in their own dtype. docs/schema.md describes the file.

    References
    ----------
    docs/schema.md.

    Examples
    --------
    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = save_chain(f"{folder}/c.npz", LayerChain(jnp.ones((2, 3, 3))), note="all ones")
    ...     load_chain(file)[1]["note"]
    'all ones'
    """
    path = Path(path)
    if not isinstance(chain, LayerChain):
        refuse(f"a chain of type {type(chain).__name__}", "a LayerChain", "LayerChain(propagators, injections)")
    arrays = {name: getattr(chain, name) for name in _RANKS if getattr(chain, name) is not None}
    for name, array in arrays.items():
        if isinstance(array, Tracer):
            refuse(f"{name} inside jit or vmap", "a chain with values", "save_chain outside the jitted function")
        if array.ndim != _RANKS[name]:
            refuse(
                f"{name} with shape {tuple(array.shape)}",
                "one chain, not a batch",
                "jax.tree.map(lambda a: a[0], chains)",
            )
    contents = {name: np.asarray(array) for name, array in arrays.items()}
    contents["meta"] = _meta_array({**(meta or {}), **more})
    if path.is_dir():
        refuse(f"the folder {str(path)!r}", "a file to write", f"{str(path / 'chain.npz')!r}")
    try:
        return write_atomically(path, lambda file: _write_members(file, contents))
    except OSError as error:
        refuse(
            f"{error.strerror or type(error).__name__} writing {str(path)!r}",
            "a folder that can be written",
            "another folder",
        )


def load_chain(path: str | os.PathLike[str], *, limit_bytes: int = LIMIT_BYTES) -> tuple[LayerChain, dict[str, Any]]:
    """Read one chain from an .npz file, checking everything before believing it.

    Parameters
    ----------
    path : a file written by `save_chain`, or by `numpy.savez` with propagators (L, D, D) and, if
        wanted, injections (L, D, C) and initial (D, C) in float32 or float64.
    limit_bytes : refuse files whose arrays would take more memory than this.

    Returns
    -------
    chain : LayerChain
    meta : dict
        "schema" always; "created_by", "claim", "expected" (name of a `Verdict`), "thresholds" (a dict
        that `Thresholds` takes), "note" and more when the file has them. A file without meta has schema 1.

    Raises
    ------
    InputError
        On anything but a sound file: missing, a folder, not a zip, truncated, encrypted, pickled or
        unknown members, a size that is not what is there or is over the limit, an unknown schema
        version; and on arrays that `LayerChain` refuses, float64 with 64-bit mode off among them.

    Notes
    -----
    Never unpickles, never extracts to disk, reads each array once.

    References
    ----------
    docs/schema.md.

    Examples
    --------
    >>> load_chain("no-such-chain.npz")
    Traceback (most recent call last):
    ...
    spectral_theorem.types.InputError: got no file 'no-such-chain.npz'; expected a chain in an .npz file; try ...
    """
    path = Path(path)
    name = repr(str(path))
    if not _exists(path, name):
        refuse(f"no file {name}", "a chain in an .npz file", "verify --layers 64 --out run1, which writes one")
    if not path.is_file():
        refuse(f"{name}, which is not a file", "a chain in an .npz file", "the .npz inside the folder")
    try:
        with open(path, "rb") as file:
            arrays = _read_members(file, name, limit_bytes)
    except InputError:
        raise
    except Exception as error:  # parsers of hostile bytes raise whatever they trip over
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        refuse(f"{name}, which cannot be read ({detail})", "a sound .npz file", "writing it again with save_chain")
    meta = _checked_meta(arrays.pop("meta", None), name)
    if "propagators" not in arrays:
        refuse(f"{name} without propagators", "propagators (L, D, D)", "numpy.savez(file, propagators=w, injections=g)")
    return LayerChain(**arrays), meta


def _write_members(file: BinaryIO, contents: Mapping[str, np.ndarray]) -> None:
    """Write arrays as `numpy.savez` does, with pickles off."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in contents.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)


def _exists(path: Path, name: str) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError) as error:
        refuse(f"{name}, which cannot be looked at ({type(error).__name__})", "a chain in an .npz file", "its path")


def _read_members(file: BinaryIO, name: str, limit_bytes: int) -> dict[str, np.ndarray]:
    """Read the members of an archive whose directory, headers and sizes are sound."""
    if not zipfile.is_zipfile(file):
        refuse(
            f"{name}, which is not a zip archive or is cut short", "an .npz file", "numpy.savez(file, propagators=w)"
        )
    with zipfile.ZipFile(file) as archive:
        infos = archive.infolist()
        allowed = [f"{member}.npy" for member in (*_RANKS, "meta")]
        total = 0
        for i, info in enumerate(infos):
            member = f"member {info.filename[:60]!r} of {name}"
            if info.filename not in allowed:
                refuse(member, f"no members but {', '.join(allowed)}", "an .npz file of one chain")
            if info.filename in {other.filename for other in infos[:i]}:
                refuse(f"{member} twice", "each member once", "writing the file again with save_chain")
            if info.flag_bits & 1:
                refuse(f"{member}, encrypted", "a plain .npz file", "numpy.savez(file, propagators=w)")
            factors = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: _DEFLATE_RATIO}
            factor = factors.get(info.compress_type)
            if factor is None:
                refuse(f"{member}, compression {info.compress_type}", "stored or deflated", "numpy.savez_compressed")
            if info.file_size > factor * info.compress_size:
                refuse(
                    f"{member}, {info.file_size} bytes declared in {info.compress_size}",
                    "a size that can be true",
                    "writing the file again with save_chain",
                )
            total += info.file_size
        if total > limit_bytes:
            refuse(f"{name} with {total} bytes of arrays", f"at most {limit_bytes}", f"limit_bytes={total}")
        return {info.filename.removesuffix(".npy"): _read_array(archive, info, name) for info in infos}


def _read_array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
    """Read one array after its header has passed."""
    member = f"member {info.filename!r} of {name}"
    with archive.open(info) as stream:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy warns about headers of old writers and reads them
            version = np.lib.format.read_magic(stream)
            if version != (1, 0):  # later versions have headers of any length, which no chain needs
                refuse(
                    f"{member} in .npy version {version}", "version (1, 0)", "writing the file again with save_chain"
                )
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        if dtype.hasobject:
            refuse(f"{member}, Python objects", "numbers; nothing is unpickled", "float32 or float64 arrays")
        kinds = "USu" if info.filename == _META else "f"
        if dtype.kind not in kinds or dtype.names is not None or dtype.itemsize < 1:
            wanted = "JSON text" if info.filename == _META else "float32 or float64"
            refuse(f"{member} with dtype {dtype}", wanted, "save_chain")
        if not all(type(n) is int and n >= 0 for n in shape):
            refuse(f"{member} with shape {str(shape)[:60]}", "a shape of whole numbers", "save_chain")
        size = math.prod(shape) * dtype.itemsize
        held = info.file_size - stream.tell()
        if size != held:
            refuse(f"{member}, shape {str(shape)[:60]} in {held} bytes", f"{size} bytes of {dtype}", "save_chain")
        if info.filename == _META and size > _META_BYTES:
            refuse(f"{member}, {size} bytes", f"at most {_META_BYTES}", "a shorter note")
        data = stream.read(size)
        if len(data) != size:
            refuse(f"{member} cut short", f"{size} bytes", "writing the file again with save_chain")
    array = np.frombuffer(data, dtype).reshape(shape, order="F" if fortran_order else "C")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _meta_array(meta: dict[str, Any]) -> np.ndarray:
    """Turn meta into ASCII JSON that `load_chain` accepts."""
    try:
        fields, nulls = json_ready(meta)
    except (TypeError, RecursionError) as error:
        refuse(f"meta that JSON cannot hold ({error})", "text, numbers, lists and mappings", "note='...'")
    fields = {"schema": SCHEMA} | fields | {"created_by": f"spectral_theorem {__version__}"}
    text = json.dumps(fields | ({"nulls": nulls} if nulls else {}), allow_nan=False)
    array = np.asarray(text)
    if array.nbytes > _META_BYTES:
        refuse(f"meta of {array.nbytes} bytes", f"at most {_META_BYTES}", "a shorter note")
    _checked_meta(array, "meta")
    return array


def _checked_meta(array: np.ndarray | None, name: str) -> dict[str, Any]:
    """Parse and check the JSON text beside the arrays."""
    if array is None:
        return {"schema": SCHEMA}
    try:
        # NumPy's own str() fails inside the interpreter on code points beyond Unicode.
        encoding = "utf-8" if array.dtype.kind in "uS" else f"utf-32-{sys.byteorder[0]}e"
        text = array.tobytes().decode(encoding).rstrip("\0")
        meta = json.loads(text, parse_constant=lambda word: refuse(f"{word} in meta of {name}", "strict JSON", "null"))
    except InputError:
        raise
    except (ValueError, RecursionError):
        refuse(f"{name} with meta that is not JSON", "a JSON object", "save_chain(path, chain, note='...')")
    if not isinstance(meta, dict):
        refuse(f"{name} with meta that is a {type(meta).__name__}", "a JSON object", '{"schema": 1}')
    schema = meta.get("schema")
    if type(schema) is not int or schema != SCHEMA:
        refuse(
            f"{name} with schema {str(schema)[:20]!r}", f"schema {SCHEMA}", "the version of the package that wrote it"
        )
    for field in ("created_by", "claim", "note"):
        if not isinstance(meta.get(field, ""), str):
            refuse(f"{name} with {field} that is no text", f"text in {field}", f'"{field}": "..."')
    if "expected" in meta and meta["expected"] not in list(Verdict.__members__):
        refuse(
            f"{name} with expected {str(meta['expected'])[:20]!r}", f"one of {', '.join(Verdict.__members__)}", "HOLDS"
        )
    if "thresholds" in meta:
        meta["thresholds"] = _checked_thresholds(meta["thresholds"], name)
    return meta


def _checked_thresholds(thresholds: Any, name: str) -> dict[str, float]:
    """Accept named finite numbers that `Thresholds` accepts; JSON writes whole ones without a point."""
    known = list(Thresholds.__dataclass_fields__)
    if not isinstance(thresholds, dict):
        refuse(f"{name} with thresholds that are a {type(thresholds).__name__}", "a JSON object", '{"purity": 0.1}')
    unknown = sorted(set(thresholds) - set(known))
    if unknown:
        refuse(f"{name} with threshold {unknown[0][:40]!r}", f"one of {', '.join(known)}", '{"purity": 0.1}')
    for field, value in thresholds.items():
        if not isinstance(value, (int, float)) or abs(value) > 1e300:
            refuse(f"{name} with threshold {field}={str(value)[:20]}", "a finite number > 0", '{"purity": 0.1}')
    numbers = {field: float(value) for field, value in thresholds.items()}
    Thresholds(**numbers)
    return numbers
