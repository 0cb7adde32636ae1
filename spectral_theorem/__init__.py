"""Verify the Spectral Sensitivity Theorem numerically.

Names are resolved on first use, so that `spectral-theorem --help` loads no JAX.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# Batched LAPACK calls that run at once hold one worker thread each while they wait for others; on a machine with two
# cores XLA's CPU client may then wait for ever. More threads than `verify` has such calls prevent it, for as many
# calls as `verify_batches` keeps in flight. Read once, when the client starts; no JAX setting is touched, and a value
# that is already there stays.
SPARE_THREADS = str(max(16 * min(os.cpu_count() or 1, 4), os.cpu_count() or 1))
os.environ.setdefault("PJRT_NPROC", SPARE_THREADS)

__version__ = "0.1.0"

_HOME = {
    "LayerChain": "types",
    "Triplets": "types",
    "Condition": "types",
    "Claim": "types",
    "Thresholds": "types",
    "Verdict": "types",
    "Reason": "types",
    "Regime": "types",
    "InputError": "types",
    "tolerance": "types",
    "OperatorChain": "linearization",
    "layers_of": "linearization",
    "linearize": "linearization",
    "operators": "linearization",
    "decompose": "triplets",
    "context_jacobian": "path",
    "dominant_path": "path",
    "coherence_direction": "coherence",
    "check_conditions": "conditions",
    "residual_bounds": "bounds",
    "depth_profile": "profile",
    "phase": "regimes",
    "classify": "regimes",
    "lyapunov_exponents": "regimes",
    "verify": "verification",
    "verify_many": "verification",
    "verify_batches": "manychains",
    "stream": "deep",
    "certify": "certification",
    "frobenius_norm": "trace",
    "compare_scopes": "scopes",
    "spectrum": "observables",
    "effective_rank": "observables",
    "participation_ratio": "observables",
    "spectral_slope": "observables",
    "kirchhoff_index": "observables",
    "kirchhoff_scale_free": "observables",
    "observe": "observables",
    "Monitor": "monitor",
    "pooled": "pooling",
    "pooled_change": "pooling",
}
_MODULES = (
    "alarms",
    "association",
    "audio",
    "behaviour",
    "coupling",
    "datasets",
    "divergence",
    "ensembles",
    "resampling",
    "scoring",
    "statistics",
    "stress",
    "study",
    "tables",
    "testing",
    "whisper",
)

if TYPE_CHECKING:
    from . import (
        alarms,
        association,
        audio,
        behaviour,
        coupling,
        datasets,
        divergence,
        ensembles,
        resampling,
        scoring,
        statistics,
        stress,
        study,
        tables,
        testing,
        whisper,
    )
    from .bounds import residual_bounds
    from .certification import certify
    from .coherence import coherence_direction
    from .conditions import check_conditions
    from .deep import stream
    from .linearization import OperatorChain, layers_of, linearize, operators
    from .manychains import verify_batches
    from .monitor import Monitor
    from .observables import (
        effective_rank,
        kirchhoff_index,
        kirchhoff_scale_free,
        observe,
        participation_ratio,
        spectral_slope,
        spectrum,
    )
    from .path import context_jacobian, dominant_path
    from .pooling import pooled, pooled_change
    from .profile import depth_profile
    from .regimes import classify, lyapunov_exponents, phase
    from .scopes import compare_scopes
    from .trace import frobenius_norm
    from .triplets import decompose
    from .types import (
        Claim,
        Condition,
        InputError,
        LayerChain,
        Reason,
        Regime,
        Thresholds,
        Triplets,
        Verdict,
        tolerance,
    )
    from .verification import verify, verify_many

__all__ = sorted([*_HOME, *_MODULES])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module 'spectral_theorem' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
