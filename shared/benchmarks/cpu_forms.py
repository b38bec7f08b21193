"""Every form that was chosen for a CPU, beside the plain one: both give the same result, and take turns in one run.

    uv run --all-packages python shared/benchmarks/cpu_forms.py [NAME ...] [--rounds 7]

Prints the best time of each and how many times as fast ours is. NAME is one of the names in the first column; without
NAME, all run. shared/docs/cpu.md describes the forms.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Form = Callable[..., Any]
Case = tuple[str, Form, Form, list[jax.Array], int]
"""The name of the computation, the plain form, ours, the arrays of both, and the number of calls per measurement."""

CASES: dict[str, Callable[[], Case]] = {}
TOLERANCE = 2e-4  # of the largest value, for sums in another order


def case(build: Callable[[], Case]) -> Callable[[], Case]:
    """Add a case to ``CASES`` under the name of its function."""
    CASES[build.__name__.replace("_", "-")] = build
    return build


def arrays(*shapes: tuple[int, ...]) -> list[jax.Array]:
    """Return normal numbers of these shapes."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def with_gradients(form: Form, count: int) -> Form:
    """Return a function that computes a form, and the gradients by its first ``count`` arrays."""

    def loss(*operands: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(form(*operands)))

    return jax.value_and_grad(loss, argnums=tuple(range(count)))


def gradients(what: str, plain: Form, ours: Form, operands: list[jax.Array], count: int, calls: int = 1) -> Case:
    return f"{what}, with gradients", with_gradients(plain, count), with_gradients(ours, count), operands, calls


# ----------------------------------------------------------------------------------------------- products


@case
def linear() -> Case:
    from scratch_core.layers.linear import dot_rows

    plain = lambda x, w: lax.dot_general(x, w, (((2,), (0,)), ((), ())))  # noqa: E731
    return gradients("[8, 197, 768] x [768, 12, 64]", plain, dot_rows, arrays((8, 197, 768), (768, 12, 64)), 2)


@case
def read_values() -> Case:
    """The last product of attention, in ViT and Swin."""

    def scores(query, key):
        return jax.nn.softmax(jnp.einsum("BTNH,BSNH->BNTS", query, key), axis=-1)

    def plain(query, key, value):
        return jnp.einsum("BNTS,BSNH->BTNH", scores(query, key), value)

    def ours(query, key, value):
        return jnp.matmul(scores(query, key), value.swapaxes(1, 2)).swapaxes(1, 2)

    return "attention of 8 x 197 tokens, 12 heads", plain, ours, arrays(*[(8, 197, 12, 64)] * 3), 1


def _tied_head(rows: int) -> Case:
    """A loop that generates tokens: the head's logits choose a row of the embedding, which changes the next input."""
    from flax import nnx
    from scratch_core.generation.sampling import greedy
    from scratch_core.layers import tied_logits

    def written(head, table, x):
        embedding = nnx.Embed(1, 512, rngs=nnx.Rngs(0))
        embedding.embedding = nnx.Param(table)
        step = lambda _, x: 0.9 * x + 0.1 * table[greedy(head(embedding, x))]  # noqa: E731
        return lax.fori_loop(0, 16, step, x)

    operands = arrays((32_128, 512), (rows, 512))
    plain, ours = partial(written, nnx.Embed.attend), partial(written, tied_logits)
    return f"{rows} x 512 by an embedding of 32,128, 16 tokens", plain, ours, operands, 1


for _rows in (1, 8):
    CASES[f"tied-head-{_rows}"] = partial(_tied_head, _rows)


@case
def t5_memory() -> Case:
    """A loop in which one token after the other reads the same keys and values, as in T5's cross-attention."""
    from scratch_core.layers import attend

    def written(key_order, value_order, key, value, x):
        back = [tuple(map(order.index, range(4))) for order in (key_order, value_order)]
        key, value = lax.optimization_barrier((key.transpose(key_order), value.transpose(value_order)))

        def step(_, x):
            return attend(x, key.transpose(back[0]), value.transpose(back[1]), None, scale=1.0)

        return lax.fori_loop(0, 64, step, x)

    operands = arrays((8, 128, 8, 64), (8, 128, 8, 64), (8, 1, 8, 64))
    plain, ours = partial(written, (0, 1, 2, 3), (0, 1, 2, 3)), partial(written, (0, 2, 1, 3), (0, 2, 3, 1))
    return "64 tokens of 8 rows read 128 positions, 8 heads", plain, ours, operands, 1


# ----------------------------------------------------------------------------------------------- images


@case
def convolution_1x1() -> Case:
    from scratch_core.layers.linear import dot_rows
    from scratch_resnet.convolution import convolve

    plain, ours = partial(convolve, stride=1), lambda x, w: dot_rows(x, w[0, 0])
    return gradients("8 x 56 x 56, 64 to 256 channels", plain, ours, arrays((8, 56, 56, 64), (1, 1, 64, 256)), 2)


def _winograd(size: int, channels: int, *, forward: bool) -> Case:
    from scratch_resnet.convolution import convolve
    from scratch_resnet.winograd import winograd

    operands = arrays((8, size, size, channels), (3, 3, channels, channels))
    what, plain = f"8 x {size} x {size}, {channels} channels", partial(convolve, stride=1)
    return (what, plain, winograd, operands, 1) if forward else gradients(what, plain, winograd, operands, 2)


for _size, _channels in ((56, 64), (28, 128), (14, 256), (7, 512)):  # the stages of a ResNet
    CASES[f"winograd-{_size}"] = partial(_winograd, _size, _channels, forward=True)
    CASES[f"winograd-{_size}-gradients"] = partial(_winograd, _size, _channels, forward=False)


@case
def max_pool() -> Case:
    from scratch_resnet.convolution import max_pool

    def plain(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), ((0, 0), (1, 1), (1, 1), (0, 0)))

    return gradients("8 x 112 x 112 x 64", plain, max_pool, arrays((8, 112, 112, 64)), 1)


@case
def batch_norm() -> Case:
    from scratch_resnet.batch_norm import variance

    def normalised(variance_of, x):
        mean = x.mean((0, 1, 2))
        return jax.nn.relu((x - mean) * lax.rsqrt(variance_of(x, mean) + 1e-5) + 0.1)

    plain = partial(normalised, lambda x, mean: jnp.mean(jnp.square(x - mean), axis=(0, 1, 2)))
    return gradients("8 x 56 x 56 x 256", plain, partial(normalised, variance), arrays((8, 56, 56, 256)), 1)


# ----------------------------------------------------------------------------------------------- Mamba-2


def _ssd_arrays(T: int) -> list[jax.Array]:
    """The operator's arrays of mamba2-130m: 24 heads of 64, one group, a state of 128."""
    x, log_a, B_, C_, state = arrays((1, T, 24, 64), (1, T, 24), (1, T, 1, 128), (1, T, 1, 128), (1, 1, 128, 24, 64))
    return [x, -jnp.abs(log_a), B_ / T, C_, state / 128]


@case
def ssd_chunk_by_chunk() -> Case:
    from scratch_mamba2 import ssd

    plain, ours = (partial(form, chunk_size=64) for form in (ssd.chunked, ssd.chunk_by_chunk))
    return "2,048 steps in chunks of 64", plain, ours, _ssd_arrays(2048), 1


@case
def ssd_chunk_size() -> Case:
    from scratch_mamba2 import ssd

    plain, ours = (partial(ssd.chunk_by_chunk, chunk_size=size) for size in (256, 64))
    return "2,048 steps, chunks of 64 instead of 256", plain, ours, _ssd_arrays(2048), 1


@case
def causal_convolution() -> Case:
    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1,), [(3, 0)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=x.shape[-1]
        )

    def ours(x, kernel):
        from flax import nnx
        from scratch_mamba2.model import CausalConv

        conv = CausalConv(x.shape[-1], 4, use_bias=False, rngs=nnx.Rngs(0))
        conv.kernel = nnx.Param(kernel)
        return conv(jnp.pad(x, ((0, 0), (3, 0), (0, 0))))

    return gradients("512 steps of 1,792 channels, 4 wide", plain, ours, arrays((1, 512, 1792), (4, 1, 1792)), 2)


# ----------------------------------------------------------------------------------------------- the rest


def _grouped_arrays(N: int, R: int) -> tuple[list[jax.Array], jax.Array]:
    """N blocks of R rows and 8 kernels, 768 to 1,728 features; the expert of each block."""
    return arrays((N, R, 768), (8, 768, 1728)), jnp.arange(N, dtype=jnp.int32) % 8


@case
def experts() -> Case:
    from scratch_core.layers.expert_dispatch import grouped_dot

    operands, expert_N = _grouped_arrays(16, 64)
    expert_N = jnp.sort(expert_N)

    def plain(x_NRI, kernel_EIO):
        rows_E = jnp.bincount(expert_N, length=8).astype(jnp.int32) * 64
        return lax.ragged_dot(x_NRI.reshape(-1, 768), kernel_EIO, rows_E).reshape(16, 64, -1)

    ours = lambda x, kernel: grouped_dot(x, kernel, expert_N)  # noqa: E731
    return gradients("1,024 rows, each by one of 8 kernels of 768 x 1,728", plain, ours, operands, 2)


@case
def expert_pieces() -> Case:
    from scratch_core.layers.expert_dispatch import grouped_dot

    operands, expert_N = _grouped_arrays(2, 1)

    def plain(x_NRI, kernel_EIO):
        block = lambda _, row: (None, row[0] @ lax.dynamic_index_in_dim(kernel_EIO, row[1], keepdims=False))  # noqa: E731
        return lax.scan(block, None, (x_NRI, expert_N))[1]

    ours = lambda x, kernel: grouped_dot(x, kernel, expert_N)  # noqa: E731
    return "2 rows, each by one of 8 kernels of 768 x 1,728", plain, ours, operands, 10


@case
def gelu() -> Case:
    from scratch_core.layers import gelu

    plain = partial(jax.nn.gelu, approximate=False)
    return gradients("8 x 197 x 3072", plain, gelu, arrays((8, 197, 3072)), 1)


@case
def greedy() -> Case:
    from scratch_core.generation.sampling import greedy

    return "8 x 50,280 logits", partial(jnp.argmax, axis=-1), greedy, arrays((8, 50_280)), 10


@case
def label_logits() -> Case:
    from scratch_core.losses import cross_entropy

    labels = jnp.asarray(np.random.default_rng(0).integers(0, 32_000, 512))

    def plain(logits):
        hit = jnp.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
        return jax.nn.logsumexp(logits, axis=-1).sum() - hit.sum()

    return gradients("512 x 32,000 logits", plain, lambda z: cross_entropy(z, labels)[0], arrays((512, 32_000)), 1)


def skipped_update(rounds: int) -> None:
    """Print a line as :func:`main` does, for an update that may be skipped; both forms donate what they update."""

    def update(parameters, momentum, gradient):
        momentum = 0.9 * momentum + gradient
        return parameters - 0.1 * momentum, momentum

    def plain(parameters, momentum, gradient):
        finite, new = jnp.isfinite(gradient[0]).all(), update(parameters, momentum, gradient)
        return tuple(jnp.where(finite, a, b) for a, b in zip(new, (parameters, momentum), strict=True))

    def ours(parameters, momentum, gradient):
        finite = jnp.isfinite(gradient[0]).all()
        return lax.cond(finite, lambda p, m: update(p, m, gradient), lambda p, m: (p, m), parameters, momentum)

    def stepping(form: Form) -> Callable[[], Any]:
        *state, gradient = arrays(*[(4096, 4096)] * 3)
        step = jax.jit(form, donate_argnums=(0, 1))

        def run() -> Any:
            state[:] = step(*state, gradient)
            return state

        return run

    report("skipped-update", "momentum SGD of 16.8 M parameters", *best([stepping(plain), stepping(ours)], 1, rounds))


def step_of_large_arrays(keep: bool) -> None:
    """Print the best seconds of a step with a gigabyte of temporary memory, with `keep_memory` or without."""
    from scratch_core.train import keep_memory

    if keep and not keep_memory():
        sys.exit("this system's allocator has no setting to keep memory")
    x, w = arrays((8192, 64), (64, 8192))
    step = jax.jit(jax.grad(lambda w: jnp.sum(jnp.tanh(jnp.tanh(x @ w) @ w.T @ w))))
    print(best([partial(step, w)], 1, 5)[0])


def keep_memory(rounds: int) -> None:
    """Print a line as :func:`main` does; each turn is a process of its own, because threads keep their setting."""
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(min(rounds, 3)):
        for keep, times in seconds.items():
            command = [sys.executable, __file__, "--child", "keep" if keep else "return"]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            times.append(float(run.stdout.split()[-1]))
    report("keep-memory", "a step with 1 GB of temporary memory", min(seconds[False]), min(seconds[True]))


OTHERS = {"skipped-update": skipped_update, "keep-memory": keep_memory}
"""Measurements that need more than two functions of the same arrays."""


# ----------------------------------------------------------------------------------------------- measuring


def best(runs: list[Callable[[], Any]], calls: int, rounds: int) -> list[float]:
    """Return the best seconds of one call of each, in turns after one turn that compiles."""
    seconds = [float("inf")] * len(runs)
    for turn in range(rounds + 1):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            for _ in range(calls):
                result = run()
            jax.block_until_ready(result)
            if turn:
                seconds[i] = min(seconds[i], (time.perf_counter() - start) / calls)
    return seconds


def report(name: str, what: str, plain: float, ours: float) -> None:
    print(f"{name:22} {what:48} {plain * 1e3:9.3f} {ours * 1e3:9.3f} {plain / ours:6.2f}x", flush=True)


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES | OTHERS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--child", choices=("keep", "return"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return step_of_large_arrays(options.child == "keep")
    if unknown := set(options.names) - set(CASES | OTHERS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(CASES | OTHERS)}")

    import flax
    import jaxlib

    print(f"jaxlib {jaxlib.__version__}, flax {flax.__version__}, {os.cpu_count()} cores, float32")
    print(f"XLA_FLAGS={os.environ.get('XLA_FLAGS', '')}\n")
    print(f"{'':22} {'':48} {'plain ms':>9} {'ours ms':>9} {'gain':>7}")
    for name in options.names or CASES | OTHERS:
        if name in OTHERS:
            OTHERS[name](options.rounds)
            continue
        what, plain, ours, operands, calls = CASES[name]()
        runs = [partial(jax.jit(form), *operands) for form in (plain, ours)]
        for one, other in zip(*(jax.tree.leaves(run()) for run in runs), strict=True):
            one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
            if (difference := np.abs(one - other).max()) > TOLERANCE * np.abs(one).max():
                sys.exit(f"{name}: both forms differ by {difference}, of values up to {np.abs(one).max()}")
        report(name, what, *best(runs, calls, options.rounds))


if __name__ == "__main__":
    main()
