"""Judge claims anew on numbers that a test has changed, by the package's own registry."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spectral_theorem.chaingains import log_products
from spectral_theorem.claims import CLAIMS, Evidence, evaluate
from spectral_theorem.path import spine
from spectral_theorem.scaled import norm
from spectral_theorem.types import Verdict, tolerance
from spectral_theorem.verification import _cone_output


@jax.jit
def _table(chains: Any, found: Any, changed: Any) -> Any:
    def one(chain: Any, v: Any, changed: Any) -> Any:
        s = spine(chain, v.triplets)
        cone = _cone_output(s)
        evidence = Evidence(
            chain=chain,
            spine=s,
            triplets=v.triplets,
            **changed["parts"],
            conditions=v.conditions,
            thresholds=v.thresholds,
            log_products=log_products(chain) + changed["log_products"],
            cone_output=cone.value / norm(cone.value),
            log_cone_output=cone.log + jnp.log(norm(cone.value)),
            allowance=jnp.asarray(tolerance(chain), chain.dtype),
        )
        return evaluate(evidence)

    return jax.vmap(one, in_axes=(0, 0, {"parts": 0, "log_products": None}))(chains, found, changed)


def judged(chains: Any, found: Any, **factors: float) -> dict[str, Any]:
    """Return claim -> names of verdicts (n,), after multiplying fields of path, bounds or regime by a factor."""
    parts = {}
    for name in ("path", "bounds", "regime"):
        part = getattr(found, name)
        leaves = {field: jnp.asarray(getattr(part, field)) for field in type(part).__dataclass_fields__}
        for field in factors.keys() & leaves.keys():
            by = factors[field]
            leaves[field] = leaves[field] + math.log(by) if field.startswith("log_") else leaves[field] * by
        parts[name] = type(part)(**leaves)
    changed = {"parts": parts, "log_products": jnp.asarray(math.log(factors.get("log_products", 1.0)))}
    code = np.asarray(_table(chains, found, changed).code)
    return {claim: np.asarray([Verdict(int(c)).name for c in code[:, i]]) for i, claim in enumerate(CLAIMS)}
