r"""Is the attractor literal? What the decoder really does with perturbed states, perturbed sound, and other sound.

Three readings side by side: the cone certificate from scalars of layers, Lyapunov exponents of the Jacobians, and the
trajectory itself under perturbations of growing size.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .measure import chance_alignment
from .regimes import classify
from .responses import Responses, responses
from .sections import Columns, Section, as_cells, mean_exceeds, mean_of, not_computed, rows_where, shown
from .tables import Column, Table
from .tokenchains import ClipTokens, token_propagators
from .triplets import decompose
from .types import LayerChain
from .whisper import WhisperModel, token_layers

ID, TITLE = "attractor", "Is the attractor literal?"
STATE, CONTEXT, SWAP = "state", "encoder output", "other sound"
SIZES = (1e-3, 1e-2, 0.1, 1.0)
ALIGNED = 1 / math.sqrt(2)  # more of the answer's square along u_L than across it


def attraction_rows(
    key: Any,
    model: WhisperModel,
    clip: ClipTokens,
    *,
    others: Sequence[Any] = (),
    sizes: Sequence[float] = SIZES,
    directions: int = 4,
    labels: Mapping[str, Any],
) -> list[dict[str, Any]]:
    r"""Perturb the state and the encoder output at every step of a clip, and compare with what certificates say.

    Parameters
    ----------
    key : PRNG key of the directions. model, clip : from `clip_tokens`.
    others : encoder outputs (F, D) of other clips, towards which the encoder output is moved; at size 1 it is theirs.
    sizes : of the perturbation, relative to the norm of what is perturbed; towards other sound, the part of the way.
    directions : random directions of each kind.
    labels : the same in every row, such as clip, cluster, condition.

    Returns
    -------
    list of flat rows
        One per step, kind and size: `cosine` with :math:`u_L` and `cosine_top` with the leading left vector of
        :math:`W_L\cdots W_1`, means over directions; `agreement` and `dimensions` of the answers; `growth`,
        :math:`\log\|\Delta_L\|/\|\Delta_0\|` for states and relative to the norms of what changes for sound, nats;
        `nonlinearity`; `cone_margin`, `lyapunov` (nats per layer), `regime`.

    Notes
    -----
    The past is frozen, as in token scope. One run of the decoder's blocks per perturbation.
    """
    w = token_propagators(model, clip)
    rows = []
    for number, (step, position) in enumerate(zip(clip.steps, clip.positions, strict=True)):
        at = token_layers(model, clip.encoded, clip.transcription.sequence, position)
        chain = LayerChain(w[number])
        t = decompose(chain)
        report = classify(chain, t)
        product = jnp.eye(chain.width, dtype=chain.dtype)
        for one in chain.propagators:
            product = one @ product / jnp.linalg.norm(one @ product)
        top = jnp.linalg.svd(product)[0][:, 0]
        about = {
            "cone_margin": float(report.cone_margin),
            "lyapunov": float(report.lyapunov[0]),
            "regime": report.regime.name,
        }
        state_key, context_key = jax.random.split(jax.random.fold_in(key, step))
        kinds: dict[str, Any] = {
            STATE: jax.random.normal(state_key, (directions, *at.state.shape), at.state.dtype),
            CONTEXT: jax.random.normal(context_key, (directions, *at.context.shape), at.context.dtype),
        }
        if others:
            kinds[SWAP] = jnp.stack([jnp.asarray(other, at.context.dtype) - at.context for other in others])
        for kind, towards in kinds.items():
            found = responses(
                at.layers,
                at.state,
                at.context,
                directions=towards,
                sizes=sizes,
                axes=jnp.stack([t.u[-1], top]),
                of_context=kind != STATE,
                unit=kind != SWAP,
            )
            for i, size in enumerate(sizes):
                rows.append({**labels, "step": step, "kind": kind, "size": size, **_row(found, i, kind), **about})
    return rows


def _row(found: Responses, i: int, kind: str) -> dict[str, float]:
    mean = lambda x: float(x[np.isfinite(x)].mean()) if np.isfinite(x).any() else float("nan")
    start = np.log(found.sizes[i] * found.reach)
    relative = found.log_relative[i, :, -1] - start
    growth = found.log_size[i, :, -1] - found.log_size[i, :, 0] if kind == STATE else relative
    return {
        "cosine": mean(found.cosine[i, :, 0]),
        "cosine_top": mean(found.cosine[i, :, 1]),
        "agreement": float(found.agreement[i]),
        "dimensions": float(found.dimensions[i]) / len(found.reach),
        "growth": mean(growth),
        "relative_growth": mean(relative),
        "nonlinearity": mean(found.nonlinearity[i]),
    }


def attraction_section(columns: Columns, width: int, *, seed: int = 0) -> Section:
    r"""Say whether answers line up, whether they shrink, and what the certificates say.

    Parameters
    ----------
    columns : of the rows of `attraction_rows`. width : D, for what chance gives.

    Returns
    -------
    Section
        The statement is that the answer to a small perturbation of the sound lies along :math:`u_L`,
        :math:`|\cos|` above :math:`1/\sqrt2`.
    """
    if "kind" not in columns or not len(columns["kind"]):
        return not_computed(ID, TITLE, "no step was perturbed")
    chance = chance_alignment(width)
    smallest = float(np.min(columns["size"]))
    of = lambda quantity, **chosen: _mean(columns, quantity, seed, **chosen)
    along = of("cosine", kind=CONTEXT, size=smallest)
    asked = rows_where(columns, kind=CONTEXT, size=smallest)
    verdict = mean_exceeds(asked["cosine"], asked["cluster"], ALIGNED, seed=seed)
    cone = of("cone_margin", kind=STATE, size=smallest)
    certified = float(np.mean(rows_where(columns, kind=STATE, size=smallest)["regime"] == "ATTRACTOR"))
    growth, relative = (of(name, kind=STATE, size=smallest) for name in ("growth", "relative_growth"))
    top = of("cosine_top", kind=CONTEXT, size=smallest)
    lead = {"HOLDS": "lies along u_L", "VIOLATED": "does not lie along u_L"}.get(
        verdict, "may or may not lie along u_L"
    )
    sentence = (
        f"The answer to a small change of the sound {lead}: |cos| is {shown(along)}, against {ALIGNED:.3g} for half of "
        f"its square and {chance:.3g} for random directions; along the leading direction of the whole product it is "
        f"{shown(top)}. Small random changes of the state grow by {shown(growth)} nats through all layers, "
        f"{shown(relative)} relative to the state's own norm. The cone certificate holds at {certified:.0%} of "
        f"the tokens (margin {shown(cone)}; above 0 certifies)."
    )
    quantities = ("cosine", "cosine_top", "agreement", "dimensions", "relative_growth", "nonlinearity")
    names = (
        "|cos| with u_L",
        "|cos| with top of product",
        "agreement",
        "dimensions / m",
        "relative growth",
        "nonlinearity",
    )
    units = {"relative growth": "nats"}
    rows = []
    for condition in dict.fromkeys(columns["condition"].tolist()):
        for kind in dict.fromkeys(columns["kind"].tolist()):
            for size in sorted(set(columns["size"].tolist())):
                values = [of(q, condition=condition, kind=kind, size=size) for q in quantities]
                rows.append((condition, kind, size, *[part for v in values for part in as_cells(v)]))
    heads = [Column(title, units.get(name, "")) for name in names for title in (name, f"{name} low", f"{name} high")]
    table = Table(
        "attractor",
        1,
        "What layers do with perturbations of growing size, relative to the norm of what is perturbed; "
        f"|cos| of random directions is {chance:.3g}; agreement is |cos| between answers to different perturbations; "
        "intervals of 95 % by bootstrap over clips.",
        (Column("condition"), Column("perturbed"), Column("size"), *heads),
        tuple(rows),
    )
    return Section(ID, TITLE, verdict, sentence, (table,), {"chance": chance, "aligned": ALIGNED})


def _mean(columns: Columns, quantity: str, seed: int, **chosen: Any) -> Any:
    rows = rows_where(columns, **chosen)
    return mean_of(rows[quantity], rows["cluster"], seed=seed)
