"""Many chains in flat memory: made, verified and forgotten batch by batch, all processor cores at work."""

import collections
import functools
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .path import dense
from .types import Thresholds, refuse
from .verification import Verification, verify, verify_one_by_one

_AT_ONCE = 16  # chains side by side on a GPU, whose cores one chain leaves idle
_FIELDS = ("log_residual_norm", "log_psi_norm", "log_identity_error", "log_scale")


def scalars(found: Verification) -> dict[str, Any]:
    """Return the verdicts as codes, and the scalars that tables and figures are made of.

    Examples
    --------
    >>> import jax
    >>> import spectral_theorem as st
    >>> sorted(scalars(st.verify(st.ensembles.gaussian(jax.random.key(0), layers=3, width=2, context=2))))[:2]
    ['claims', 'conditions']
    """
    return {
        "conditions": found.conditions.code.astype(jnp.int8),
        "claims": found.claims.code.astype(jnp.int8),
        "regime": found.regime.code.astype(jnp.int8),
        "naive": found.regime.naive_code.astype(jnp.int8),
        "largest_exponent": found.regime.lyapunov[0],
        **{name: getattr(found.path, name) for name in _FIELDS},
        **{name: x for name, x in vars(found.bounds).items() if x.ndim == 0},
    }


def verify_batches(
    make: Callable[[Any], Any],
    keys: Any,
    *,
    keep: Callable[[Verification], Any] = scalars,
    thresholds: Thresholds | None = None,
    at_once: int | None = None,
    batch: int = 16,
    workers: int | None = None,
) -> Iterator[Any]:
    """Make and verify chains batch by batch, and keep what `keep` says of each.

    Parameters
    ----------
    make : traceable function from a key to a LayerChain of one shape; a `jax.tree_util.Partial` may carry arrays, so
        that chains that exist are read by their number.
    keys : (N, ...) array: PRNG keys, numbers, or anything else that `make` takes one of.
    keep : traceable function from a Verification to arrays. Default: `scalars`.
    thresholds : as in `verify`.
    at_once : chains computed side by side. Default: one on a CPU, where it stays in cache; 16 elsewhere.
    batch : chains per call; what is kept of them is yielded together.
    workers : calls in flight. Default: one per processor core; one where chains are computed side by side.

    Yields
    ------
    What `keep` returns, as NumPy arrays with an axis of up to `batch` chains in front, in the order of `keys`.

    Raises
    ------
    InputError
        On no keys, or numbers below 1.

    Notes
    -----
    Every chain is a function of its key, so the answers do not depend on `batch` or `workers`. Memory: what `workers`
    calls need, whatever N is. With one chain at a time LAPACK is entered matrix by matrix, and each call keeps one core
    busy. Side by side its matrices are shared out among XLA's threads (PJRT_NPROC, read when JAX starts), and calls in
    flight could wait for each other for ever; hence one then. The spare threads that this package asks XLA for serve
    `verify`, and a `make` that enters LAPACK itself; without such, PJRT_NPROC set to the number of cores saves a tenth.

    Examples
    --------
    >>> import jax
    >>> import spectral_theorem as st
    >>> make = lambda key: st.ensembles.gaussian(key, layers=3, width=2, context=2)
    >>> found = list(verify_batches(make, jax.random.split(jax.random.key(0), 5), batch=4))
    >>> [len(part["regime"]) for part in found]
    [4, 1]
    """
    count, cpu = len(keys), jax.default_backend() == "cpu"
    at_once = (1 if cpu else _AT_ONCE) if at_once is None else at_once
    workers = (os.cpu_count() or 1 if cpu and at_once == 1 else 1) if workers is None else workers
    for name, value in {"keys": count, "at_once": at_once, "batch": batch, "workers": workers}.items():
        if not isinstance(value, int) or value < 1:
            refuse(f"{name}={value!r}" if name != "keys" else "no keys", f"{name} >= 1", f"{name}=16")
    at_once = min(at_once, batch)
    if at_once > 1 and workers > 1:
        refuse(f"at_once={at_once} with workers={workers}", "one of them 1", "at_once=1")
    batch += -batch % at_once
    traced = make if isinstance(make, jax.tree_util.Partial) else jax.tree_util.Partial(make)
    thresholds = Thresholds() if thresholds is None else thresholds

    def run(start: int) -> Any:
        stop = min(start + batch, count)
        some = keys[np.minimum(np.arange(start, start + batch), count - 1)]  # the last batch repeats its last key
        found = _several(traced, some, keep, thresholds, at_once)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[: stop - start], found)

    return _in_order(run, range(0, count, batch), workers)


def _in_order(run: Callable[[int], Any], starts: range, workers: int) -> Iterator[Any]:
    """Yield results in order, with no more than one beyond those in flight waiting to be taken."""
    if workers == 1:
        yield from map(run, starts)
        return
    waiting: collections.deque[Future[Any]] = collections.deque()
    left = iter(starts)
    with ThreadPoolExecutor(workers) as pool:
        waiting.extend(pool.submit(run, start) for start in itertools.islice(left, workers + 1))
        while waiting:
            done = waiting.popleft().result()
            waiting.extend(pool.submit(run, start) for start in itertools.islice(left, 1))
            yield done


@functools.partial(jax.jit, static_argnames=("keep", "thresholds", "at_once"))
def _several(make: Any, keys: Any, keep: Callable[..., Any], thresholds: Thresholds, at_once: int) -> Any:
    if at_once == 1:
        return jax.lax.map(lambda key: keep(verify_one_by_one(dense(make(key)), thresholds)), keys)
    one = jax.vmap(lambda key: keep(verify(make(key), thresholds)))
    rounds = keys.reshape(-1, at_once, *keys.shape[1:])
    found = jax.lax.map(one, rounds)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)
