r"""Mixture of experts that computes only the chosen experts: tokens are sorted by expert, in blocks of equal length.

Each choice of an expert by a token is one row to compute. The rows are sorted by expert and cut into blocks of R rows.
An expert's last block is filled up with zeros, so that each block has one expert and every shape is static:

$$ y_{nr} = x_{nr}\, W_{e(n)}, \qquad N = \lfloor T K / R \rfloor + E \text{ blocks at most} \tag{1} $$

A loop computes one block after the other and skips blocks beyond the last row. `jax.lax.ragged_dot` is not used: XLA's
CPU compiler multiplies every row by every expert and masks the rest, E times the work (shared/docs/cpu.md).

On a mesh (:func:`dispatch_on_mesh`) every device gathers the tokens of the devices along the axis ``expert``, computes
its own experts for them, and sends the sums back. Each layer takes one all-gather and one reduce-scatter of
activations; the size of the experts does not matter.

Shapes: B batch, T tokens of a row, D model width, F feed-forward width, E experts, K experts of a token, P = B T K
choices, N blocks, R rows of a block, S = N R slots for rows, I and O inputs and outputs of a kernel.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from scratch_core.parallel import BATCH

PIECE_BYTES = 2**18
"""Size of the pieces into which a kernel is cut for products of few rows. A piece fits in a core's cache."""
FEW_ROWS = 8

Activation = Callable[[jax.Array], jax.Array]


def dispatch(
    x_BTD: jax.Array,
    expert_BTK: jax.Array,
    gate_BTK: jax.Array,
    gate_EDF: jax.Array,
    up_EDF: jax.Array,
    down_EFD: jax.Array,
    activation: Activation,
) -> jax.Array:
    """Return y_BTD, for each token the sum of its experts' outputs times their gates, in x's dtype.

    expert_BTK (int32) outside of 0 to E - 1 adds nothing. The sum is taken in float32.
    """
    (B, T, D), K, E = x_BTD.shape, expert_BTK.shape[-1], len(gate_EDF)
    P = B * T * K
    N, R = block_shape(P, E)
    slot_P, expert_N = _sort(expert_BTK.reshape(P), E, N, R)
    choice_S = jnp.full(N * R, P, jnp.int32).at[slot_P].set(jnp.arange(P, dtype=jnp.int32), mode="drop")  # P: none
    x_SD = take_rows(x_BTD.reshape(B * T, D), choice_S // K, slot_P.reshape(B * T, K))
    x_NRD = x_SD.reshape(N, R, D)
    hidden_NRF = activation(grouped_dot(x_NRD, gate_EDF, expert_N)) * grouped_dot(x_NRD, up_EDF, expert_N)
    y_SD = grouped_dot(hidden_NRF, down_EFD, expert_N).reshape(N * R, D)
    y_BTKD = take_rows(y_SD, slot_P, choice_S[:, None]).reshape(B, T, K, D)
    return jnp.einsum("BTK,BTKD->BTD", gate_BTK, y_BTKD).astype(x_BTD.dtype)


def block_shape(num_choices: int, num_experts: int) -> tuple[int, int]:
    """Return the number of blocks N and their rows R for this many choices of any experts.

    R is about half of an expert's share of the rows, at least 4 and at most 128: longer blocks take less time for each
    row but hold more empty rows. If there are fewer choices than experts, each choice is a block of its own.
    """
    if num_choices <= num_experts:
        return num_choices, 1
    half = max(num_choices // (2 * num_experts), 1)
    R = min(max(2 ** (half.bit_length() - 1), 4), 128)
    return num_choices // R + num_experts, R


def _sort(expert_P: jax.Array, E: int, N: int, R: int) -> tuple[jax.Array, jax.Array]:
    """Return the slot of each choice (N R: none), and the expert of each block (E: the block is empty)."""
    chosen_PE = expert_P[:, None] == jnp.arange(E)
    load_E = chosen_PE.sum(axis=0)
    end_E = jnp.cumsum(-(-load_E // R))  # the first block after those of each expert
    rank_P = jnp.where(chosen_PE, jnp.cumsum(chosen_PE, axis=0) - 1, 0).sum(axis=1)
    start_P = jnp.where(chosen_PE, end_E - (-(-load_E // R)), 0).sum(axis=1) * R
    slot_P = jnp.where(chosen_PE.any(axis=1), start_P + rank_P, N * R)
    expert_N = (jnp.arange(N)[:, None] >= end_E).sum(axis=1)
    return slot_P.astype(jnp.int32), expert_N.astype(jnp.int32)


@jax.custom_vjp
def take_rows(x: jax.Array, index: jax.Array, places: jax.Array) -> jax.Array:
    """Return x[index] for x [rows, D], zero where the index (int32 [n]) is beyond the rows.

    places (int32 [rows, m]) holds for each row its positions in ``index``; the remaining entries are n or greater. It
    makes the gradient a gather. Without it the gradient is a scatter, which XLA's CPU compiler turns into a loop over
    rows.
    """
    return x.at[index].get(mode="fill", fill_value=0)


def _take_rows_forward(x, index, places):
    return take_rows(x, index, places), places


def _take_rows_backward(places, dy):
    dx = dy.at[places].get(mode="fill", fill_value=0).sum(axis=1)
    return dx, None, None


take_rows.defvjp(_take_rows_forward, _take_rows_backward)


@jax.custom_vjp
def grouped_dot(x_NRI: jax.Array, kernel_EIO: jax.Array, expert_N: jax.Array) -> jax.Array:
    """Return y_NRO of eq. 1: each block times the kernel of its expert, zero where expert_N is E.

    The gradient with respect to the kernels is summed in place. JAX's own gradient would add, for each block, an array
    as large as all kernels that is zero except for one kernel.
    """
    R, (E, _, O) = x_NRI.shape[1], kernel_EIO.shape
    empty_RO = jnp.zeros((R, O), x_NRI.dtype)

    def few_rows(_, operands):
        x_RI, expert = operands
        return None, jax.lax.cond(expert < E, lambda: _dot_pieces(x_RI, kernel_EIO, expert), lambda: empty_RO)

    def many_rows(carry, operands):
        (kernel_IO, last), (x_RI, expert) = carry, operands
        kernel_IO = jax.lax.cond(expert == last, lambda: kernel_IO, lambda: _kernel(kernel_EIO, expert))
        return (kernel_IO, expert), jax.lax.cond(expert < E, lambda: x_RI @ kernel_IO, lambda: empty_RO)

    if R <= FEW_ROWS:
        return jax.lax.scan(few_rows, None, (x_NRI, expert_N))[1]
    # XLA copies the kernel that it multiplies by. Neighbouring blocks of an expert share the copy.
    return jax.lax.scan(many_rows, (kernel_EIO[0], jnp.int32(0)), (x_NRI, expert_N))[1]


def _kernel(kernel_EIO: jax.Array, expert: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(kernel_EIO, expert, keepdims=False)


def _dot_pieces(x_RI: jax.Array, kernel_EIO: jax.Array, expert: jax.Array) -> jax.Array:
    """Return x_RI times the kernel of ``expert``, computed as a sum over pieces of the kernel.

    XLA copies the slice of the kernel before it multiplies. For few rows, this copy takes longer than the product,
    unless it fits in the cache.
    """
    (R, I), (_, _, O) = x_RI.shape, kernel_EIO.shape
    most = max(PIECE_BYTES // (O * kernel_EIO.dtype.itemsize), 1)
    J = next(size for size in range(min(most, I), 0, -1) if I % size == 0)

    if J == I:
        return x_RI @ _kernel(kernel_EIO, expert)

    def piece(y_RO, start):
        kernel_JO = jax.lax.dynamic_slice(kernel_EIO, (expert, start, 0), (1, J, O))[0]
        return y_RO + jax.lax.dynamic_slice(x_RI, (0, start), (R, J)) @ kernel_JO, None

    return jax.lax.scan(piece, jnp.zeros((R, O), x_RI.dtype), jnp.arange(0, I, J, dtype=expert.dtype))[0]


def _grouped_dot_forward(x_NRI, kernel_EIO, expert_N):
    return grouped_dot(x_NRI, kernel_EIO, expert_N), (x_NRI, kernel_EIO, expert_N)


def _grouped_dot_backward(saved, dy_NRO):
    x_NRI, kernel_EIO, expert_N = saved
    E = len(kernel_EIO)

    def block(dkernel_EIO, operands):
        x_RI, dy_RO, expert = operands

        def add(dkernel_EIO):
            kernel_IO = _kernel(kernel_EIO, expert)
            dx_RI = jax.lax.dot_general(dy_RO, kernel_IO, (((1,), (1,)), ((), ())))
            before_IO = _kernel(dkernel_EIO, expert)
            after_IO = before_IO + jax.lax.dot_general(x_RI, dy_RO, (((0,), (0,)), ((), ())))
            return jax.lax.dynamic_update_index_in_dim(dkernel_EIO, after_IO, expert, 0), dx_RI

        return jax.lax.cond(expert < E, add, lambda dkernel: (dkernel, jnp.zeros_like(x_RI)), dkernel_EIO)

    dkernel_EIO, dx_NRI = jax.lax.scan(block, jnp.zeros_like(kernel_EIO), (x_NRI, dy_NRO, expert_N))
    return dx_NRI, dkernel_EIO, None


grouped_dot.defvjp(_grouped_dot_forward, _grouped_dot_backward)


def _splits(devices: int, size: int) -> bool:
    return devices > 1 and size % devices == 0


def dispatch_on_mesh(
    x_BTD: jax.Array,
    expert_BTK: jax.Array,
    gate_BTK: jax.Array,
    gate_EDF: jax.Array,
    up_EDF: jax.Array,
    down_EFD: jax.Array,
    activation: Activation,
    mesh: Mesh,
) -> jax.Array:
    """Return what :func:`dispatch` does, with experts split over the axis ``expert`` and features over ``tensor``.

    A batch or a dimension that the mesh does not divide stays whole.
    """
    parts = int(np.prod([mesh.shape[axis] for axis in BATCH]))
    rows = BATCH if len(x_BTD) % parts == 0 else None
    experts = "expert" if _splits(mesh.shape["expert"], len(gate_EDF)) else None
    features = "tensor" if _splits(mesh.shape["tensor"], gate_EDF.shape[-1]) else None

    def local(x_BTD, expert_BTK, gate_BTK, gate_EDF, up_EDF, down_EFD):
        shared = rows is not None and experts is not None  # this device gets the tokens of all along ``expert``
        if shared:
            gather = partial(jax.lax.all_gather, axis_name="expert", axis=0, tiled=True)
            x_BTD, expert_BTK, gate_BTK = gather(x_BTD), gather(expert_BTK), gather(gate_BTK)
        if experts:
            expert_BTK = expert_BTK - jax.lax.axis_index("expert") * len(gate_EDF)
        y_BTD = dispatch(x_BTD, expert_BTK, gate_BTK, gate_EDF, up_EDF, down_EFD, activation)
        if features:
            y_BTD = jax.lax.psum(y_BTD, "tensor")
        if shared:
            return jax.lax.psum_scatter(y_BTD, "expert", scatter_dimension=0, tiled=True)
        return jax.lax.psum(y_BTD, "expert") if experts else y_BTD

    split = PartitionSpec(rows)
    inward, outward = PartitionSpec(experts, None, features), PartitionSpec(experts, features, None)
    # check_vma is off because that check does not support custom_vjp.
    run = jax.shard_map(
        local, mesh=mesh, in_specs=(split, split, split, inward, inward, outward), out_specs=split, check_vma=False
    )
    return run(x_BTD, expert_BTK, gate_BTK, gate_EDF, up_EDF, down_EFD)
