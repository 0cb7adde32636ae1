r"""Forbid tokens, by the rules that transcripts of Whisper keep.

A rule takes a row of logits and puts :math:`-\infty` where a token must not follow. Text stands
between pairs of timestamps, and timestamps never go back.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

NONE = -1


def forbidden(vocabulary: int, ids: Sequence[int], dtype: Any) -> Float[Array, " vocabulary"]:
    """Return what to add to logits so that none of the ids is chosen: 0, or minus infinity.

    Examples
    --------
    >>> forbidden(3, [1], "float32").tolist()
    [0.0, -inf, 0.0]
    """
    mask = np.zeros(vocabulary)
    mask[list(ids)] = -np.inf
    return jnp.asarray(mask, dtype)


def keep_timestamps(
    logits: Float[Array, " vocabulary"],
    last: Int[Array, ""],
    before_last: Int[Array, ""],
    latest: Int[Array, ""],
    *,
    first: int,
    end: int,
    initial_limit: int | None,
) -> Float[Array, " vocabulary"]:
    """Forbid what would break the order of timestamps.

    Parameters
    ----------
    logits : (V,) of the next token.
    last, before_last : ids of the two tokens generated last, -1 where there is none yet.
    latest : id of the last timestamp generated, -1 if there is none yet.
    first : id of 0.00 s; text and control tokens have smaller ids, timestamps are the rest.
    end : id of end-of-text; text has smaller ids.
    initial_limit : the first timestamp is at most this many steps of 0.02 s, or None.

    Returns
    -------
    logits : (V,)

    Notes
    -----
    The rules, in this order. A transcript starts with a timestamp, at most the limit. After a pair
    of timestamps (or the very first one) comes no timestamp; after a single one comes its partner,
    or the end. Timestamps do not decrease, and a new one after text exceeds the latest, so that no
    segment is empty. And if the timestamps that remain are together likelier than the likeliest
    token of any other kind, the next token is a timestamp.

    References
    ----------
    A. Radford et al., Robust Speech Recognition via Large-Scale Weak Supervision, 2022, section 4.5.

    Examples
    --------
    >>> row, none = jnp.asarray([0.0, 1.0, 0.0, 0.0, 0.0]), jnp.asarray(-1)
    >>> keep_timestamps(row, none, none, none, first=3, end=2, initial_limit=0).tolist()
    [-inf, -inf, -inf, 0.0, -inf]
    """
    ids = jnp.arange(logits.shape[0])
    is_time = ids >= first
    start = last == NONE
    after_time = last >= first
    after_pair = after_time & ((before_last >= first) | (before_last == NONE))
    after_single = after_time & ~after_pair
    lowest = jnp.where(after_single, latest, latest + 1)
    banned = jnp.where(start, ~is_time, False)
    if initial_limit is not None:
        banned = banned | (start & (ids > first + initial_limit))
    banned = banned | (after_pair & is_time) | (after_single & (ids < end))
    banned = banned | ((latest >= first) & is_time & (ids < lowest))
    logits = jnp.where(banned, -jnp.inf, logits)
    times = jax.nn.logsumexp(jnp.where(is_time, logits, -jnp.inf))
    others = jnp.max(jnp.where(is_time, -jnp.inf, logits))
    return jnp.where((times > others) & ~is_time, -jnp.inf, logits)
