"""Ways to sum the messages of the neighbours, y_i = sum over the edges j -> i of w_ji x_j, on one graph, float32.

    uv run --all-packages python shared/benchmarks/gnn_aggregation.py [--nodes 100000 --edges 1000000]

The graph is that of gnn.py. "backward" is the gradient by x. Preparation in numpy is not counted. "error" is the
largest difference to the sum in float64, relative to the largest number of the result.

as given           gather, multiply, jax.ops.segment_sum, as the layers do
sorted             the same with the edges sorted by target
sorted, promised   the same with indices_are_sorted=True as well
cumulative sum     a cumulative sum of sorted messages; a target's sum is the difference between its two ends
one-hot product    for each 128 targets, a matrix [targets, edges] of the weights times the messages [edges, F]
rows               for targets of about equal in-degree, a matrix of neighbours [targets, degree], padded by at most a
                   quarter, and a sum over its rows; backward, the same by source
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gnn import power_law
from side_by_side import timed

BLOCK = 128
Rows = list[tuple[jax.Array, jax.Array]]


def segment_sum(source: Any, target: Any, weight: Any, nodes: int, **promise: Any) -> Callable[[jax.Array], jax.Array]:
    """Return the sum as the layers compute it."""
    return lambda x: jax.ops.segment_sum(weight[:, None] * x[source], target, nodes, **promise)


def cumulative_sum(source: Any, target: Any, weight: Any, nodes: int) -> Callable[[jax.Array], jax.Array]:
    """Return the sum as a difference of running totals; the edges are sorted by target."""
    ends = jnp.asarray(np.searchsorted(target, np.arange(nodes + 1)))

    def add(x: jax.Array) -> jax.Array:
        total = jnp.cumsum(weight[:, None] * x[source], axis=0)
        total = jnp.concatenate([jnp.zeros((1, x.shape[1])), total])
        return total[ends[1:]] - total[ends[:-1]]

    return add


def one_hot_product(source: Any, target: Any, weight: Any, nodes: int) -> Callable[[jax.Array], jax.Array]:
    """Return the sum as products of matrices; the edges are sorted by target."""
    cuts = np.searchsorted(target, np.arange(0, nodes + BLOCK, BLOCK))
    place = cuts[:-1, None] + np.arange(np.diff(cuts).max())
    inside, place = place < cuts[1:, None], np.minimum(place, len(target) - 1)
    sources, weights = source[place], np.where(inside, weight[place], 0)
    rows = target[place] - BLOCK * np.arange(len(place))[:, None]

    def block(x: jax.Array, part: Any) -> jax.Array:
        source, row, weight = part
        matrix = jnp.where(jnp.arange(BLOCK)[:, None] == row, weight, 0)
        return matrix @ x[source]

    parts = tuple(map(jnp.asarray, (sources, rows, weights)))
    return lambda x: jax.lax.map(lambda part: block(x, part), parts).reshape(-1, x.shape[1])[:nodes]


def neighbour_rows(source: Any, target: Any, weight: Any, nodes: int) -> tuple[Rows, jax.Array]:
    """Return a matrix of sources and one of weights for each class of in-degree, and where each node's row is."""
    order = np.argsort(target, kind="stable")
    start = np.searchsorted(target[order], np.arange(nodes + 1))
    degree = np.diff(start)
    sizes = [0, 1, 2, 3, 4]
    while sizes[-1] < degree.max():
        sizes.append(sizes[-1] * 5 // 4)
    kind = np.searchsorted(sizes, degree)
    tables, chosen = [], []
    for number in np.unique(kind):
        members = np.flatnonzero(kind == number)
        place = start[members, None] + np.arange(sizes[number])
        inside = place < start[members + 1, None]
        edge = order[np.minimum(place, len(order) - 1)]
        tables.append((jnp.asarray(source[edge]), jnp.asarray(np.where(inside, weight[edge], 0))))
        chosen.append(members)
    return tables, jnp.asarray(np.argsort(np.concatenate(chosen)))


def rows(source: Any, target: Any, weight: Any, nodes: int) -> Callable[[jax.Array], jax.Array]:
    """Return the sum over rows of neighbours: no scatter in either direction."""
    there, back = (neighbour_rows(*ends, weight, nodes) for ends in ((source, target), (target, source)))

    def add_up(x: jax.Array, tables: Rows, place: jax.Array) -> jax.Array:
        return jnp.concatenate([(weights[:, :, None] * x[sources]).sum(axis=1) for sources, weights in tables])[place]

    @jax.custom_vjp
    def add(x: jax.Array) -> jax.Array:
        return add_up(x, *there)

    add.defvjp(lambda x: (add(x), None), lambda _, y: (add_up(y, *back),))
    return add


def main() -> None:
    """Time every way and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--edges", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    N = options.nodes
    features, (source, target), _ = power_law(N, options.edges)
    weight = np.random.default_rng(1).uniform(0.5, 1.5, len(source)).astype(np.float32)
    order = np.argsort(target, kind="stable")
    given, ordered = (source, target, weight), (source[order], target[order], weight[order])
    ways = {
        "as given": segment_sum(*given, N),
        "sorted": segment_sum(*ordered, N),
        "sorted, promised": segment_sum(*ordered, N, indices_are_sorted=True),
        "cumulative sum": cumulative_sum(*ordered, N),
        "one-hot product": one_hot_product(*ordered, N),
        "rows": rows(*ordered, N),
    }
    print(f"jax {jax.__version__}; {N:,} nodes, {options.edges:,} edges; best of {options.rounds} turns, milliseconds")
    print(f"{'':20}{'F = 64':^32}{'F = 16':^32}")
    print(f"{'':20}" + f"{'forward':>10}{'backward':>11}{'error':>11}" * 2)
    compiled = {}
    for name, way in ways.items():
        forward, backward = jax.jit(way), jax.jit(lambda x, y, way=way: jax.vjp(way, x)[1](y)[0])
        for F in (64, 16):
            x = jnp.asarray(features[:, :F])
            compiled[name, F] = (lambda f=forward, x=x: f(x), lambda f=backward, x=x: f(x, x))
    best = {key: [np.inf, np.inf] for key in compiled}
    for turn in range(options.rounds + 1):  # the first one compiles
        for key, pair in compiled.items():
            for place, run in enumerate(pair):
                seconds = timed(lambda run=run: run().block_until_ready())
                if turn:
                    best[key][place] = min(best[key][place], seconds)
    for name in ways:
        cells = ""
        for F in (64, 16):
            exact = np.zeros((N, F))
            for column in range(F):
                exact[:, column] = np.bincount(target, weight.astype(np.float64) * features[source, column], N)
            error = np.abs(np.asarray(compiled[name, F][0]()) - exact).max() / np.abs(exact).max()
            forward, backward = best[name, F]
            cells += f"{1e3 * forward:10.0f}{1e3 * backward:11.0f}{error:11.1e}"
        print(f"{name:20}{cells}", flush=True)


if __name__ == "__main__":
    main()
