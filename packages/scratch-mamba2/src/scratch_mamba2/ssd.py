r"""State-space duality: one operator, as a recurrence, as a matrix, and as blocks of that matrix.

Source: Dao and Gu 2024, "Transformers are SSMs", https://arxiv.org/abs/2405.21060, sections 3, 5 and 6.
For one head, with a scalar $a_t \in [0, 1]$ per step, vectors $B_t, C_t \in \mathbb{R}^N$ and the state
$h_t \in \mathbb{R}^{N \times P}$:

$$ h_t = a_t h_{t-1} + B_t x_t^\top, \qquad y_t = h_t^\top C_t \tag{1} $$

Unrolled, with $h_0$ the state before the first step, $y_t = \sum_{s \le t} (a_t \cdots a_{s+1}) (C_t^\top B_s)\, x_s$.
So the whole operator is the product with one lower-triangular matrix:

$$ Y = M X, \qquad M = L \circ (C B^\top), \qquad L_{ts} = a_t \cdots a_{s+1}\ (s \le t),\ \text{else}\ 0 \tag{2} $$

This is masked linear attention: $C$ holds the queries, $B$ the keys, $X$ the values; $L$ is a causal mask that decays.

**Why blocks work.** $L$ is *1-semiseparable*: because $a_t$ is a scalar (the matrix $A_t$ is $a_t$ times the identity),
a mask entry that crosses a boundary $m$, $s < m \le t$, is a product of two numbers,
$L_{ts} = (a_t \cdots a_m)(a_{m-1} \cdots a_{s+1})$. So every block of $L$ below the diagonal is one column times one
row and has rank 1. The same block of $M$ therefore has rank at most $N$, and splits into three thin factors, of which
the middle one is a state. With chunks of length $Q$, chunk $z$ ending in position $e_z$ and $H_z = h_{e_z}$:

$$ \hat H_z = \sum_{s \in z} (a_{e_z} \cdots a_{s+1})\, B_s x_s^\top \tag{3} $$
$$ H_z = (a_{e_z} \cdots a_{e_{z-1}+1})\, H_{z-1} + \hat H_z \tag{4} $$
$$ y_t = \sum_{s \in z,\, s \le t} M_{ts} x_s + (a_t \cdots a_{e_{z-1}+1})\, H_{z-1}^\top C_t \tag{5} $$

Eq. 3, the right factor, is what a chunk adds to the state. Eq. 4, the middle one, passes states from chunk to chunk.
Eq. 5 is the diagonal block, plus the left factor, which reads the state before the chunk. The diagonal blocks cost
$T Q$ instead of $T^2$; the rest is linear in $T$. Eq. 4 has the form of eq. 1, over $T / Q$ steps.

Each form is written for one row of the batch and one group of heads; `for_all` extends it to the whole batch:

    form(x_BTHP, log_a_BTH, B_BTGN, C_BTGN, state_BGNRP=None) -> y_BTHP, state_BGNRP

x is the input, already multiplied by the step size; log_a is the logarithm of $a_t$, at most 0; the state is $h_0$
(None: zeros) in the arguments and the state after the last step in the result. All arrays have the same floating
dtype. A step with x = 0 and log_a = 0 leaves the state unchanged; padding uses this.

Shapes, in the paper's letters: T time (S for the earlier time in a pair), H heads, P head width, N state, Q chunk.
Letters that are not the paper's: B batch, G groups of heads that share $B_t$ and $C_t$, R heads per group
(h = g * R + r), E rows and groups together (e = b * G + g), Z chunks, $e_z$ the last position of chunk z, and
$H_z$, $\hat H_z$ in eqs. 3 to 5. The paper's $A$ is our $a$, its $\exp(\Delta A)$; it is passed as log_a.
"""

from collections.abc import Callable
from functools import partial, wraps

import jax
import jax.numpy as jnp
from jax import Array, lax

CPU_CHUNK = 64
"""Largest Q on a CPU, where the blocks of all heads then fit in the cache. The checkpoints' 256 suits a GPU."""

PassStates = Callable[[Array, Array, Array], tuple[Array, Array]]


def for_all(form: Callable[..., tuple[Array, Array]]) -> Callable[..., tuple[Array, Array]]:
    """Return a form for the whole batch, given one for a single row and a single group."""

    @wraps(form)
    def of_batch(
        x_BTHP: Array, log_a_BTH: Array, B_BTGN: Array, C_BTGN: Array, state_BGNRP: Array | None = None, **options
    ) -> tuple[Array, Array]:
        (B, T, H, P), (G, N), R = x_BTHP.shape, B_BTGN.shape[2:], x_BTHP.shape[2] // B_BTGN.shape[2]
        if state_BGNRP is None:
            state_BGNRP = jnp.zeros((B, G, N, R, P), x_BTHP.dtype)

        def by_group(array: Array, *after_time: int) -> Array:
            return array.reshape(B, T, G, *after_time).swapaxes(1, 2).reshape(B * G, T, *after_time)

        with jax.default_matmul_precision("highest"):
            y_ETRP, state_ENRP = jax.vmap(partial(form, **options))(
                by_group(x_BTHP, R, P),
                by_group(log_a_BTH, R),
                by_group(B_BTGN, N),
                by_group(C_BTGN, N),
                state_BGNRP.reshape(B * G, N, R, P),
            )
        y_BTHP = y_ETRP.reshape(B, G, T, R, P).swapaxes(1, 2).reshape(B, T, H, P)
        return y_BTHP, state_ENRP.reshape(B, G, N, R, P)

    return of_batch


@for_all
def recurrent(x_TRP: Array, log_a_TR: Array, B_TN: Array, C_TN: Array, state_NRP: Array) -> tuple[Array, Array]:
    """Eq. 1 as it stands: T steps, one after the other."""

    def step(state_NRP: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        x_RP, log_a_R, B_N, C_N = now
        state_NRP = jnp.exp(log_a_R)[:, None] * state_NRP + B_N[:, None, None] * x_RP
        return state_NRP, jnp.einsum("N,NRP->RP", C_N, state_NRP)

    state_NRP, y_TRP = lax.scan(step, state_NRP, (x_TRP, log_a_TR, B_TN, C_TN))
    return y_TRP, state_NRP


@for_all
def step(x_TRP: Array, log_a_TR: Array, B_TN: Array, C_TN: Array, state_NRP: Array) -> tuple[Array, Array]:
    r"""Eq. 1 for a single step, T = 1; decoding runs it for each new token.

    The output is computed from the old state, $y = a\, h^\top C + (B^\top C)\, x$, so it need not wait for the new one.
    """
    x_RP, a_R1, B_N, C_N = x_TRP[0], jnp.exp(log_a_TR[0])[:, None], B_TN[0], C_TN[0]
    y_RP = a_R1 * _read(C_TN, state_NRP)[0] + (C_N @ B_N) * x_RP
    return y_RP[None], a_R1 * state_NRP + B_N[:, None, None] * x_RP


@for_all
def quadratic(x_TRP: Array, log_a_TR: Array, B_TN: Array, C_TN: Array, state_NRP: Array) -> tuple[Array, Array]:
    """Eq. 2: build the whole matrix M and multiply. Time and memory grow with T squared."""
    state_NRP, y_TRP = _block_row(state_NRP, (x_TRP, log_a_TR, B_TN, C_TN))
    return y_TRP, state_NRP


@for_all
def chunk_by_chunk(
    x_TRP: Array, log_a_TR: Array, B_TN: Array, C_TN: Array, state_NRP: Array, *, chunk_size: int = 64
) -> tuple[Array, Array]:
    """Eqs. 3 to 5, one block row after another; each starts from the state that the previous one left.

    The arrays of a chunk fit in a CPU's cache. The backward pass computes each chunk again, from the state before it.
    """
    T, R, P = x_TRP.shape
    chunks = tuple(_split(each, min(chunk_size, T)) for each in (x_TRP, log_a_TR, B_TN, C_TN))
    state_NRP, y_ZQRP = lax.scan(jax.checkpoint(_block_row), state_NRP, chunks)
    return y_ZQRP.reshape(-1, R, P)[:T], state_NRP


@for_all
def chunked(
    x_TRP: Array,
    log_a_TR: Array,
    B_TN: Array,
    C_TN: Array,
    state_NRP: Array,
    *,
    chunk_size: int = 64,
    pass_states: PassStates | None = None,
) -> tuple[Array, Array]:
    """Eqs. 3 to 5 for all chunks at once: diagonal blocks, chunk states, passing the states, off-diagonal blocks.

    chunk_size is Q; T need not be a multiple of it. pass_states is `states_by_scan` (if None) or
    `states_by_associative_scan`.
    """
    T, R, P = x_TRP.shape
    x_ZQRP, log_a_ZQR, B_ZQN, C_ZQN = (_split(each, min(chunk_size, T)) for each in (x_TRP, log_a_TR, B_TN, C_TN))
    y_ZQRP, added_ZNRP, decay_ZQR = jax.vmap(_diagonal_block)(x_ZQRP, log_a_ZQR, B_ZQN, C_ZQN)
    before_ZNRP, state_NRP = (pass_states or states_by_scan)(added_ZNRP, decay_ZQR[:, -1], state_NRP)
    y_ZQRP = y_ZQRP + decay_ZQR[..., None] * jax.vmap(_read)(C_ZQN, before_ZNRP)  # eq. 5
    return y_ZQRP.reshape(-1, R, P)[:T], state_NRP


def _block_row(state_NRP: Array, steps: tuple[Array, ...]) -> tuple[Array, Array]:
    """Eqs. 4 and 5 for one chunk: return the state after it, and y, given the state before it and its inputs."""
    x_TRP, log_a_TR, B_TN, C_TN = steps
    y_TRP, added_NRP, decay_TR = _diagonal_block(x_TRP, log_a_TR, B_TN, C_TN)
    y_TRP = y_TRP + decay_TR[..., None] * _read(C_TN, state_NRP)
    return decay_TR[-1, :, None] * state_NRP + added_NRP, y_TRP


def _diagonal_block(x_TRP: Array, log_a_TR: Array, B_TN: Array, C_TN: Array) -> tuple[Array, Array, Array]:
    r"""Return M X of eq. 2, what the steps add to the state (eq. 3), and the decay from the start to each step (eq. 5).

    Both decays are in L, with steps numbered 1 to T. Row T has $L_{Ts} = a_T \cdots a_{s+1}$, the decay of the input of
    step s until the last step (eq. 3). Column 1 has $L_{t1} = a_t \cdots a_2$. The state before the first step also
    decays in that step, so its decay until step t is $a_1 L_{t1} = a_t \cdots a_1$ (eq. 5).
    """
    T, R, P = x_TRP.shape
    L_RTS = semiseparable_mask(log_a_TR.T)
    M_RTS = L_RTS * (C_TN @ B_TN.T)  # the heads of a group share the scores, each has its own mask
    y_RTP = M_RTS @ x_TRP.swapaxes(0, 1)  # eq. 2
    to_end_TR = L_RTS[:, -1].T
    from_start_TR = jnp.exp(log_a_TR[:1]) * L_RTS[:, :, 0].T
    x_at_end = (x_TRP * to_end_TR[..., None]).reshape(T, R * P)
    return y_RTP.swapaxes(0, 1), (B_TN.T @ x_at_end).reshape(-1, R, P), from_start_TR


def _read(C_TN: Array, state_NRP: Array) -> Array:
    r"""Return $h^\top C_t$, the output of each step for one state, for all heads of a group in one product."""
    N, R, P = state_NRP.shape
    return (C_TN @ state_NRP.reshape(N, R * P)).reshape(-1, R, P)


def states_by_scan(added_ZNRP: Array, decay_ZR: Array, state_NRP: Array) -> tuple[Array, Array]:
    """Eq. 4, one chunk after another: return the state before each chunk, and the state after the last."""

    def chunk(state_NRP: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        added_NRP, decay_R = now
        return decay_R[:, None] * state_NRP + added_NRP, state_NRP

    last_NRP, before_ZNRP = lax.scan(chunk, state_NRP, (added_ZNRP, decay_ZR))
    return before_ZNRP, last_NRP


def states_by_associative_scan(added_ZNRP: Array, decay_ZR: Array, state_NRP: Array) -> tuple[Array, Array]:
    r"""Eq. 4 in $\log_2 Z$ parallel rounds.

    A run of chunks maps the state before it to the state after it, $H \mapsto a H + U$. Followed by the next run,
    $H \mapsto a' H + U'$, it gives the map $H \mapsto a' a H + (a' U + U')$; this composition is associative.
    """

    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        (a_first, u_first), (a_second, u_second) = first, second
        return a_second * a_first, a_second[:, None, :, None] * u_first + u_second

    a_ZR, u_ZNRP = lax.associative_scan(compose, (decay_ZR, added_ZNRP))
    after_ZNRP = a_ZR[:, None, :, None] * state_NRP + u_ZNRP
    return jnp.concatenate([state_NRP[None], after_ZNRP[:-1]]), after_ZNRP[-1]


def scan(
    x_BTHP: Array, log_a_BTH: Array, B_BTGN: Array, C_BTGN: Array, state_BGNRP: Array, *, chunk_size: int
) -> tuple[Array, Array]:
    """Run the form that suits the length and the device: one step, one block up to the chunk size, or chunks.

    On a CPU, chunks have at most CPU_CHUNK steps and run one after another; on other devices, all chunks run at once.
    The device is the one that the program is lowered for, so that a program can be exported for another device.
    """
    arrays, T = (x_BTHP, log_a_BTH, B_BTGN, C_BTGN, state_BGNRP), x_BTHP.shape[1]
    cpu_chunk = min(chunk_size, CPU_CHUNK)
    if T == 1:
        return step(*arrays)
    if cpu_chunk >= T:
        return quadratic(*arrays)
    # The same number of chunks, of nearly equal length, so that the last one needs little padding.
    cpu_chunk = -(-T // -(-T // cpu_chunk))
    return lax.platform_dependent(
        *arrays,
        cpu=partial(chunk_by_chunk, chunk_size=cpu_chunk),
        default=quadratic if chunk_size >= T else partial(chunked, chunk_size=chunk_size),
    )


def semiseparable_mask(log_a: Array) -> Array:
    r"""Return the 1-semiseparable matrix $L$ of eq. 2, [..., T, T], from log_a [..., T].

    $\log L_{ts}$ is a difference of two running sums. If the decay is strong, the sums are large and nearly equal, and
    their rounding errors matter (2e-4 for 64 steps with log_a = -100 in float32). So the rounding errors are summed as
    well, and corrected.
    """
    T = log_a.shape[-1]
    causal = jnp.tril(jnp.ones((T, T), bool))
    running_sums = partial(jnp.einsum, "ts,...s->...t", causal.astype(log_a.dtype), precision="highest")
    sums = running_sums(log_a)
    missed = running_sums(log_a - jnp.diff(sums, prepend=0))
    missed = lax.stop_gradient(missed)  # the derivative of the sums is already complete
    exponent = (sums[..., :, None] - sums[..., None, :]) + (missed[..., :, None] - missed[..., None, :])
    return jnp.exp(jnp.where(causal, exponent, -jnp.inf))  # masked before exp, which could overflow above the diagonal


def _split(array: Array, Q: int) -> Array:
    """Split [T, ...] into [Z, Q, ...], padded with zeros: a step of zeros leaves the state unchanged."""
    padding = [(0, -len(array) % Q)] + [(0, 0)] * (array.ndim - 1)
    return jnp.pad(array, padding).reshape(-1, Q, *array.shape[1:])
