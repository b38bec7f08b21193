r"""State-space duality: one operator, as a recurrence, as a matrix, and as blocks of that matrix.

Source: Dao and Gu 2024, "Transformers are SSMs", https://arxiv.org/abs/2405.21060, sections 3, 5 and 6.
For one head, with a scalar $a_t \in [0, 1]$ per step, vectors $B_t, C_t \in \mathbb{R}^N$ and the state
$h_t \in \mathbb{R}^{P \times N}$:

$$ h_t = a_t h_{t-1} + x_t B_t^\top, \qquad y_t = h_t C_t \tag{1} $$

Unrolled, with $h_0$ the state before the first step, $y_t = \sum_{s \le t} (a_t \cdots a_{s+1}) (C_t^\top B_s)\, x_s$.
So the sequence is multiplied by one lower-triangular matrix:

$$ Y = M X, \qquad M = L \circ (C B^\top), \qquad L_{ts} = a_t \cdots a_{s+1}\ (s \le t),\ \text{else}\ 0 \tag{2} $$

This is masked linear attention: $C$ asks, $B$ answers, $X$ is the value, and $L$ is the causal mask made soft.

**Why blocks work.** $L$ is *1-semiseparable*: because $a_t$ is a scalar (the matrix $A_t$ is $a_t$ times the identity),
a mask entry that crosses any boundary $m$, $s < m \le t$, is a product of two numbers,
$L_{ts} = (a_t \cdots a_m)(a_{m-1} \cdots a_{s+1})$: every block of $L$ below the diagonal is one column times one row,
of rank 1. The same block of $M$ therefore has rank at most $N$, and splits into three thin factors, whose middle is
a state. With chunks of length $Q$, chunk $z$ ending in position $e_z$ and $H_z = h_{e_z}$:

$$ \hat H_z = \sum_{s \in z} (a_{e_z} \cdots a_{s+1})\, x_s B_s^\top \tag{3} $$
$$ H_z = (a_{e_z} \cdots a_{e_{z-1}+1})\, H_{z-1} + \hat H_z \tag{4} $$
$$ y_t = \sum_{s \in z,\, s \le t} M_{ts} x_s + (a_t \cdots a_{e_{z-1}+1})\, H_{z-1} C_t \tag{5} $$

(3), the right factor, is what a chunk adds to the state; (4), the middle one, hands states from chunk to chunk; (5) is
the diagonal block, and the left factor, which reads the state before the chunk.
The diagonal blocks cost $T Q$ instead of $T^2$, the rest is linear in $T$. (4) is (1) once more, over $T / Q$ steps.

Shapes, in the paper's letters: B batch, T time (S when it is the time read from), H heads, P head width, G groups that
share $B_t$ and $C_t$, R heads per group (h = g * R + r), N state, Q chunk, Z number of chunks. Every function takes

- x_BTHP, the input, already multiplied by the step size,
- log_a_BTH, the logarithm of $a_t$, at most 0,
- B_BTGN and C_BTGN,
- state_BHPN, $h_0$, or None for zeros,

all of one floating dtype, and returns y_BTHP and the state after the last step. A step with x = 0 and log_a = 0 leaves
the state as it was: that is how padding passes through.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

CPU_CHUNK = 64
"""Largest Q on a CPU: a block row of all heads fits its cache. 256, as in the checkpoints, suits a GPU."""


def step(x_BHP: Array, log_a_BH: Array, B_BGN: Array, C_BGN: Array, state_BHPN: Array) -> tuple[Array, Array]:
    """One step of the recurrence, eq. 1: y_BHP and the next state_BHPN."""
    R = x_BHP.shape[1] // B_BGN.shape[1]
    B_BHN, C_BHN = jnp.repeat(B_BGN, R, axis=1), jnp.repeat(C_BGN, R, axis=1)
    state_BHPN = jnp.exp(log_a_BH)[..., None, None] * state_BHPN + x_BHP[..., None] * B_BHN[:, :, None]
    return jnp.einsum("BHPN,BHN->BHP", state_BHPN, C_BHN, precision="highest"), state_BHPN


def recurrent(
    x_BTHP: Array, log_a_BTH: Array, B_BTGN: Array, C_BTGN: Array, state_BHPN: Array | None = None
) -> tuple[Array, Array]:
    """Eq. 1 as it stands: T steps, one after the other."""

    def body(state_BHPN: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        y_BHP, state_BHPN = step(*now, state_BHPN)
        return state_BHPN, y_BHP

    over_time = tuple(jnp.swapaxes(each, 0, 1) for each in (x_BTHP, log_a_BTH, B_BTGN, C_BTGN))
    state_BHPN, y_TBHP = lax.scan(body, _initial(x_BTHP, B_BTGN, state_BHPN), over_time)
    return jnp.swapaxes(y_TBHP, 0, 1), state_BHPN


def quadratic(
    x_BTHP: Array, log_a_BTH: Array, B_BTGN: Array, C_BTGN: Array, state_BHPN: Array | None = None
) -> tuple[Array, Array]:
    """Eq. 2: build the whole matrix M and multiply. Time and memory grow with T squared.

    With a state given it is one block row of eq. 5, which is what `block_rows` makes of it.
    """
    B, T, H, P = x_BTHP.shape
    G, N = B_BTGN.shape[2:]
    x_BTGRP = x_BTHP.reshape(B, T, G, -1, P)  # h = g * R + r
    # M = L o (C B^T); the scores C B^T are shared by the R heads of a group, the mask is each head's own.
    scores_BGTS = jnp.einsum("BTGN,BSGN->BGTS", C_BTGN, B_BTGN, precision="highest")
    L_BHTS = semiseparable_mask(jnp.swapaxes(log_a_BTH, 1, 2))
    M_BGRTS = L_BHTS.reshape(B, G, -1, T, T) * scores_BGTS[:, :, None]
    y_BTGRP = jnp.einsum("BGRTS,BSGRP->BTGRP", M_BGRTS, x_BTGRP, precision="highest")  # eq. 2

    # The last row of L is the decay from each step to the end, its first column the one from the start.
    to_end_BGTR = jnp.swapaxes(L_BHTS[:, :, -1].reshape(B, G, -1, T), 2, 3)
    new_BGRPN = jnp.einsum("BTGRP,BGTR,BTGN->BGRPN", x_BTGRP, to_end_BGTR, B_BTGN, precision="highest")  # eq. 3
    if state_BHPN is None:
        return y_BTGRP.reshape(B, T, H, P), new_BGRPN.reshape(B, H, P, N)
    from_start_BTH = jnp.exp(log_a_BTH[:, :1]) * jnp.swapaxes(L_BHTS[..., 0], 1, 2)
    state_BGRPN = state_BHPN.reshape(B, G, -1, P, N)
    y_old_BTGRP = jnp.einsum("BTGN,BGRPN->BTGRP", C_BTGN, state_BGRPN, precision="highest")
    y_BTHP = y_BTGRP.reshape(B, T, H, P) + from_start_BTH[..., None] * y_old_BTGRP.reshape(B, T, H, P)
    return y_BTHP, from_start_BTH[:, -1, :, None, None] * state_BHPN + new_BGRPN.reshape(B, H, P, N)


def states_by_scan(new_BZHPN: Array, log_decay_BZH: Array, state_BHPN: Array) -> tuple[Array, Array]:
    """Eq. 4, one chunk after the other: the state before each chunk, and the one after the last."""

    def body(state_BHPN: Array, chunk: tuple[Array, Array]) -> tuple[Array, Array]:
        new_BHPN, log_decay_BH = chunk
        return jnp.exp(log_decay_BH)[..., None, None] * state_BHPN + new_BHPN, state_BHPN

    over_chunks = (jnp.swapaxes(new_BZHPN, 0, 1), jnp.swapaxes(log_decay_BZH, 0, 1))
    last_BHPN, before_ZBHPN = lax.scan(body, state_BHPN, over_chunks)
    return jnp.swapaxes(before_ZBHPN, 0, 1), last_BHPN


def states_by_associative_scan(new_BZHPN: Array, log_decay_BZH: Array, state_BHPN: Array) -> tuple[Array, Array]:
    r"""Eq. 4 in $\log_2 Z$ parallel rounds.

    Two neighbouring stretches of chunks, $H \mapsto a H + U$ and then $H \mapsto a' H + U'$, are one stretch
    $H \mapsto a' a H + (a' U + U')$, and this composition is associative.
    """

    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        (log_a_first, u_first), (log_a_second, u_second) = first, second
        return log_a_first + log_a_second, jnp.exp(log_a_second)[..., None, None] * u_first + u_second

    log_a_BZH, u_BZHPN = lax.associative_scan(compose, (log_decay_BZH, new_BZHPN), axis=1)
    after_BZHPN = jnp.exp(log_a_BZH)[..., None, None] * state_BHPN[:, None] + u_BZHPN
    return jnp.concatenate([state_BHPN[:, None], after_BZHPN[:, :-1]], axis=1), after_BZHPN[:, -1]


def chunked(
    x_BTHP: Array,
    log_a_BTH: Array,
    B_BTGN: Array,
    C_BTGN: Array,
    state_BHPN: Array | None = None,
    *,
    chunk_size: int = 64,
    pass_states: Callable[[Array, Array, Array], tuple[Array, Array]] = states_by_scan,
) -> tuple[Array, Array]:
    """Eqs. 3 to 5, all chunks at once: diagonal blocks, chunk states, passing them on, off-diagonal blocks.

    chunk_size is Q; T need not be a multiple of it. pass_states is `states_by_scan` or `states_by_associative_scan`.
    """
    state_BHPN = _initial(x_BTHP, B_BTGN, state_BHPN)
    (B, T, H, P), (G, N), Q = x_BTHP.shape, B_BTGN.shape[2:], min(chunk_size, x_BTHP.shape[1])
    x, log_a, B_, C_ = (_split_chunks(each, Q) for each in (x_BTHP, log_a_BTH, B_BTGN, C_BTGN))
    Z = x.shape[1]

    # The chunks are a second batch: the diagonal blocks are eq. 2, and what is left after each is eq. 3.
    y_diagonal, new_BZHPN = jax.vmap(quadratic, in_axes=1, out_axes=1)(x, log_a, B_, C_)
    before_BZHPN, state_BHPN = pass_states(new_BZHPN, log_a.sum(axis=2), state_BHPN)  # eq. 4

    # Off-diagonal blocks: what the state before the chunk says to each of its positions, second half of eq. 5.
    y_before = jnp.einsum(
        "BZQGN,BZGRPN->BZQGRP", C_, before_BZHPN.reshape(B, Z, G, -1, P, N), precision="highest"
    ).reshape(B, Z, Q, H, P)
    y_BZQHP = y_diagonal + jnp.exp(jnp.cumsum(log_a, axis=2))[..., None] * y_before
    return y_BZQHP.reshape(B, Z * Q, H, P)[:, :T], state_BHPN


def block_rows(
    x_BTHP: Array,
    log_a_BTH: Array,
    B_BTGN: Array,
    C_BTGN: Array,
    state_BHPN: Array | None = None,
    *,
    chunk_size: int = 64,
) -> tuple[Array, Array]:
    """Eqs. 3 to 5, one chunk after the other: the same blocks as `chunked`, in the order of time.

    Only one Q x Q block per head exists at a time, and it stays in the processor's cache: the form for a CPU.
    """
    state_BHPN = _initial(x_BTHP, B_BTGN, state_BHPN)
    B, T, H, P = x_BTHP.shape
    Q = min(chunk_size, T)

    def body(state_BHPN: Array, chunk: tuple[Array, ...]) -> tuple[Array, Array]:
        y_BQHP, state_BHPN = quadratic(*chunk, state_BHPN)
        return state_BHPN, y_BQHP

    chunks = tuple(jnp.swapaxes(_split_chunks(each, Q), 0, 1) for each in (x_BTHP, log_a_BTH, B_BTGN, C_BTGN))
    state_BHPN, y_ZBQHP = lax.scan(body, state_BHPN, chunks)
    return jnp.swapaxes(y_ZBQHP, 0, 1).reshape(B, -1, H, P)[:, :T], state_BHPN


def scan(
    x_BTHP: Array, log_a_BTH: Array, B_BTGN: Array, C_BTGN: Array, state_BHPN: Array, *, chunk_size: int
) -> tuple[Array, Array]:
    """The form that is fastest here: a step for T = 1; on a CPU `block_rows` with small chunks; elsewhere `chunked`."""
    if x_BTHP.shape[1] == 1:
        y_BHP, state_BHPN = step(x_BTHP[:, 0], log_a_BTH[:, 0], B_BTGN[:, 0], C_BTGN[:, 0], state_BHPN)
        return y_BHP[:, None], state_BHPN
    if jax.default_backend() == "cpu":
        return block_rows(x_BTHP, log_a_BTH, B_BTGN, C_BTGN, state_BHPN, chunk_size=min(chunk_size, CPU_CHUNK))
    return chunked(x_BTHP, log_a_BTH, B_BTGN, C_BTGN, state_BHPN, chunk_size=chunk_size)


def semiseparable_mask(log_a: Array) -> Array:
    r"""The 1-semiseparable matrix $L$ of eq. 2, [..., T, T], from log_a [..., T].

    $\log L_{ts}$ is a difference of two running sums. Where the decay is strong these are large and nearly equal, and
    their rounding shows (2e-4 at 100 per step and 64 steps in float32). So what the rounded sums missed is summed too.
    """
    T = log_a.shape[-1]
    causal = jnp.tril(jnp.ones((T, T), bool))
    running_sums = partial(jnp.einsum, "ts,...s->...t", causal.astype(log_a.dtype), precision="highest")
    sums = running_sums(log_a)
    missed = running_sums(log_a - jnp.diff(sums, prepend=0))
    missed = lax.stop_gradient(missed)  # the sums alone carry the whole derivative
    exponent = (sums[..., :, None] - sums[..., None, :]) + (missed[..., :, None] - missed[..., None, :])
    return jnp.exp(jnp.where(causal, exponent, -jnp.inf))  # masked before exp: above the diagonal it could overflow


def _split_chunks(array: Array, Q: int) -> Array:
    """[B, T, ...] to [B, Z, Q, ...], filled up with zeros: steps that change nothing."""
    B, T = array.shape[:2]
    padding = [(0, 0)] * array.ndim
    padding[1] = (0, -T % Q)
    return jnp.pad(array, padding).reshape(B, -1, Q, *array.shape[2:])


def _initial(x_BTHP: Array, B_BTGN: Array, state_BHPN: Array | None) -> Array:
    B, _, H, P = x_BTHP.shape
    return jnp.zeros((B, H, P, B_BTGN.shape[-1]), x_BTHP.dtype) if state_BHPN is None else state_BHPN
