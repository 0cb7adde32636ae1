"""One verification as plain, JSON-ready values."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from .claims import CLAIMS
from .types import Condition


def _plain(x: Any) -> Any:
    """Return a finite Python number, or None."""
    number = float(x)
    return number if math.isfinite(number) else None


def _condition_dict(c: Condition) -> dict[str, Any]:
    numbers = {name: _plain(getattr(c, name)) for name in ("value", "threshold", "margin", "error")}
    parts = {name: _condition_dict(part) for name, part in c.parts.items()}
    words = {"verdict": c.verdict.name, "reason": c.reason.name.lower()}
    return numbers | {"layer": int(c.layer)} | words | {"parts": parts}


def to_plain(v: Any) -> dict[str, Any]:
    """Return a `Verification` of one chain as a nested mapping; NaN, inf and undefined numbers become None."""
    v = jax.device_get(v)  # once: hundreds of numbers are read below
    t = v.triplets
    depth = t.sigma.shape[0]

    def layer(i: int) -> dict[str, Any]:
        coupled = i < depth - 1
        known = coupled and bool(t.resolved[i] & t.resolved[i + 1])
        at = lambda x: _plain(x[i]) if coupled and known else None
        return {
            "layer": i + 1,
            "sigma1": _plain(t.sigma[i, 0]),
            "sigma2": _plain(t.sigma[i, 1]),
            "sigma_error": _plain(t.sigma_error[i]),
            "sigma2_error": _plain(t.sigma2_error[i]),
            "xi": _plain(t.xi[i]),
            "xi_error": _plain(t.xi_error[i]),
            "kappa_abs": at(np.abs(t.kappa)),
            "kappa_error": at(t.kappa_error),
            "misalignment": at(t.misalignment),
            "rho": at(t.rho),
            "rho_error": at(t.rho_error),
            "lam": at(t.lam),
            "lam_error": at(t.lam_error),
            "resolved": bool(t.resolved[i]),
            "certified": bool(t.certified[i]),
        }

    known = bool(np.all(t.resolved))  # a tie leaves A and Psi undefined
    r = v.regime
    return {
        "conditions": {name: _condition_dict(c) for name, c in v.conditions.items()},
        "claims": {
            name: {
                "statement": CLAIMS[name].statement,
                "kind": CLAIMS[name].kind,
                "needs": list(CLAIMS[name].needs),
                "log_left": _plain(c.log_left),
                "log_right": _plain(c.log_right),
                "slack": _plain(c.slack),
                "tolerance": _plain(c.tolerance),
                "verdict": c.verdict.name,
                "reason": c.reason.name.lower(),
            }
            for name, c in v.claims.items()
        },
        "path": {
            "log_psi_norm": _plain(v.path.log_psi_norm) if known else None,
            "log_residual_norm": _plain(v.path.log_residual_norm),
            "log_identity_error": _plain(v.path.log_identity_error),
            "log_scale": _plain(v.path.log_scale),
            "log_amplitude": [_plain(x) if known else None for x in v.path.log_amplitude],
        },
        "bounds": {
            name: _plain(getattr(v.bounds, name))
            for name in type(v.bounds).__dataclass_fields__
            if name != "log_propagator_norm"
        }
        | {"log_propagator_norm": [_plain(x) for x in v.bounds.log_propagator_norm]},
        "coherence": {
            "value": _plain(v.coherence_solution.value),
            "upper": _plain(v.coherence_solution.upper),
            "gap": _plain(v.coherence_solution.gap),
        },
        "regime": {
            "certified": r.regime.name,
            "naive": r.naive.name,
            "dispersion_margin": _plain(r.dispersion_margin),
            "dispersion_rate": _plain(r.dispersion_rate),
            "cone_margin": _plain(r.cone_margin),
            "log_contraction": _plain(r.log_contraction),
            "log_cone_growth": _plain(r.log_cone_growth),
            "log_tracked_growth": _plain(r.log_tracked_growth),
            "output_angle": _plain(r.output_angle),
            "caught": int(np.sum(r.caught)),
            "injections": int(r.caught.shape[0]),
            "lyapunov": [_plain(x) for x in r.lyapunov],
            "lyapunov_by": "norm" if r.lyapunov.shape[0] == 1 < v.path.u.shape[-1] else "qr",
        },
        "layers": [layer(i) for i in range(depth)],
        "thresholds": dataclasses.asdict(v.thresholds),
    }
