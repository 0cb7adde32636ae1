"""The nouns of the theorem: chains, triplets, verdicts, thresholds, tolerance.

Everything here is a value. Containers are pytrees, so `jax.vmap` and `jax.jit`
see through them; validation happens when a *user* builds one, never when JAX
rebuilds one from leaves.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

_T = TypeVar("_T")


@dataclass_transform(frozen_default=True, eq_default=False)
def container(cls: type[_T]) -> type[_T]:
    """Make a frozen dataclass that is a pytree, rebuilt from leaves without its constructor.

    Off-the-shelf decorators run `__init__` or `__post_init__` when JAX rebuilds a value, which
    trips over batched leaves, shape structs and the type-checking hook; this one does not.
    """
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
    names = tuple(field.name for field in dataclasses.fields(cls))  # pyright: ignore[reportArgumentType]

    def flatten_with_keys(value: Any) -> tuple[Any, None]:
        return tuple((jax.tree_util.GetAttrKey(n), getattr(value, n)) for n in names), None

    def flatten(value: Any) -> tuple[Any, None]:
        return tuple(getattr(value, n) for n in names), None

    def unflatten(_: None, leaves: Any) -> Any:
        value = object.__new__(cls)
        for name, leaf in zip(names, leaves, strict=True):
            object.__setattr__(value, name, leaf)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


class InputError(ValueError):
    """Report what a user passed wrongly: what was got, what was expected, what to type."""


def refuse(got: str, expected: str, hint: str) -> NoReturn:
    """Raise the one kind of error a user sees, in the one form the CLI prints.

    Examples
    --------
    >>> refuse("width=0", "width >= 1", "--width 64")
    Traceback (most recent call last):
    ...
    spectral_theorem.types.InputError: got width=0; expected width >= 1; try --width 64
    """
    raise InputError(f"got {got}; expected {expected}; try {hint}")


class Verdict(enum.IntEnum):
    """Say what is known of a statement. UNDECIDED is 0, so a zeroed field never certifies."""

    UNDECIDED = 0
    HOLDS = 1
    VIOLATED = 2
    NOT_APPLICABLE = 3


class Reason(enum.IntEnum):
    """Say why a verdict is not a plain HOLDS or VIOLATED."""

    NONE = 0
    WITHIN_TOLERANCE = 1
    TIE = 2
    UNRESOLVED = 3
    NAN = 4
    NO_CONTEXT = 5
    SINGLE_LAYER = 6
    VACUOUS = 7
    NEEDS_CONDITION = 8
    EQUAL_BY_CONSTRUCTION = 9
    UNSURE_SIGN = 10
    DUALITY_GAP = 11


class Regime(enum.IntEnum):
    """Name what a chain is certified to do; INDETERMINATE when no certificate applies."""

    INDETERMINATE = 0
    DISPERSIVE = 1
    ATTRACTOR = 2


def as_member(code: Any, kind: type[enum.IntEnum]) -> Any:
    """Turn an integer code into an Enum member outside jit; leave tracers alone.

    Batched codes become a NumPy object array of members.
    """
    if isinstance(code, Tracer):
        return code
    codes = np.asarray(code)
    if codes.ndim == 0:
        return kind(int(codes))
    members = np.asarray([kind(int(c)) for c in codes.flat], dtype=object)
    return members.reshape(codes.shape)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Thresholds:
    r"""Hold the numbers that stand for the theorem's "much less than".

    Parameters
    ----------
    gain, cumulative_gain : H1, :math:`\rho_j \ge` gain and :math:`S_{L,k} \ge` cumulative_gain.
    alignment : H2, :math:`\varepsilon_\kappa L \le` alignment.
    gamma_min, coherence : H3, floor of :math:`\gamma` and of the coherence value.
    purity : H4, :math:`\xi L/\gamma \le` purity.
    dispersion_constant, dispersion_rate : :math:`K_0` and :math:`\delta` (nats per layer): a chain is
        dispersive when :math:`\log\mathrm{bound}_k \le \log K_0 - \delta(L-k)` for all k.
    contraction : largest product of cone contractions that counts as an attractor.

    Raises
    ------
    InputError
        If a threshold is not a finite number, or is not positive where it must be.

    Notes
    -----
    K0, delta and contraction are free choices of this project, not of the paper.

    Examples
    --------
    >>> Thresholds(purity=0.5).purity
    0.5
    """

    gain: float = 1.0
    cumulative_gain: float = 1.0
    alignment: float = 0.1
    gamma_min: float = 0.1
    coherence: float = 1.0 / math.sqrt(2.0)
    purity: float = 0.1
    dispersion_constant: float = 10.0
    dispersion_rate: float = 0.01
    contraction: float = 0.1

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                refuse(
                    f"threshold {field.name}={value!r}",
                    "a finite number > 0",
                    f"Thresholds({field.name}={field.default})",
                )


def _checked_array(name: str, value: Any, rank: int, symbol: str) -> Any:
    """Accept a float32/float64 array of the given rank unchanged; refuse anything else."""
    if isinstance(value, (list, tuple)):
        value = np.asarray(value)
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        refuse(f"{name} of type {type(value).__name__}", f"an array {symbol}", f"jnp.asarray({name})")
    if jnp.dtype(value.dtype) not in (jnp.dtype("float32"), jnp.dtype("float64")):
        refuse(
            f"{name} with dtype {value.dtype}",
            "float32 or float64 (nothing is cast silently)",
            f"{name}.astype('float32')",
        )
    if len(value.shape) != rank:
        refuse(
            f"{name} with shape {tuple(value.shape)}",
            f"rank {rank}, {symbol}",
            "jax.vmap over LayerChain for a batch of chains",
        )
    if 0 in value.shape:
        refuse(
            f"{name} with shape {tuple(value.shape)}", f"no empty axis in {symbol}", "at least one layer and width 1"
        )
    if isinstance(value, Tracer):
        return value
    if value.dtype == np.float64 and not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        refuse(
            f"{name} in float64 while JAX's 64-bit mode is off",
            "float32 arrays, or the 64-bit mode",
            "jax.config.update('jax_enable_x64', True)",
        )
    if not np.isfinite(np.asarray(value)).all():  # on the host: inside a user's jit jnp would trace it
        refuse(f"{name} with non-finite entries", "finite numbers only", f"jnp.isfinite({name}).all()")
    return jnp.asarray(value)


@container
class LayerChain:
    r"""Hold the layer Jacobians of one stack, :math:`J_l = W_l J_{l-1} + G_l`.

    Parameters
    ----------
    propagators : (L, D, D)
        :math:`W_l = I + \partial f_l/\partial h_{l-1}`, layers in order.
    injections : (L, D, C), optional
        :math:`G_l = \partial f_l/\partial c`. Absent: a chain without context.
    initial : (D, C), optional
        :math:`J_0 = dh_0/dc`, when the first state depends on the context.

    Raises
    ------
    InputError
        On wrong ranks, disagreeing D, L or C, an empty axis, float16/bfloat16/integer entries,
        non-finite entries, or float64 while JAX's 64-bit mode is off. Inside jit only what the
        trace knows (shapes and dtypes) is checked.

    Notes
    -----
    Batches are made by `jax.vmap`; a batched chain is this same container with longer leaves.

    References
    ----------
    docs/notation.md; the recursion is the paper's (arXiv 2604.08591, section 2).

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> chain = LayerChain(jnp.ones((3, 2, 2)), jnp.ones((3, 2, 5)))
    >>> chain.depth, chain.width, chain.context_size
    (3, 2, 5)
    """

    propagators: Any
    injections: Any = None
    initial: Any = None

    def __post_init__(self) -> None:
        w = _checked_array("propagators", self.propagators, 3, "(L, D, D)")
        depth, width = w.shape[:2]
        if w.shape[2] != width:
            refuse(f"propagators with shape {tuple(w.shape)}", "square matrices (L, D, D)", "the state's Jacobian")
        object.__setattr__(self, "propagators", w)
        sizes = {}
        for name, rank, symbol in (("injections", 3, "(L, D, C)"), ("initial", 2, "(D, C)")):
            if getattr(self, name) is None:
                continue
            g = _checked_array(name, getattr(self, name), rank, symbol)
            wanted = (depth, width) if rank == 3 else (width,)
            if tuple(g.shape[:-1]) != wanted:
                refuse(
                    f"{name} with shape {tuple(g.shape)} beside propagators {tuple(w.shape)}",
                    f"{symbol} with L={depth}, D={width}",
                    "the same layers and width in both",
                )
            if g.dtype != w.dtype:
                refuse(
                    f"{name} in {g.dtype} beside propagators in {w.dtype}", "one dtype", f"{name}.astype('{w.dtype}')"
                )
            sizes[name] = g.shape[-1]
            object.__setattr__(self, name, g)
        if len(set(sizes.values())) > 1:
            refuse(f"context sizes {sizes}", "one C", "the same context in injections and initial")

    @property
    def depth(self) -> int:
        """Number of layers L."""
        return self.propagators.shape[-3]

    @property
    def width(self) -> int:
        """State size D."""
        return self.propagators.shape[-1]

    @property
    def state_size(self) -> int:
        """Size of the state that rounding is counted in; more than D where few numbers stand for a wider state."""
        return self.width

    @property
    def context_size(self) -> int:
        """Context size C; 0 when there is no context."""
        for g in (self.injections, self.initial):
            if g is not None:
                return g.shape[-1]
        return 0

    @property
    def dtype(self) -> Any:
        """Floating-point type of every entry."""
        return self.propagators.dtype


def one_chain(chain: Any) -> Any:
    """Return a chain as it is; refuse anything else, and a batch of chains where one is meant."""
    w = getattr(chain, "propagators", None)
    if w is None:
        refuse(
            f"a chain of type {type(chain).__name__}",
            "a LayerChain or an OperatorChain",
            "st.LayerChain(propagators, injections)",
        )
    if not callable(w) and w.ndim != 3:
        refuse(f"a batch of chains, propagators {tuple(w.shape)}", "one chain", "st.verify_many, or jax.vmap")
    return chain


@container
class Triplets:
    r"""Hold the leading singular triplets of every :math:`W_l`, with their error bars.

    Attributes
    ----------
    sigma : (L, 2)  :math:`\sigma_1, \sigma_2` (second 0 when D=1).
    u, v : (L, D)  leading left/right singular vectors, `W @ v == sigma * u`; largest |entry| of u positive.
    xi : (L,)  :math:`\sigma_2/\sigma_1` (0 when D=1; 1 for a zero matrix, whose vectors mean nothing).
    kappa : (L-1,)  :math:`v_{l+1}^\top u_l`; entry i couples layers i+1 and i+2.
    misalignment : (L-1,)  :math:`s_l = \|v_{l+1} - \kappa_l u_l\|`, never from 1 - kappa**2.
    alignment_defect : (L-1,)  :math:`1-|\kappa_l| = \tfrac12\|u_l \mp v_{l+1}\|^2`.
    rho, lam : (L-1,)  :math:`\sigma_{1,l}|\kappa_l|` and its logarithm (nats per layer).
    residual : (L,)  certified (dense) or observed (Krylov) residual, absolute.
    gap : (L,)  :math:`\sigma_1-\sigma_2`, absolute.
    vector_error : (L,)  angle (radians) within which u and v are known, Wedin; pi/2 when nothing is known.
    coupling_error : (L-1,)  angle error of :math:`\varphi_l = \angle(u_l, v_{l+1})`.
    kappa_error, rho_error, lam_error : (L-1,)  what that angle error means for each.
    sigma_error, sigma2_error, xi_error : (L,)  error bars of :math:`\sigma_1`, :math:`\sigma_2` and :math:`\xi`.
    resolved : (L,) bool  residual/gap <= 1e-3 and gap > 64 D eps sigma_1.
    certified : (L,) bool  True for a dense SVD, and where a Cholesky factorisation proves that nothing larger is
        left; False for a converged estimate.
    U, V : (L, D, K), sigma_top : (L, K+1)  leading K for the top-K bound; last entry 0 when K=D.
    """

    sigma: Float[Array | np.ndarray, "*batch L two"]
    u: Float[Array | np.ndarray, "*batch L D"]
    v: Float[Array | np.ndarray, "*batch L D"]
    xi: Float[Array | np.ndarray, "*batch L"]
    kappa: Float[Array | np.ndarray, "*batch couplings"]
    misalignment: Float[Array | np.ndarray, "*batch couplings"]
    alignment_defect: Float[Array | np.ndarray, "*batch couplings"]
    rho: Float[Array | np.ndarray, "*batch couplings"]
    lam: Float[Array | np.ndarray, "*batch couplings"]
    residual: Float[Array | np.ndarray, "*batch L"]
    gap: Float[Array | np.ndarray, "*batch L"]
    vector_error: Float[Array | np.ndarray, "*batch L"]
    coupling_error: Float[Array | np.ndarray, "*batch couplings"]
    kappa_error: Float[Array | np.ndarray, "*batch couplings"]
    rho_error: Float[Array | np.ndarray, "*batch couplings"]
    lam_error: Float[Array | np.ndarray, "*batch couplings"]
    sigma_error: Float[Array | np.ndarray, "*batch L"]
    sigma2_error: Float[Array | np.ndarray, "*batch L"]
    xi_error: Float[Array | np.ndarray, "*batch L"]
    resolved: Bool[Array | np.ndarray, "*batch L"]
    certified: Bool[Array | np.ndarray, "*batch L"]
    U: Float[Array | np.ndarray, "*batch L D K"]
    V: Float[Array | np.ndarray, "*batch L D K"]
    sigma_top: Float[Array | np.ndarray, "*batch L K1"]


@container
class Condition:
    """Hold one hypothesis as checked: a number, its threshold, its margin, and what follows.

    `margin` > 0 means the statement holds as computed; `verdict` also weighs the error bars.
    `error` is the half-width of the interval in which the exact value lies; `layer` is the
    1-based layer (or injection) at which the binding value is attained, 0 if there is none.
    """

    value: Float[Array | np.ndarray, "*batch"]
    threshold: Float[Array | np.ndarray, "*batch"]
    margin: Float[Array | np.ndarray, "*batch"]
    error: Float[Array | np.ndarray, "*batch"]
    layer: Int[Array | np.ndarray, "*batch"]
    code: Int[Array | np.ndarray, "*batch"]
    reason_code: Int[Array | np.ndarray, "*batch"]
    parts: Mapping[str, "Condition"] = dataclasses.field(default_factory=dict)

    @property
    def verdict(self) -> Any:
        """`Verdict` member outside jit, integer code inside."""
        return as_member(self.code, Verdict)

    @property
    def reason(self) -> Any:
        """`Reason` member outside jit, integer code inside."""
        return as_member(self.reason_code, Reason)


@container
class Claim:
    """Hold one statement as evaluated on one chain: left <= right (or left == right).

    `log_left`, `log_right` are natural logarithms of the two sides (of the worst entry, for
    statements over many layers); `slack` and `tolerance` are in units of the statement's scale.
    """

    log_left: Float[Array | np.ndarray, "*batch"]
    log_right: Float[Array | np.ndarray, "*batch"]
    slack: Float[Array | np.ndarray, "*batch"]
    tolerance: Float[Array | np.ndarray, "*batch"]
    code: Int[Array | np.ndarray, "*batch"]
    reason_code: Int[Array | np.ndarray, "*batch"]

    @property
    def verdict(self) -> Any:
        """`Verdict` member outside jit, integer code inside."""
        return as_member(self.code, Verdict)

    @property
    def reason(self) -> Any:
        """`Reason` member outside jit, integer code inside."""
        return as_member(self.reason_code, Reason)


def tolerance(chain: Any, scale: Any = 1.0) -> Any:
    r"""Return the one rounding allowance of this project.

    .. math:: 16\,\mathrm{eps}\,L\,\sqrt D\cdot\mathrm{scale}

    Parameters
    ----------
    chain : anything with `depth`, `width` and `dtype`; where it has a `state_size`, D is that.
    scale : number or array; :math:`\sum_k S_{L,k}\|G_k\|_F` for residuals and bounds,
        :math:`S_{L,k}` for propagator norms, 1 for conditions.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> float(tolerance(LayerChain(jnp.ones((2, 4, 4), dtype='float32')))) < 1e-5
    True
    """
    eps = float(jnp.finfo(chain.dtype).eps)
    return 16.0 * eps * chain.depth * math.sqrt(getattr(chain, "state_size", chain.width)) * scale
