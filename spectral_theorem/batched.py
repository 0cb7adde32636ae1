"""Evaluate traceable cells many at a time: vmapped on a device, sharded over devices.

Each device runs the same program on a batch of the same width, however many devices there are, and a cell's place in
its batch comes from the design alone. So results do not depend on the number of devices.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from .types import refuse

AXIS = "cells"
SEED = "seed"  # the field that becomes a cell's key


def traced_fields(kind: Any) -> tuple[str, ...]:
    """Name the fields of a config that are traced: its floats.

    Examples
    --------
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     sigma: float = 1.0
    ...     layers: int = 8
    >>> traced_fields(Config)
    ('sigma',)
    """
    return tuple(field.name for field in dataclasses.fields(kind) if isinstance(field.default, float))


def groups(configs: Sequence[Any]) -> list[list[int]]:
    """Put cells together that one program serves: those that differ in traced fields and seed alone.

    Parameters
    ----------
    configs : of one dataclass, in order.

    Returns
    -------
    list of lists
        Places of configs; groups in the order of their first cell.
    """
    if not configs:
        return []
    loose = {*traced_fields(type(configs[0])), SEED}
    fixed = [field.name for field in dataclasses.fields(configs[0]) if field.name not in loose]
    found: dict[tuple[Any, ...], list[int]] = {}
    for place, config in enumerate(configs):
        found.setdefault(tuple(getattr(config, name) for name in fixed), []).append(place)
    return list(found.values())


class Program:
    """Hold one compiled program: a cell, for one group of configs, on some devices.

    Parameters
    ----------
    cell : (config, key) → mapping of scalars, traceable in the float fields of config.
    example : a config of the group.
    width : cells of a batch; every device takes one batch per call.
    devices : to shard over; JAX's first local device if absent.

    Raises
    ------
    InputError
        When the cell returns something else than scalars.

    Examples
    --------
    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     x: float = 1.0
    ...     seed: int = 0
    >>> program = Program(lambda config, key: {"square": config.x**2}, Config(), width=4)
    >>> program([[Config(2.0), Config(3.0)]])
    [[{'square': 4.0}, {'square': 9.0}]]
    """

    def __init__(
        self,
        cell: Callable[[Any, Any], Mapping[str, Any]],
        example: Any,
        *,
        width: int,
        devices: Sequence[Any] | None = None,
    ) -> None:
        self.width, self.names = width, traced_fields(type(example))
        chosen = np.asarray(jax.local_devices()[:1] if devices is None else devices)
        mesh = Mesh(chosen, (AXIS,))
        self.batches = len(chosen)
        self.sharding = NamedSharding(mesh, PartitionSpec(AXIS))

        def one(values: Any, seed: Any) -> dict[str, Any]:
            traced = {name: values[place] for place, name in enumerate(self.names)}
            return _scalars(cell(_traced_config(example, traced), jax.random.key(seed)))

        spread = jax.shard_map(
            jax.vmap(one), mesh=mesh, in_specs=PartitionSpec(AXIS), out_specs=PartitionSpec(AXIS), check_vma=False
        )
        n = self.batches * width
        real = jnp.result_type(float)
        shapes = [
            jax.ShapeDtypeStruct((n, len(self.names)), real, sharding=self.sharding),
            jax.ShapeDtypeStruct((n,), jnp.uint32, sharding=self.sharding),
        ]
        self.compiled = jax.jit(spread).lower(*shapes).compile()
        self.dtype = real

    @property
    def bytes_per_device(self) -> int | None:
        """Memory that a call takes on each device by XLA's own account, or None where it does not say."""
        found = self.compiled.memory_analysis()
        if found is None:
            return None
        return int(found.temp_size_in_bytes + found.output_size_in_bytes + found.argument_size_in_bytes)

    def __call__(self, batches: Sequence[Sequence[Any]]) -> list[list[dict[str, Any]]]:
        """Evaluate at most one batch per device; what is short is padded, and the padding dropped.

        Parameters
        ----------
        batches : lists of configs, each of 1 to `width`.

        Returns
        -------
        list of lists of dict
            What the cell returned, as Python numbers, in the same places.
        """
        padded = [[*batch, *[batch[-1]] * (self.width - len(batch))] for batch in batches]
        padded += [padded[-1]] * (self.batches - len(padded))
        flat = [config for batch in padded for config in batch]
        values = np.asarray([[getattr(config, name) for name in self.names] for config in flat], self.dtype)
        seeds = np.asarray([_seed(config) for config in flat], np.uint32)
        given = [jax.device_put(array, self.sharding) for array in (values.reshape(len(flat), -1), seeds)]
        found = {name: np.asarray(array).tolist() for name, array in jax.device_get(self.compiled(*given)).items()}
        rows = [{name: column[place] for name, column in found.items()} for place in range(len(flat))]
        return [rows[i * self.width : i * self.width + len(batch)] for i, batch in enumerate(batches)]


def evaluate(cell: Callable[[Any, Any], Mapping[str, Any]], config: Any) -> dict[str, Any]:
    """Evaluate one cell by itself, on JAX's first device.

    Parameters
    ----------
    cell, config : as in an experiment.

    Returns
    -------
    dict
        Its config and what the cell returned, as Python values.

    Notes
    -----
    A batch may round differently in the last digits than a cell alone.
    """
    found = Program(cell, config, width=1)([[config]])[0][0]
    return {**dataclasses.asdict(config), **found}


def _seed(config: Any) -> int:
    seed = getattr(config, SEED, 0)
    if not 0 <= seed < 2**32:
        refuse(f"seed={seed}", "a whole number from 0 to 4294967295", "--set seed=0:9:10")
    return seed


def _traced_config(example: Any, traced: Mapping[str, Any]) -> Any:
    """Copy a config with traced values, past checks of its own that want numbers; those have been made."""
    config = object.__new__(type(example))
    for field in dataclasses.fields(example):
        value = traced.get(field.name, 0 if field.name == SEED else getattr(example, field.name))
        object.__setattr__(config, field.name, value)
    return config


def _scalars(found: Mapping[str, Any]) -> dict[str, Any]:
    arrays = {name: jnp.asarray(value) for name, value in found.items()}
    for name, array in arrays.items():
        if array.ndim:
            refuse(f"{name!r} of shape {array.shape} from cell", "a mapping from names to scalars", f"{name}.mean()")
    return arrays
