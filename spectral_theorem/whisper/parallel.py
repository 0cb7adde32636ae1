"""Share a batch of clips out over devices: every device has all weights and some of the clips."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

CLIPS = "clips"


def clip_mesh(devices: Sequence[Any] | None = None) -> Mesh | None:
    """Return a mesh with one axis of clips.

    Parameters
    ----------
    devices : to use; all of this process if absent.

    Returns
    -------
    Mesh or None
        None for a single device, which needs no mesh.

    Examples
    --------
    >>> clip_mesh(jax.devices()[:1]) is None
    True
    """
    devices = jax.local_devices() if devices is None else devices
    return Mesh(np.asarray(devices), (CLIPS,)) if len(devices) > 1 else None


def replicate(parameters: Any, mesh: Mesh | None) -> Any:
    """Put the same arrays on every device of a mesh; without a mesh, leave them where they are."""
    return parameters if mesh is None else jax.device_put(parameters, NamedSharding(mesh, P()))


def over_clips(function: Callable[..., Any], mesh: Mesh | None, shared: Any, rows: Any) -> Any:
    """Apply a function to a batch, each device to its own rows.

    Parameters
    ----------
    function : of (shared, rows); row i of its result depends on row i of `rows` only. It must be
        hashable and equal to itself when made again, as module functions and partials of them
        kept by the caller are, since the compiled program is found by it.
    mesh : from `clip_mesh`; None calls the function as it is.
    shared : pytree that every device needs whole.
    rows : pytree of arrays with a leading batch axis.

    Returns
    -------
    The function's result for the whole batch.

    Notes
    -----
    A batch that the devices do not divide is filled up with copies of its last row, which are cut
    off again: an odd batch costs as much as the next even one.

    Examples
    --------
    >>> over_clips(lambda scale, x: scale * x, None, 2.0, jnp.ones(3)).tolist()
    [2.0, 2.0, 2.0]
    """
    if mesh is None:
        return function(shared, rows)
    batch = jax.tree.leaves(rows)[0].shape[0]
    missing = -batch % mesh.size
    if missing:
        fill = lambda x: jnp.concatenate([x, jnp.broadcast_to(x[-1:], (missing, *x.shape[1:]))])
        rows = jax.tree.map(fill, rows)
    rows = jax.device_put(rows, NamedSharding(mesh, P(CLIPS)))
    result = _spread(function, mesh)(replicate(shared, mesh), rows)
    return jax.tree.map(lambda x: x[:batch], result) if missing else result


@functools.lru_cache(maxsize=32)
def _spread(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    # Each device runs its own loop, as long as its own clips need it: nothing is exchanged.
    return jax.jit(jax.shard_map(function, mesh=mesh, in_specs=(P(), P(CLIPS)), out_specs=P(CLIPS), check_vma=False))
