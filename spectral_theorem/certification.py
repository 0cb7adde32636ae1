r"""Turn verdicts within rounding into proofs: the same inequalities in ball arithmetic, at rising precision.

What is proved is a statement about real numbers, for the given floats taken as exact. Where float64 leaves a slack
within its allowance, or cannot tell tied values apart, the entry is worked out in Arb balls until the slack's ball
excludes 0. Sides that are equal in exact arithmetic never come apart; they are reported as agreeing to so many digits.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from .ballchain import BallChain, NotApplicable, Unresolved
from .ballclaims import CLAIM_SLACKS, CONDITION_SLACKS, JOINED, Slacks
from .balls import precision
from .claims import CLAIMS, too_loose
from .console import aligned
from .types import LayerChain, Reason, Thresholds, Verdict, refuse
from .verification import Verification, verify

GUARD_BITS = 128
RUNGS = 3
LARGEST_BITS = 4096


@dataclasses.dataclass(frozen=True)
class Certified:
    """Hold what ball arithmetic says of one statement.

    Attributes
    ----------
    verdict : HOLDS and VIOLATED are proofs; UNDECIDED and NOT_APPLICABLE are not verdicts on the inequality.
    before : the verdict in floating point.
    says : how it was reached, in a few words.
    low, high : ends of the least slack, right side minus left; None where it was not worked out.
    bits : precision of the last attempt.
    seconds : what it cost, shared work counted where it was first asked for.
    """

    verdict: Verdict
    before: Verdict
    says: str
    low: float | None
    high: float | None
    bits: int
    seconds: float

    @property
    def proof(self) -> bool:
        """Whether the verdict is a proof."""
        return self.says == "proved"


def certify(
    chain: Any,
    thresholds: Thresholds | None = None,
    *,
    found: Verification | None = None,
    everything: bool = False,
    names: Iterable[str] | None = None,
    slacks: Mapping[str, Callable[..., Slacks]] | None = None,
) -> dict[str, Certified]:
    """Prove or refute, in ball arithmetic, what floating point leaves within its allowance.

    Parameters
    ----------
    chain : LayerChain; its entries are taken as exact.
    thresholds : as in `verify`.
    found : the verification in floating point, if there is one already.
    everything : every applicable statement, not only those within the allowance.
    names : look at these statements only.
    slacks : statements to use instead of the package's own, by name.

    Returns
    -------
    dict
        Name of a condition, a part of one or a claim to `Certified`. Empty where nothing was in doubt.

    Raises
    ------
    InputError
        When python-flint is not installed, or the chain is no `LayerChain`.

    Notes
    -----
    Precision starts at 128 bits and what the products of the chain lose, and doubles twice for what is still
    open. A chain so deep that it would start beyond 4,096 bits is left undecided. Cost: about ten products of
    (D, D) ball matrices per layer and 16 digits for the triplets, then what each statement needs.

    References
    ----------
    docs/theory/rigour.md#proofs-by-ball-arithmetic.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import spectral_theorem as st
    >>> chain = st.LayerChain(jnp.asarray([[[2.0, 0.0], [0.0, 1.0]]] * 3), jnp.ones((3, 2, 1)))
    >>> limits = st.Thresholds(gain=2.0)   # rho is 2, exactly at the threshold
    >>> st.verify(chain, limits).conditions.stability.verdict.name, certify(chain, limits)["gain"].verdict.name
    ('UNDECIDED', 'HOLDS')
    """
    if not isinstance(chain, LayerChain):
        refuse(f"a chain of type {type(chain).__name__}", "a LayerChain, whose entries are known", "--dtype float64")
    t = Thresholds() if thresholds is None else thresholds
    found = verify(chain, t) if found is None else found
    if chain.depth - (chain.initial is None) < 1:
        return {}
    ladder = _Ladder(chain, t, everything, dict(slacks or {}), _with_needs(names))
    return ladder.climb(found)


def _with_needs(names: Iterable[str] | None) -> set[str] | None:
    """Add the parts of the conditions that claims need; None means everything."""
    if names is None:
        return None
    needs = [need for name in names for need in (*(CLAIMS[name].needs if name in CLAIMS else ()), name)]
    return {part for need in needs for part in JOINED.get(need, (need,))}


class _Ladder:
    """Work on one chain at one precision after another, and keep what is settled."""

    def __init__(
        self,
        chain: LayerChain,
        thresholds: Thresholds,
        everything: bool,
        slacks: dict[str, Callable[..., Slacks]],
        names: set[str] | None,
    ) -> None:
        given = (chain.propagators, chain.injections, chain.initial)
        self.arrays = [None if x is None else np.asarray(x) for x in given]
        self.thresholds, self.everything, self.names = thresholds, everything, names
        self.slacks = {**CONDITION_SLACKS, **CLAIM_SLACKS, **slacks}
        lost = int(np.ceil(chain.depth * np.log2(chain.width + 1)))
        self.rungs = [bits for i in range(RUNGS) if (bits := (GUARD_BITS << i) + lost) <= LARGEST_BITS]
        self.chains: dict[int, BallChain] = {}
        self.settled: dict[str, Certified] = {}

    def climb(self, found: Verification) -> dict[str, Certified]:
        """Go through parts of conditions first, since claims need them."""
        conditions, claims = found.conditions, found.claims
        codes: dict[str, Verdict] = {}
        for name in CONDITION_SLACKS:
            row = conditions[name]
            codes[name] = self._certified(name, row.verdict, row.reason, _near(row, self.everything))
        for name, parts in JOINED.items():
            codes[name] = self._joined(name, parts, codes, conditions[name].verdict)
        for name, spec in CLAIMS.items():
            claim = claims[name]
            needs = [codes[need] for need in spec.needs]
            before, reason = claim.verdict, claim.reason
            if spec.needs and not too_loose(spec, self.thresholds):
                if any(v in (Verdict.VIOLATED, Verdict.NOT_APPLICABLE) for v in needs):
                    codes[name] = self._follows(name, before, Verdict.NOT_APPLICABLE)
                    continue
                if Verdict.UNDECIDED in needs:
                    codes[name] = self._follows(name, before, Verdict.UNDECIDED)
                    continue
                freed = reason == Reason.NEEDS_CONDITION
            else:
                freed = False
            codes[name] = self._certified(name, before, reason, freed or _near(claim, self.everything))
        return self.settled

    def _follows(self, name: str, before: Verdict, verdict: Verdict) -> Verdict:
        """Record a claim that stands or falls with a condition, if that changed."""
        if verdict != before:
            self.settled[name] = Certified(verdict, before, "follows from its conditions", None, None, 0, 0.0)
        return verdict

    def _joined(self, name: str, parts: tuple[str, ...], codes: Mapping[str, Verdict], before: Verdict) -> Verdict:
        if not any(part in self.settled for part in parts):
            return before
        values = [codes[part] for part in parts]
        order = (Verdict.VIOLATED, Verdict.UNDECIDED, Verdict.HOLDS, Verdict.NOT_APPLICABLE)
        verdict = next(v for v in order if v in values)
        decisive = [self.settled[p] for p in parts if p in self.settled and self.settled[p].verdict == verdict]
        # "and" is proved when all its parts are, and refuted by one
        proved = [p in self.settled and self.settled[p].proof for p in parts if codes[p] == verdict]
        sure = any(proved) if verdict == Verdict.VIOLATED else all(proved)
        says = "proved" if sure and verdict != Verdict.UNDECIDED else "follows from its parts"
        low, high = (decisive[0].low, decisive[0].high) if decisive else (None, None)
        bits = max((d.bits for d in decisive), default=0)
        self.settled[name] = Certified(verdict, before, says, low, high, bits, 0.0)
        return verdict

    def _certified(self, name: str, before: Verdict, reason: Reason, wanted: bool) -> Verdict:
        if not wanted or (before == Verdict.NOT_APPLICABLE and reason != Reason.NEEDS_CONDITION):
            return before
        if reason == Reason.VACUOUS or (self.names is not None and name not in self.names):
            return before
        start = time.perf_counter()
        verdict, says, low, high, bits = self._settle(name, before)
        self.settled[name] = Certified(verdict, before, says, low, high, bits, time.perf_counter() - start)
        return verdict

    def _settle(self, name: str, before: Verdict) -> tuple[Verdict, str, float | None, float | None, int]:
        verdict, says, low, high, bits = before, "too deep for ball arithmetic", None, None, 0
        for bits in self.rungs:
            with precision(bits):
                if bits not in self.chains:
                    self.chains[bits] = BallChain(*self.arrays)
                try:
                    slacks = self.slacks[name](self.chains[bits], self.thresholds)
                except NotApplicable:
                    return Verdict.NOT_APPLICABLE, "its certificate does not exist", None, None, bits
                except (Unresolved, ZeroDivisionError) as problem:
                    verdict, says = Verdict.UNDECIDED, f"open: {problem}"
                    continue
                if not slacks:
                    return Verdict.HOLDS, "vacuous", None, None, bits
                low, high = _ends(slacks)
                if any(s.ball < 0 for s in slacks):
                    return Verdict.VIOLATED, "proved", low, high, bits
                open_entries = [s for s in slacks if not s.ball >= 0]
                if not open_entries:
                    return Verdict.HOLDS, "proved", low, high, bits
                if all(s.equal for s in open_entries):
                    return Verdict.HOLDS, "equal by construction; sides agree", low, high, bits
                verdict, says = Verdict.UNDECIDED, "sides agree"
        return verdict, says, low, high, bits


def _ends(slacks: Slacks) -> tuple[float, float]:
    """Return the ends of the least slack, in float64."""
    least = min(slacks, key=lambda s: float(s.ball.lower()))
    return float(least.ball.lower()), float(least.ball.upper())


def _near(row: Any, everything: bool) -> bool:
    """Say whether floating point left a statement in doubt, for another reason than what it needs."""
    if everything:
        return row.reason != Reason.NEEDS_CONDITION
    if row.verdict == Verdict.UNDECIDED:
        return row.reason not in (Reason.NEEDS_CONDITION, Reason.NO_CONTEXT, Reason.SINGLE_LAYER)
    return row.reason == Reason.EQUAL_BY_CONSTRUCTION


def summary(results: Mapping[str, Certified]) -> dict[str, Any]:
    """Return results as plain values, with what they cost together.

    Examples
    --------
    >>> summary({})
    {'seconds': 0.0, 'statements': {}}
    """
    return {
        "seconds": round(sum((r.seconds for r in results.values()), 0.0), 3),
        "statements": {
            name: {
                "verdict": r.verdict.name,
                "before": r.before.name,
                "says": r.says,
                "slack_low": r.low,
                "slack_high": r.high,
                "bits": r.bits,
                "seconds": round(r.seconds, 3),
            }
            for name, r in results.items()
        },
    }


def settle(chain: dict[str, Any], results: Mapping[str, Certified]) -> dict[str, Any]:
    """Return a verification, as `to_dict` gives it, with verdicts as ball arithmetic left them.

    Parameters
    ----------
    chain : the verification; not changed.
    results : of `certify`.
    """
    parts = {part: name for name, entry in chain["conditions"].items() for part in entry["parts"]}

    def renewed(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        entry = {**entry}
        if "parts" in entry:
            entry["parts"] = {part: renewed(part, value) for part, value in entry["parts"].items()}
        if name in results and (name in chain["claims"] or name in chain["conditions"] or name in parts):
            entry |= {"verdict": results[name].verdict.name, "reason": results[name].says}
        return entry

    return {
        **chain,
        "conditions": {name: renewed(name, entry) for name, entry in chain["conditions"].items()},
        "claims": {name: renewed(name, entry) for name, entry in chain["claims"].items()},
        "certified": summary(results),
    }


def certified_text(results: Mapping[str, Certified]) -> str:
    """Say what ball arithmetic came to and what it cost, in a line and a table of what changed.

    Examples
    --------
    >>> certified_text({})
    'ball arithmetic: nothing was within its allowance'
    """
    if not results:
        return "ball arithmetic: nothing was within its allowance"
    proved = sum(r.proof for r in results.values())
    seconds = sum(r.seconds for r in results.values())
    bits = max(r.bits for r in results.values())
    lines = [
        f"ball arithmetic: {len(results)} statements worked out, {proved} proved or refuted, "
        f"in {seconds:.2f} s at up to {bits} bits"
    ]
    rows = [["statement", "in floating point", "now", "least slack, from", "to", ""]]
    for name, r in results.items():
        if r.verdict != r.before or not r.proof:
            ends = ["-" if x is None else f"{x:.3g}" for x in (r.low, r.high)]
            rows.append([name.replace("_", " "), r.before.name, r.verdict.name, *ends, r.says])
    return "\n".join([*lines, aligned(rows, words=1)] if len(rows) > 1 else lines)
