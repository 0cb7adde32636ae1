"""Work through a share of a sweep's cells: batch by batch, each kept as soon as it is there."""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from .batched import Program, groups
from .experiment import Experiment
from .launch import Share
from .shards import plain

KEEP_SECONDS = 2.0  # what cells that run one by one have found is kept at least so often
BATCH = 64  # cells on a device at once, where a cell can be traced


@dataclasses.dataclass
class Progress:
    """Hold what became of a share of a sweep.

    Parameters
    ----------
    done : cells that were computed and kept.
    failed : place of a cell → why there is nothing of it.
    widths : widths of batches that turned out too large for the memory.
    """

    done: int = 0
    failed: dict[int, str] = dataclasses.field(default_factory=dict)
    widths: list[int] = dataclasses.field(default_factory=list)


def batches_of(experiment: Experiment, configs: Sequence[Any], width: int) -> list[tuple[int, ...]]:
    """Cut a design into batches, from the design alone: the same whoever works on them, and whatever is finished.

    Parameters
    ----------
    width : cells of a batch. Cells that cannot be traced are batches of their own.

    Returns
    -------
    list of tuples
        Places of configs; all of a batch can go through one program.
    """
    if experiment.cell is None:
        return [(place,) for place in range(len(configs))]
    return [tuple(group[start : start + width]) for group in groups(configs) for start in range(0, len(group), width)]


def work(
    experiment: Experiment,
    configs: Sequence[Any],
    *,
    width: int,
    missing: Callable[[int], bool],
    keep: Callable[[list[tuple[int, list[dict[str, Any]]]]], None],
    devices: Sequence[Any],
    share: Share | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Progress:
    """Compute the cells of one share that are missing.

    Parameters
    ----------
    configs : of the whole design.
    width : cells of a batch.
    missing : says of a place whether its cell is still wanted.
    keep : takes (place, rows) of finished cells, and makes them last.
    devices : to shard over. share : which batches; all if absent.
    advance : told of every number of cells that is through.

    Returns
    -------
    Progress

    Notes
    -----
    When memory runs out, the width is halved and the work goes on; a single cell that does not fit has failed.
    """
    share = share or Share()
    every = batches_of(experiment, configs, width)[share.index :: share.count]
    wanted = [batch for batch in every if any(map(missing, batch))]
    found = Progress()
    if experiment.cell is None:
        _one_by_one(experiment, configs, [place for (place,) in wanted], keep, advance, found)
    else:
        _batched(experiment, configs, wanted, width, missing, keep, devices, advance, found)
    return found


def run_one(experiment: Experiment, config: Any) -> list[dict[str, Any]]:
    """Return the records of one config, with its fields in every row.

    Raises
    ------
    ValueError
        Where the experiment returns no rows: nothing would say that the cell is finished.
    """
    rows = experiment.run(config)
    if not isinstance(rows, Sequence) or not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"run returned {type(rows).__name__} and not a list of at least one mapping")
    return [{**fields_of(config), **{name: plain(value) for name, value in row.items()}} for row in rows]


def fields_of(config: Any) -> dict[str, Any]:
    """Return a config's fields as columns hold them."""
    return {field.name: plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def out_of_memory(problem: BaseException) -> bool:
    """Tell a lack of memory from other failures.

    Examples
    --------
    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: allocating 9 bytes"))
    (True, True)
    """
    return isinstance(problem, MemoryError) or "RESOURCE_EXHAUSTED" in str(problem)


def _one_by_one(
    experiment: Experiment,
    configs: Sequence[Any],
    places: Sequence[int],
    keep: Callable[[list[tuple[int, list[dict[str, Any]]]]], None],
    advance: Callable[[int], None],
    found: Progress,
) -> None:
    pending: list[tuple[int, list[dict[str, Any]]]] = []
    last = time.monotonic()

    def flush() -> None:
        if pending:
            keep(pending)
            found.done += len(pending)
            pending.clear()

    try:
        for place in places:
            try:
                pending.append((place, run_one(experiment, configs[place])))
            except Exception as problem:  # one cell that fails must not take the others with it
                found.failed[place] = _reason(problem)
            advance(1)
            if time.monotonic() - last > KEEP_SECONDS:
                flush()
                last = time.monotonic()
    finally:
        flush()  # also when told to stop


def _batched(
    experiment: Experiment,
    configs: Sequence[Any],
    batches: list[tuple[int, ...]],
    width: int,
    missing: Callable[[int], bool],
    keep: Callable[[list[tuple[int, list[dict[str, Any]]]]], None],
    devices: Sequence[Any],
    advance: Callable[[int], None],
    found: Progress,
) -> None:
    group_of = {place: number for number, group in enumerate(groups(configs)) for place in group}
    current: tuple[int, int] | None = None
    program: Program | None = None
    queue = list(batches)
    while queue:
        number = group_of[queue[0][0]]
        call = [batch for batch in queue[: len(devices)] if group_of[batch[0]] == number]
        wanted = [[place for place in batch if missing(place)] for batch in call]
        try:
            if program is None or current != (number, width):
                assert experiment.cell is not None
                program, current = None, (number, width)  # the old program's memory goes before the new one's comes
                program = Program(experiment.cell, configs[call[0][0]], width=width, devices=devices)
            results = program([[configs[place] for place in batch] for batch in call])
        except Exception as problem:
            if out_of_memory(problem) and width > 1:
                found.widths.append(width)
                width = (width + 1) // 2
                queue = [half for batch in queue for half in _cut(batch, width)]
                continue
            if program is None:  # it does not compile, so it fails for the whole group
                call = [batch for batch in queue if group_of[batch[0]] == number]
                wanted = [[place for place in batch if missing(place)] for batch in call]
            found.failed |= dict.fromkeys([place for batch in wanted for place in batch], _reason(problem))
        else:
            for batch, places, rows in zip(call, wanted, results, strict=True):
                of = dict(zip(batch, rows, strict=True))
                keep([(place, [{**fields_of(configs[place]), **of[place]}]) for place in places])
                found.done += len(places)
        advance(sum(map(len, wanted)))
        queue = queue[len(call) :]


def _cut(batch: tuple[int, ...], width: int) -> Iterator[tuple[int, ...]]:
    for start in range(0, len(batch), width):
        yield batch[start : start + width]


def _reason(problem: BaseException) -> str:
    lines = str(problem).strip().splitlines() or [""]
    return f"{type(problem).__name__}: {lines[0]}"


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show on a terminal's standard error how far the work is and how long it will take; elsewhere nothing.

    Parameters
    ----------
    what : the work, in a few words. total : how many there are.

    Examples
    --------
    >>> with counting("cells", 3) as advance:
    ...     advance(3)
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(elapsed_when_finished=False),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
