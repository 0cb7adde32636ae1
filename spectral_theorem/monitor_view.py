"""Show what a monitor sees on a terminal: the newest tokens in a table that rolls, alarms in red."""

import contextlib
import math
from collections import deque
from collections.abc import Iterator
from typing import Any

from .monitor import Step

ROWS = 12
_BARS = "▁▂▃▄▅▆▇█"


class View:
    """Keep the newest steps, and lay them out.

    Parameters
    ----------
    components : what is watched. rows : tokens shown.
    """

    def __init__(self, components: tuple[str, ...], rows: int = ROWS) -> None:
        self.components, self.steps, self.said = components, deque(maxlen=rows), ""
        self.title = ""

    def add(self, step: Step) -> None:
        """Take one more step in."""
        if not step.step and not step.start:
            self.steps.clear()
            self.said = ""
        self.steps.append(step)
        self.said += step.text if step.text is not None else f"<{step.token}>"

    def table(self) -> Any:
        """Return the table as rich draws it."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title), caption=Text(self.said[-72:]), expand=False)
        table.add_column("step", justify="right")
        table.add_column("token")
        table.add_column("log p", justify="right")
        for name in self.components:
            table.add_column(f"N_eff {name.replace('_', ' ')}", justify="right")
        for head in ("alpha", "lambda"):
            table.add_column(head, justify="right")
        table.add_column("alarms")
        for step in self.steps:
            ranks = [_number(_mean(row)) for row in step.effective_rank]
            alpha = _number(step.values["alpha"])
            # beside a slope that is none: how many places have one
            fits = int((step.alpha_failed == 0).sum())
            lam = "" if step.gains is None else _number(step.values["lam"])
            said = Text(step.text if step.text is not None else f"<{step.token}>")
            raised = Text(", ".join(one.signal for one in step.alarms), style="bold red")
            slope = alpha if not alpha else f"{alpha} ({fits}/{step.alpha_failed.size})"
            table.add_row(str(step.step), said, f"{step.logprob:.2f}", *ranks, slope, lam, raised)
        return table


def _mean(row: Any) -> float:
    known = [float(x) for x in row if math.isfinite(x)]
    return sum(known) / len(known) if known else math.nan


def _number(x: float) -> str:
    return f"{x:.2f}" if math.isfinite(x) else ""


def sparkline(values: Any) -> str:
    """Draw numbers as a line of bars; those that are not known as blanks.

    Examples
    --------
    >>> sparkline([0.0, 1.0, float("nan"), 2.0])
    '▁▅ █'
    """
    known = [x for x in values if math.isfinite(x)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = (high - low) or 1.0
    bar = lambda x: _BARS[min(int((x - low) / span * len(_BARS)), len(_BARS) - 1)]
    return "".join(bar(x) if math.isfinite(x) else " " for x in values)


@contextlib.contextmanager
def shown(view: View, *, console: Any = None) -> Iterator[Any]:
    """Draw a view while steps come, on a terminal's standard error; elsewhere nothing.

    Parameters
    ----------
    view : to be drawn. console : of rich, in place of standard error.

    Yields
    ------
    function of a Step
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True) if console is None else console
    if not console.is_terminal:
        yield view.add
        return
    with Live(view.table(), console=console, refresh_per_second=8, transient=True) as live:

        def show(step: Step) -> None:
            view.add(step)
            live.update(view.table())

        yield show
