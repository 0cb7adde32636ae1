"""Make decoders of any shape to time the engine on, and the ways to its answers that need no other framework.

A way is a `Side`. Each function here returns the sides of one question at one shape; sides of one question
give the same answer for the same (layer, token), and their times are per (layer, token).
"""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matfree import decomp

from .certificate import certified
from .engine import injection_triplets, layer_triplets, sweep_tokens
from .lanczos import Leading, SingularTriplets
from .scopes import sequence_chain, sequence_triplets
from .timing import Side
from .whisper import Cache, Dims, WhisperModel, blocks, random_model, sensitivity, sequence_maps
from .whisper.chain import run_tokens

HEAD = 64  # width of one attention head in every published Whisper
EARLIER = 4  # positions before the first token: a prompt
TOLERANCE = 1e-5  # residual over sigma1
FEW = 4  # (layer, token) pairs for ways that take each by itself
STEPS = 40  # of matfree, without a stop rule
EXACT = "highest"


@dataclasses.dataclass(frozen=True)
class Shape:
    """Say how large a problem is.

    Parameters
    ----------
    width : D. frames : F, encoder positions. layers : L, decoder blocks. tokens : T, consecutive.

    Examples
    --------
    >>> Shape(384).heads, Shape(384).items
    (6, 16)
    """

    width: int
    frames: int = 1500
    layers: int = 1
    tokens: int = 16

    @property
    def heads(self) -> int:
        """Attention heads."""
        return max(1, self.width // HEAD)

    @property
    def items(self) -> int:
        """Number of (layer, token) pairs."""
        return self.layers * self.tokens

    @property
    def jacobian_flops(self) -> int:
        """Floating-point operations of D tangents through one block, keys and values cached."""
        return 28 * self.width**3 + 4 * self.frames * self.width**2


@dataclasses.dataclass(frozen=True)
class Workload:
    """Hold a decoder, an encoder output and the tokens to look at.

    Parameters
    ----------
    shape : of the problem; a real model's hidden width need not be four times D.
    model : random or real. context : (F, D). sequence : ids. positions : the T places to look at.
    """

    shape: Shape
    model: WhisperModel
    context: Any
    sequence: tuple[int, ...]
    positions: tuple[int, ...]


def random_workload(shape: Shape, seed: int = 0) -> Workload:
    """Make a decoder with random weights of a shape, and draw an encoder output and tokens.

    Examples
    --------
    >>> work = random_workload(Shape(8, frames=5, layers=2, tokens=3))
    >>> work.positions, work.context.shape
    ((4, 5, 6), (5, 8))
    """
    length = EARLIER + shape.tokens
    dims = Dims(
        width=shape.width, mels=2, frames=shape.frames, vocabulary=64, positions=max(64, length), encoder_layers=1,
        encoder_heads=shape.heads, encoder_hidden=1, decoder_layers=shape.layers, decoder_heads=shape.heads,
        decoder_hidden=4 * shape.width,
    )  # fmt: skip
    draw = np.random.default_rng(seed)
    model = random_model(jax.random.key(seed), dims)
    context = jnp.asarray(draw.standard_normal((shape.frames, shape.width)), jnp.float32)
    sequence = tuple(int(token) for token in draw.integers(0, 62, length))
    return Workload(shape, model, context, sequence, tuple(range(EARLIER, length)))


@dataclasses.dataclass(frozen=True)
class Point:
    """Hold one (layer, token): a block's parameters, cross-attention's keys and values, cache, and state."""

    parameters: Any
    crossed: Any
    cache: Cache
    state: Any


def points(work: Workload) -> list[Point]:
    """Run the decoder once and return every (layer, token), layer by layer."""
    run, found = run_tokens(work.model, work.context, work.sequence, work.positions[-1]), []
    for layer in range(work.shape.layers):
        parameters = work.model.parameters["decoder"]["layers"][layer]
        crossed = blocks.cross_keys_values(parameters, work.context, work.model.dims.decoder_heads)
        for position in work.positions:
            cache = Cache(run.keys[layer], run.values[layer], jnp.asarray(position, jnp.int32))
            found.append(Point(parameters, crossed, cache, run.residual[layer, position]))
    return found


def _block(parameters: Any, crossed: Any, cache: Cache, h: Any) -> Any:
    h = blocks.self_attention(parameters, h, cache)
    return blocks.mlp(parameters, blocks.cross_attention_rows(parameters, h[None], crossed, cache.keys.shape[-2])[0])


@jax.jit
def by_jacfwd(parameters: Any, crossed: Any, cache: Cache, h: Any) -> Any:
    """Return one dense W (D, D), all columns at once: the reference."""
    return jax.jacfwd(functools.partial(_block, parameters, crossed, cache))(h)


@jax.jit
def by_chunks(parameters: Any, crossed: Any, cache: Cache, h: Any) -> Any:
    """Return one dense W (D, D), linearised once and applied to 128 columns at a time."""
    _, push = jax.linearize(functools.partial(_block, parameters, crossed, cache), h)
    return jax.lax.map(push, jnp.eye(h.shape[0], dtype=h.dtype), batch_size=128).T


_multiply = jax.jit(functools.partial(jnp.matmul, precision=EXACT))


def yardstick(shape: Shape) -> Side:
    """Return one float32 matrix product with as many operations as `jax.jacfwd` needs for one dense W."""
    columns = shape.jacobian_flops // (2 * shape.width**2)
    a = jax.random.normal(jax.random.key(0), (shape.width, shape.width), jnp.float32)
    b = jax.random.normal(jax.random.key(1), (shape.width, columns), jnp.float32)
    return Side(
        lambda: _multiply(a, b).block_until_ready(),
        f"one product of {shape.width} x {shape.width} by {columns}: jacfwd's operation count",
    )


def layers_of(work: Workload) -> list[sensitivity.TokenFactors]:
    """Return every block's factors at all tokens, of one decoder run."""
    return sensitivity.token_factors(work.model, work.context, work.sequence, work.positions)


def products(factors: list[sensitivity.TokenFactors]) -> Any:
    """Return the dense W of every block and token."""
    return [sensitivity.propagators(one).block_until_ready() for one in factors]


def dense(work: Workload) -> Any:
    """Return the dense W of every block and token, decoder run and factors included."""
    return products(layers_of(work))


def dense_sides(work: Workload) -> dict[str, Side]:
    """Return the ways to the dense W of every (layer, token), and the yardstick."""
    factors = layers_of(work)
    each = points(work)[:FEW]  # nothing is shared between tokens here

    def all_by(one: Any) -> Any:
        return lambda: [one(p.parameters, p.crossed, p.cache, p.state).block_until_ready() for p in each]

    return {
        "gemm": yardstick(work.shape),
        "explicit": Side(lambda: dense(work), "product of factors, from tokens on", work.shape.items),
        "product": Side(lambda: products(factors), "the same, given the factors", work.shape.items),
        "jacfwd": Side(all_by(by_jacfwd), "jax.jacfwd, keys and values cached", len(each)),
        "chunks": Side(all_by(by_chunks), "jax.linearize, 128 columns at a time", len(each)),
    }


def dense_accuracy(work: Workload) -> dict[str, float]:
    """Compare the ways to the first dense W with forward mode in float64 from the same numbers, over its largest entry.

    Notes
    -----
    The product of factors starts at the tokens and so has the rounding of the decoder run as well.
    """
    p = points(work)[0]
    given = (p.parameters, p.crossed, p.cache, p.state)
    with jax.enable_x64(True):
        wide = lambda leaf: leaf.astype("float64") if leaf.dtype == "float32" else leaf
        exact = np.asarray(by_jacfwd(*jax.tree.map(wide, given)))
    ways = {
        "explicit": sensitivity.propagators(layers_of(work)[0])[0],
        "jacfwd": by_jacfwd(*given),
        "chunks": by_chunks(*given),
    }
    error = lambda w, other: float(np.abs(np.asarray(w, np.float64) - np.asarray(other, np.float64)).max())
    found = {f"{name}: error": error(w, exact) for name, w in ways.items()}
    found["explicit beside jacfwd"] = error(ways["explicit"], ways["jacfwd"])
    return {name: value / float(np.abs(exact).max()) for name, value in found.items()}


def triplet_sides(work: Workload) -> dict[str, Side]:
    """Return the ways to the two leading triplets of W at every (layer, token).

    "ours" starts from the tokens and the encoder output. The others are given the dense matrix, which is a
    part of the work only.
    """
    p = points(work)[0]
    w = by_jacfwd(p.parameters, p.crossed, p.cache, p.state).block_until_ready()
    array: Any = np.asarray(w)
    tolerance: Any = TOLERANCE  # scipy's stubs want an integer
    sides = {
        "ours": Side(lambda: leading(work), "from tokens to triplets with residuals", work.shape.items),
        "proven": Side(lambda: proven(work), "and a proof that nothing larger is left", work.shape.items),
        "factors": Side(
            lambda: jax.block_until_ready(layers_of(work)),
            "of it: decoder run, factors",
            work.shape.items,
        ),
        "jnp svd": Side(lambda: _svd(w)[1].block_until_ready(), "jnp.linalg.svd, given W"),
        "matfree": Side(
            lambda: matfree_sigma(w).block_until_ready(), f"matfree, {STEPS} steps, given W; no certificate"
        ),
    }
    try:
        from scipy.sparse.linalg import svds
    except ImportError:
        return sides
    return sides | {
        "scipy svds": Side(
            lambda: svds(array, k=2, tol=tolerance, rng=np.random.default_rng(0)), "scipy svds, k = 2, given W"
        )
    }


def leading(work: Workload) -> list[SingularTriplets]:
    """Return the two leading triplets of W, block by block, all tokens of a block at once."""
    return jax.block_until_ready([layer_triplets(f, tolerance=TOLERANCE) for f in layers_of(work)])


def proven(work: Workload) -> Any:
    """Return the two leading triplets of W with a proof that nothing larger is left: the dense W, and Cholesky."""
    found = []
    for f in layers_of(work):
        t = layer_triplets(f, tolerance=TOLERANCE)
        found.append(_proven(f, (t.sigma, t.U, t.V, t.residual, t.converged)))
    return jax.block_until_ready(found)


@jax.jit
def _proven(f: sensitivity.TokenFactors, t: Any) -> Any:
    def one(w: Any, sigma: Any, u: Any, v: Any, residual: Any, converged: Any) -> Any:
        return certified(w[None], sigma[None], u[None], v[None], residual=residual[None], converged=converged[None])

    return jax.lax.map(lambda each: one(*each), (sensitivity.propagators(f), *t))


_svd = jax.jit(functools.partial(jnp.linalg.svd, full_matrices=False))


@jax.jit
def matfree_sigma(w: Any) -> Any:
    """Return the two leading singular values that matfree finds in 40 steps, without a certificate."""
    w = w.astype(jnp.zeros(()).dtype)  # matfree allocates in JAX's default precision
    start = jax.random.normal(jax.random.key(0), (w.shape[1],), w.dtype)
    steps = min(STEPS, w.shape[0])
    small = decomp.bidiag(steps, materialize=True)(lambda x: w @ x, start / jnp.linalg.norm(start)).J_small
    return _svd(small)[1][:2]


def accuracy(work: Workload) -> dict[str, Any]:
    """Compare our triplets with the float64 decomposition of the dense W, at the first and the last token."""
    found, each, tokens = leading(work), points(work), work.shape.tokens
    residuals, errors = [], []
    for layer, place in itertools.product(range(work.shape.layers), (0, tokens - 1)):
        p, t = each[layer * tokens + place], found[layer]
        w = np.asarray(by_jacfwd(p.parameters, p.crossed, p.cache, p.state), np.float64)
        exact = np.linalg.svd(w, compute_uv=False)
        u, v, sigma = (np.asarray(a, np.float64)[place] for a in (t.U, t.V, t.sigma[:, :2]))
        residuals += [np.linalg.norm(w @ v - u * sigma, axis=0).max() / exact[0]]
        residuals += [np.linalg.norm(w.T @ u - v * sigma, axis=0).max() / exact[0]]
        errors.append(np.abs(sigma - exact[:2]).max() / exact[0])
    return {
        "residual_over_sigma1": float(max(residuals)),
        "sigma_error_over_sigma1": float(max(errors)),
        "checked": len(errors),
        "unresolved": sum(int((~np.asarray(t.converged)).sum()) for t in found),
        "triplets": work.shape.items,
        "basis": max(int(np.asarray(t.size).max()) for t in found),
    }


def injection_sides(work: Workload) -> dict[str, Side]:
    """Return the two leading triplets of W and of G at every (layer, token)."""
    return {
        "W": Side(lambda: leading(work), "two leading triplets of W", work.shape.items),
        "G": Side(lambda: leading_injections(work), "two leading triplets of G", work.shape.items),
    }


def leading_injections(work: Workload) -> list[Leading]:
    """Return the two leading eigenpairs of G G^T, block by block, all tokens of a block at once."""
    factors = layers_of(work)
    return jax.block_until_ready([injection_triplets(f, tolerance=TOLERANCE) for f in factors])


def leading_of_sequence(work: Workload) -> Any:
    """Return the two leading triplets of every block on all positions at once, T D by T D, matrix-free."""
    tokens = work.sequence[-work.shape.tokens :]
    maps = sequence_maps(work.model, work.context, tokens)
    return jax.block_until_ready(sequence_triplets(sequence_chain(maps), tolerance=TOLERANCE))


def gpu_sides(work: Workload) -> dict[str, Side]:
    """Return the dense W beside the yardstick, and all that is measured at every token of a decoding run."""
    dense_ones = {name: side for name, side in dense_sides(work).items() if name in ("gemm", "explicit", "product")}
    sweep = lambda: jax.block_until_ready(sweep_tokens(layers_of(work)))
    every = "all conditions and bounds at every token"
    return dense_ones | injection_sides(work) | {"sweep": Side(sweep, every, work.shape.items)}


# What `peakmemory` measures in a process of its own, each made ready first.


def injection_memory(**shape: Any) -> Any:
    """Return the work of G's leading triplets, with the factors that W's need too, ready to be called."""
    work = random_workload(Shape(**shape))
    factors = jax.block_until_ready(layers_of(work))
    return lambda: jax.block_until_ready([injection_triplets(f, tolerance=TOLERANCE) for f in factors])


def sequence_memory(**shape: Any) -> Any:
    """Return the work of the sequence operator's leading triplets, ready to be called."""
    work = random_workload(Shape(**shape))
    jax.block_until_ready(work.model.parameters)
    return lambda: leading_of_sequence(work)
