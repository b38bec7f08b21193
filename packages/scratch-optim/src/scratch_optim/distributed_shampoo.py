r"""Distributed Shampoo: Shampoo in blocks, for models; each device computes its share of the blocks.

Source: Anil et al. 2020, https://arxiv.org/abs/2002.09018. A block of a parameter, with k axes and gradient $G_t$:

$$ H^i_t = b_2 H^i_{t-1} + (1 - b_2)\, G_{t,(i)} G_{t,(i)}^\top \tag{1} $$
$$ P_t = G_t \times_1 (H^1_s)^{-1/p} \times_2 \dots \times_k (H^k_s)^{-1/p}, \qquad p = 2k \tag{2} $$

s is the last step at which the roots were computed, which happens once in ``every`` steps (section 4.3). From ``start``
on, a parameter's step has the direction of $P_t$ and the length of a simpler method's step $D_t$ (grafting, section 2):

$$ U_t = \lVert D_t \rVert \, P_t / \lVert P_t \rVert \tag{3} $$
$$ m_t = b_1 m_{t-1} + (1 - b_1) U_t, \qquad W_{t+1} = W_t - \eta \left(\frac{m_t}{1 - b_1^t} + \lambda W_t\right)
\tag{4} $$

Before ``start``, $U_t = D_t$. $D_t$ is $G_t$ ("sgd"), $G_t / \sqrt{\sum G^2}$ ("adagrad"), $G_t / \sqrt{v_t}$ with the
running mean $v_t$ of $G^2$ ("rmsprop"), or the same with $v_t / (1 - b_2^t)$ instead of $v_t$ ("adam"; eq. 4 is Adam's
first moment).

With a mesh, each block's statistics, roots and products of eq. 2 are on one device only; the $P_t$ are then gathered.
SOAP (Vyas et al. 2024, https://arxiv.org/abs/2409.11321) replaces eqs. 2 and 3 by Adam in the eigenbasis of the $H^i$;
it is not implemented here.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scratch_core.errors import ConfigError
from scratch_core.train.optimizers import Optimizer, decay_mask

from scratch_optim.blocks import Stacks
from scratch_optim.roots import inverse_root_by_eigenvalues, inverse_root_by_newton
from scratch_optim.settings import (
    check_b2,
    check_count,
    check_learning_rate,
    check_range,
    check_real,
    decay_coefficients,
    is_zero,
    weight_of_new,
)

GRAFTS = ("sgd", "adagrad", "rmsprop", "adam")
ROOTS = ("newton", "eigenvalues")
LARGEST_ERROR = 0.1  # a Newton iteration with a larger error is not used, and the block keeps its last root


class StackState(NamedTuple):
    """For each axis of the blocks in a stack of A: statistics and their inverse roots, both [A, S, S]."""

    statistics: tuple[jax.Array, ...]
    roots: tuple[jax.Array, ...]


class DistributedShampooState(NamedTuple):
    """Steps taken (int32); one :class:`StackState` for each shape of blocks; momentum; second moments, or None."""

    count: jax.Array
    stacks: dict[str, StackState]
    momentum: Any
    second_moment: Any


def distributed_shampoo(
    learning_rate: optax.ScalarOrSchedule,
    *,
    block_size: int = 128,
    merge: bool = True,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-6,
    graft: str = "adam",
    graft_epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    start: int = 101,
    every: int = 20,
    exponent: int | None = None,
    root: str = "newton",
    mesh: Mesh | None = None,
    mask: Any = None,
) -> optax.GradientTransformation:
    """Return Distributed Shampoo, eqs. 1 to 4.

    Axes are cut into blocks of at most ``block_size``; ``merge`` reads tensors as matrices first (see blocks.py).
    ``b1`` weighs the momentum, ``b2`` the statistics and second moments; ``b2`` = 1 sums the statistics. ``epsilon``
    times a matrix's largest eigenvalue is its ridge. ``exponent`` is p of eq. 2; None: 2k. ``root``: "newton" or
    "eigenvalues" (see roots.py); a block whose root fails keeps its last one. Roots are computed at step ``start`` and
    at each multiple of ``every`` after it. Weight decay acts where ``mask`` (a tree of booleans, or a function from the
    parameters to one) is True; with weight decay, ``update`` needs the parameters. State is at least float32. ``mesh``:
    blocks are spread over all of its devices. Raises ConfigError for a setting out of range, and for parameters that
    are complex or integers.
    """
    check_learning_rate(learning_rate)
    for name, value, least in (("block_size", block_size, 1), ("start", start, 1), ("every", every, 1)):
        check_count(name, value, least)
    if exponent is not None:
        check_count("exponent", exponent, 1)
    check_range("b1", b1, 0.0, 1.0)
    check_b2(b2)
    for name, value in (("epsilon", epsilon), ("graft_epsilon", graft_epsilon), ("weight_decay", weight_decay)):
        check_range(name, value, 0.0, float("inf"))
    if graft not in GRAFTS:
        raise ConfigError(f"graft={graft!r} must be one of: {', '.join(GRAFTS)}")
    if not isinstance(b2, Tracer) and b2 == 1 and graft in ("rmsprop", "adam"):
        raise ConfigError(f"graft={graft!r} needs b2 below 1, not b2={b2}: its second moment is a running mean")
    if root not in ROOTS:
        raise ConfigError(f"root={root!r} must be one of: {', '.join(ROOTS)}")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise ConfigError(f"mesh={mesh!r} must be a jax.sharding.Mesh, such as scratch_core.parallel.make_mesh() makes")
    precondition = partial(_precondition, b2=b2, exponent=exponent, root=root, epsilon=epsilon)
    shares = PartitionSpec() if mesh is None else PartitionSpec(mesh.axis_names)  # the first axis, over all devices
    if mesh is not None:
        precondition = jax.shard_map(
            precondition, mesh=mesh, in_specs=(shares, shares, PartitionSpec()), out_specs=shares, check_vma=False
        )

    def cut(leaves: list[Any]) -> Stacks:
        return Stacks(leaves, block_size, merge=merge, multiple=1 if mesh is None else mesh.size)

    def init(params: Any) -> Any:
        check_real(params)
        leaves = jax.tree.leaves(params)
        dtype = jnp.result_type(jnp.float32, *leaves)
        stacks = {_name(block): _start(block, count, dtype) for block, count in cut(leaves).counts.items()}
        if mesh is not None:
            stacks = jax.device_put(stacks, NamedSharding(mesh, shares))

        def zeros() -> Any:
            return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params)

        second_moment = None if graft == "sgd" else zeros()
        return DistributedShampooState(jnp.zeros((), jnp.int32), stacks, zeros(), second_moment)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None and not is_zero(weight_decay):
            raise ConfigError(
                f"weight_decay={weight_decay} needs the parameters: call update(gradients, state, params)"
            )
        t = state.count + 1
        g = jax.tree.map(lambda gradient, m: gradient.astype(m.dtype), updates, state.momentum)
        leaves, structure = jax.tree.flatten(g)
        plan = cut(leaves)
        refresh = (t == start) | ((t > start) & (t % every == 0))
        directions, stacks = {}, {}
        for block, blocks in plan.stack(leaves).items():
            old = state.stacks[_name(block)]
            directions[block], stacks[_name(block)] = precondition(blocks.astype(old.roots[0].dtype), old, refresh)
        preconditioned = jax.tree.unflatten(structure, plan.unstack(directions))

        grafted, second_moment = _graft(g, state.second_moment, t, graft=graft, b2=b2, epsilon=graft_epsilon)

        def mix(p: jax.Array, d: jax.Array) -> jax.Array:
            norm = jnp.linalg.norm(p)
            scaled = p.astype(d.dtype) * (jnp.linalg.norm(d) / jnp.where(norm > 0, norm, 1)).astype(d.dtype)  # eq. 3
            return jnp.where((t >= start) & (norm > 0), scaled, d)

        momentum = jax.tree.map(lambda m, p, d: b1 * m + (1 - b1) * mix(p, d), state.momentum, preconditioned, grafted)
        rate = jnp.asarray(learning_rate(state.count) if callable(learning_rate) else learning_rate)
        corrected = jax.tree.map(lambda m: m / (1 - b1 ** t.astype(m.dtype)), momentum)
        if not is_zero(weight_decay):
            decays = decay_coefficients(params, weight_decay, mask)
            corrected = jax.tree.map(lambda m, decay, w: m + decay * w.astype(m.dtype), corrected, decays, params)
        updates = jax.tree.map(lambda m, g: (-rate.astype(m.dtype) * m).astype(g.dtype), corrected, updates)  # eq. 4
        return updates, DistributedShampooState(t, stacks, momentum, second_moment)

    return optax.GradientTransformation(init, update)


def _name(block: tuple[int, ...]) -> str:
    return "x".join(map(str, block))


def _start(block: tuple[int, ...], count: int, dtype: Any) -> StackState:
    """Return empty statistics, and the identity as roots."""
    statistics = tuple(jnp.zeros((count, size, size), dtype) for size in block)
    roots = tuple(jnp.broadcast_to(jnp.eye(size, dtype=dtype), (count, size, size)) for size in block)
    return StackState(statistics, roots)


def _precondition(
    blocks: jax.Array,
    state: StackState,
    refresh: jax.Array,
    *,
    b2: float,
    exponent: int | None,
    root: str,
    epsilon: float,
) -> tuple[jax.Array, StackState]:
    """Return P of eq. 2 for blocks [A, ...], and the state after them. On a mesh, A is a device's share."""
    k = blocks.ndim - 1
    p = 2 * k if exponent is None else exponent
    new = weight_of_new(b2)
    statistics, roots = [], []
    preconditioned = blocks
    for axis, (matrix_ASS, root_ASS) in enumerate(zip(state.statistics, state.roots, strict=True), start=1):
        A, S = matrix_ASS.shape[:2]
        unfolded_ASR = jnp.moveaxis(blocks, axis, 1).reshape(A, S, -1)  # R: the block's other axes
        matrix_ASS = b2 * matrix_ASS + new * jnp.einsum("ASR,ATR->AST", unfolded_ASR, unfolded_ASR)  # eq. 1
        roots_of = partial(_roots, p=p, root=root, epsilon=epsilon)
        root_ASS = jax.lax.cond(refresh, roots_of, lambda _, kept_ASS: kept_ASS, matrix_ASS, root_ASS)
        turned = jnp.moveaxis(preconditioned, axis, 1)
        multiplied_ASR = jnp.einsum("AST,ATR->ASR", root_ASS, turned.reshape(A, S, -1))  # eq. 2
        preconditioned = jnp.moveaxis(multiplied_ASR.reshape(turned.shape), 1, axis)
        statistics.append(matrix_ASS)
        roots.append(root_ASS)
    return preconditioned, StackState(tuple(statistics), tuple(roots))


def _roots(matrix_ASS: jax.Array, kept_ASS: jax.Array, *, p: int, root: str, epsilon: float) -> jax.Array:
    """Return the inverse p-th root of each matrix, or the kept root if that failed or the matrix is zero."""

    def one(matrix_SS: jax.Array, kept_SS: jax.Array) -> jax.Array:
        scale = jnp.abs(matrix_SS).max()
        scaled_SS = matrix_SS / jnp.where(scale > 0, scale, 1)  # so that no power leaves the range of float32
        if root == "newton":
            root_SS, error = inverse_root_by_newton(scaled_SS, p, ridge=epsilon)
        else:
            root_SS, error = inverse_root_by_eigenvalues(scaled_SS, p, ridge=epsilon), jnp.zeros(())
        good = (scale > 0) & (error <= LARGEST_ERROR) & jnp.isfinite(root_SS).all()
        return jnp.where(good, root_SS * jnp.where(scale > 0, scale, 1) ** (-1 / p), kept_SS)

    # One after the other: a vmapped Newton iteration runs until the last matrix of a stack has converged.
    return jax.lax.map(lambda pair: one(*pair), (matrix_ASS, kept_ASS))


def _graft(g: Any, second_moment: Any, t: jax.Array, *, graft: str, b2: float, epsilon: float) -> tuple[Any, Any]:
    """Return the tree of D, the steps whose lengths are used, and the second moments after this gradient."""
    if graft == "sgd":
        return g, None
    weight = 1.0 if graft == "adagrad" else 1 - b2
    kept = 1.0 if graft == "adagrad" else b2
    second_moment = jax.tree.map(lambda v, g: kept * v + weight * g**2, second_moment, g)

    def step(g: jax.Array, v: jax.Array) -> jax.Array:
        return g / (jnp.sqrt(v / (1 - b2 ** t.astype(v.dtype)) if graft == "adam" else v) + epsilon)

    return jax.tree.map(step, g, second_moment), second_moment


class DistributedShampoo(Optimizer):
    """:func:`distributed_shampoo`, as an optimizer that ``scratch train`` finds by name."""

    def build(
        self, learning_rate: optax.ScalarOrSchedule, *, weight_decay: float, decayed: Sequence[str]
    ) -> optax.GradientTransformation:
        """Return Distributed Shampoo with b2 of 0.99, from step 21 on, after clipping to a global norm of 1."""
        mask = partial(decay_mask, decayed=tuple(decayed))
        method = distributed_shampoo(learning_rate, b2=0.99, weight_decay=weight_decay, start=21, mask=mask)
        return optax.chain(optax.clip_by_global_norm(1.0), method)


DISTRIBUTED_SHAMPOO = DistributedShampoo()
