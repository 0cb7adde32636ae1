"""Three-valued judgement: decide an inequality, join verdicts by "and", lay entries out for both."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from .types import Reason, Verdict


def decide(slack: Any, allowance: Any, *, equal: Any = False) -> tuple[Any, Any]:
    """Return (verdict code, reason code) of "slack >= 0 up to allowance".

    Parameters
    ----------
    slack, allowance : arrays of one shape, same units.
    equal : bool array; the two sides coincide by construction, so |slack| <= allowance is HOLDS.

    Notes
    -----
    Written so that NaN falls through every comparison: NaN never certifies.

    Examples
    --------
    >>> [Verdict(int(decide(jnp.asarray(x), 1e-3)[0])).name for x in (1.0, -1.0, 0.0, float('nan'))]
    ['HOLDS', 'VIOLATED', 'UNDECIDED', 'UNDECIDED']
    """
    slack, allowance = jnp.asarray(slack), jnp.asarray(allowance)
    nan = jnp.isnan(slack) | jnp.isnan(allowance)
    within = jnp.abs(slack) <= allowance
    settled = within & jnp.asarray(equal)
    code = jnp.where(slack > allowance, Verdict.HOLDS, Verdict.UNDECIDED)
    code = jnp.where(slack < -allowance, Verdict.VIOLATED, code)
    code = jnp.where(settled, Verdict.HOLDS, code)
    reason = jnp.where(within, Reason.WITHIN_TOLERANCE, Reason.NONE)
    reason = jnp.where(settled, Reason.EQUAL_BY_CONSTRUCTION, reason)
    return jnp.where(nan, Verdict.UNDECIDED, code), jnp.where(nan, Reason.NAN, reason)


def all_of(codes: Any, reasons: Any) -> tuple[Any, Any]:
    """Combine verdicts along axis 0 by the logic of "and".

    VIOLATED wins, then UNDECIDED, then HOLDS; NOT_APPLICABLE only when nothing else is left.
    The reason is that of the first entry that decides.

    Examples
    --------
    >>> code, _ = all_of(jnp.asarray([1, 0, 2]), jnp.asarray([0, 2, 0]))
    >>> Verdict(int(code)).name
    'VIOLATED'
    """
    codes, reasons = jnp.asarray(codes), jnp.asarray(reasons)
    order = jnp.asarray([1, 2, 0, 3])[codes]  # rank of UNDECIDED, HOLDS, VIOLATED, NOT_APPLICABLE
    first = jnp.argmin(order, axis=0)
    take = lambda a: jnp.take_along_axis(a, first[None], axis=0)[0]
    return take(codes), take(reasons)


def as_table(cells: Any, length: int, absent: Any, kind: Any) -> Any:
    """Lay entries of different lengths out as rows of one (R, length) array, padded with `absent`.

    One concatenation and one gather with constant indices: padding row by row would compile a kernel
    per row and dominate the cost of a first call.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> as_table([jnp.asarray([1.0, 2.0]), 3.0], 3, 0.0, jnp.float32).tolist()
    [[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]
    """
    flat = [jnp.ravel(jnp.asarray(cell, kind)) for cell in cells]
    sizes = [cell.shape[0] for cell in flat]
    starts = np.cumsum([0, *sizes[:-1]])
    column = np.arange(length)
    index = np.where(column < np.asarray(sizes)[:, None], starts[:, None] + column, sum(sizes))
    return jnp.concatenate([*flat, jnp.asarray(absent, kind)[None]])[index]
