"""Read experiment files: one claim each, with what would refute it, and a function from a config to records."""

import dataclasses
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .types import InputError, refuse

KINDS = ("finding", "upper", "lower", "tight")
VERDICTS = ("HOLDS", "VIOLATED", "UNDECIDED")
NEEDED = ("Config", "run", "verdict")
LABELS = ("Kind", "Expected", "Refuted by")
PLAIN = (bool, int, float, str, Path, tuple)  # what a field of a Config may be
EXAMPLE = "experiments/synthetic/phase_diagram.py"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Hold one experiment file.

    Parameters
    ----------
    path : the file. digest : of its bytes, 16 hexadecimal digits.
    statement : the claim, the first line of its docstring.
    kind : "finding", "upper", "lower" or "tight".
    expected, refuted_by : what should come out, and what would refute the claim.
    config : its frozen dataclass `Config`, every field with a default.
    run : config → list of flat rows; equal configs give equal rows to the bit.
    verdict : rows → ("HOLDS", "VIOLATED" or "UNDECIDED", a sentence).
    figure : rows → matplotlib figure, or None where there is nothing to draw; or no such function.
    cell : (config, key) → mapping of scalars that JAX can trace in the config's float fields, or None. The seed of
        the config is in the key; inside the cell the config has seed 0.
    grid : field → values that a sweep takes when it is told nothing else; empty for one cell.
    """

    path: Path
    digest: str
    statement: str
    kind: str
    expected: str
    refuted_by: str
    config: type[Any]
    run: Callable[[Any], Sequence[Mapping[str, Any]]]
    verdict: Callable[[Sequence[Mapping[str, Any]]], tuple[str, str]]
    figure: Callable[[Sequence[Mapping[str, Any]]], Any] | None
    cell: Callable[[Any, Any], Mapping[str, Any]] | None
    grid: Mapping[str, Sequence[Any]]

    @property
    def name(self) -> str:
        """Name of the file, without folder and ending."""
        return self.path.stem


def load(path: str | os.PathLike[str]) -> Experiment:
    r"""Read an experiment file.

    Parameters
    ----------
    path : a Python file with a docstring as below, `Config`, `run` and `verdict`; `figure`, `cell`, `GRID` at will.

    Returns
    -------
    Experiment

    Raises
    ------
    InputError
        When the file cannot be read or run, or lacks one of these, or has them in another shape.

    Notes
    -----
    The file is run, so it must be trusted as much as any program.

    Examples
    --------
    >>> import tempfile
    >>> text = '''
    ... __doc__ = "A square is not negative.\\n\\nKind: lower. Expected: all >= 0. Refuted by: a square below 0."
    ... import dataclasses
    ... @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     x: float = 2.0
    ... def run(config): return [{"square": config.x**2}]
    ... def verdict(records):
    ...     least = min(record["square"] for record in records)
    ...     return ("HOLDS" if least >= 0 else "VIOLATED"), f"the least square is {least}"
    ... '''
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "square.py"
    ...     _ = file.write_text(text)
    ...     found = load(file)
    >>> found.kind, found.refuted_by, found.verdict(found.run(found.config()))
    ('lower', 'a square below 0', ('HOLDS', 'the least square is 4.0'))
    """
    path = Path(path)
    try:
        source = path.read_bytes()
    except OSError as problem:
        refuse(f"{path}, which cannot be read ({problem.strerror})", "an experiment file in Python", EXAMPLE)
    if path.suffix != ".py":
        refuse(f"{path}", "an experiment file whose name ends in .py", EXAMPLE)
    digest = hashlib.blake2b(source, digest_size=8).hexdigest()
    module = _import(path, f"spectral_theorem_experiment_{digest}")
    labels: dict[str, Any] = _described(path, module.__doc__ or "")
    members: dict[str, Any] = {name: getattr(module, name, None) for name in (*NEEDED, "figure", "cell")}
    for name in NEEDED:
        if not callable(members[name]):
            refuse(f"{path} without {name}", "an experiment with Config, run and verdict", f"{EXAMPLE}, which has them")
    _check_config(path, members["Config"])
    grid = getattr(module, "GRID", {})
    fields = {field.name for field in dataclasses.fields(members["Config"])}
    if not isinstance(grid, Mapping) or not grid.keys() <= fields:
        refuse(
            f"{path} with GRID={grid!r}", f"a mapping from fields of Config to values: {sorted(fields)}", "GRID = {}"
        )
    found: dict[str, Any] = {name.lower(): member for name, member in members.items()}
    return Experiment(path=path, digest=digest, grid=grid, **labels, **found)


def judged(experiment: Experiment, records: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return an experiment's verdict on records, and insist that it is one.

    Raises
    ------
    InputError
        When it is not a pair of a verdict and a sentence.
    """
    found = experiment.verdict(records)
    if not isinstance(found, tuple) or len(found) != 2 or found[0] not in VERDICTS:
        refuse(
            f"{found!r} as the verdict of {experiment.path}", f"one of {', '.join(VERDICTS)} and a sentence", EXAMPLE
        )
    return found[0], str(found[1])


def _import(path: Path, name: str) -> ModuleType:
    """Run the file as a module; `dataclasses` looks its module up by name, so it is registered."""
    if name in sys.modules:
        return sys.modules[name]
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None  # the name ends in .py
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except InputError:
        del sys.modules[name]
        raise
    except Exception as problem:
        del sys.modules[name]
        refuse(f"{path}, which fails with {type(problem).__name__}: {problem}", "a Python file that runs", EXAMPLE)
    return module


def _described(path: Path, text: str) -> dict[str, str]:
    """Take statement, kind, expectation and refutation from a docstring."""
    statement, _, rest = text.strip().partition("\n")
    found = {}
    for label in LABELS:
        others = "|".join(other for other in LABELS if other != label)
        match = re.search(rf"\b{label}:\s*(.*?)(?=\s*\b(?:{others}):|\n\s*\n|\Z)", rest, re.DOTALL)
        found[label] = " ".join(match[1].split()).rstrip(".") if match else ""
        if not found[label]:
            refuse(
                f"{path} without a line '{label}:' in its docstring",
                "a docstring of one sentence, then Kind:, Expected: and Refuted by:",
                f"{EXAMPLE}, which has them",
            )
    kind = found["Kind"].lower()
    if kind not in KINDS:
        refuse(f"kind {found['Kind']!r} in {path}", f"one of {', '.join(KINDS)}", "Kind: finding")
    return {
        "statement": statement.strip(),
        "kind": kind,
        "expected": found["Expected"],
        "refuted_by": found["Refuted by"],
    }


def _check_config(path: Path, config: Any) -> None:
    """Insist on a frozen dataclass of plain fields, each with a default."""
    hint = "@dataclass(frozen=True) class Config: layers: int = 8"
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        refuse(f"{path} with a Config that is no dataclass", "a frozen dataclass", hint)
    if not config.__dataclass_params__.frozen:  # pyright: ignore[reportAttributeAccessIssue]
        refuse(f"{path} with a Config that is not frozen", "a frozen dataclass", hint)
    for field in dataclasses.fields(config):
        if field.default is dataclasses.MISSING or not isinstance(field.default, PLAIN):
            refuse(
                f"{path} with the field {field.name!r} of Config, whose default is no plain value",
                f"a default that is one of {', '.join(kind.__name__ for kind in PLAIN)}",
                hint,
            )
