"""GraphSAGE on sampled neighbours of a power-law graph of 1 M nodes and 10 M edges: seconds of a step, peak memory.

    uv run --all-packages python shared/benchmarks/gnn_sampling.py [--nodes 1000000 --edges 10000000 --conv sage]

The first steps, which compile a few shapes, count for the memory and not for the time. The label of a node is the index
of the largest of its neighbourhood's first 16 summed features, so that it can be learned. The held-out nodes are
evaluated exactly, on the whole graph in blocks, as `scratch train gnn --fanout 10,10` does.
"""

import argparse
import statistics
import time

from gnn import CLASSES, HIDDEN, WIDTH, peak, power_law

FANOUTS, BATCH, WARM = (10, 10), 512, 20


def main() -> None:
    """Build the graph, train, and print time and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=1_000_000)
    parser.add_argument("--edges", type=int, default=10_000_000)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--conv", default="sage")
    options = parser.parse_args()

    import numpy as np
    import optax
    from flax import nnx
    from scratch_core.train import Trainer, keep_memory
    from scratch_gnn import GNNConfig, Graph, NodeClassifier
    from scratch_gnn.inference import InBlocks
    from scratch_gnn.sampling import NeighbourSampler, sampled_batches
    from scratch_gnn.tasks.common import accuracy
    from scratch_gnn.tasks.nodes import labelled

    keep_memory()
    x, edge_index, _ = power_law(options.nodes, options.edges)
    total = np.zeros((options.nodes, CLASSES), np.float32)
    for column in range(CLASSES):
        total[:, column] = np.bincount(edge_index[1], x[edge_index[0], column], options.nodes)
    graph = Graph(x, edge_index, total.argmax(axis=1).astype(np.int32))
    del total
    start = time.perf_counter()
    sampler = NeighbourSampler(graph, FANOUTS)
    print(
        f"{options.nodes:,} nodes, {options.edges:,} edges, {WIDTH} features; fanouts {FANOUTS}, {BATCH} nodes a step"
    )
    print(f"edges sorted by target in {time.perf_counter() - start:.1f} s; memory so far {peak():.2f} GB", flush=True)
    order = np.random.default_rng(0).permutation(options.nodes)
    train, test = np.split(order, [options.nodes * 9 // 10])
    train = sampled_batches(sampler, train, BATCH, seed=0)
    model = NodeClassifier(GNNConfig(WIDTH, HIDDEN, CLASSES, conv=options.conv), rngs=nnx.Rngs(0))
    trainer = Trainer(model, optax.adam(3e-3))
    held_out = InBlocks(labelled(graph, test))
    before = trainer.evaluate(held_out, {"accuracy": accuracy})["accuracy"]  # compiles
    print(f"before training: held-out accuracy {100 * before:.1f} %; peak memory {peak():.2f} GB", flush=True)
    seconds, sampling = [], []
    for k in range(options.steps):
        began = time.perf_counter()
        batch = train[k]
        sampled = time.perf_counter()
        float(trainer.train_step(batch)["loss"])
        seconds.append(time.perf_counter() - began)
        sampling.append(sampled - began)
    began = time.perf_counter()
    after = trainer.evaluate(held_out, {"accuracy": accuracy})["accuracy"]
    evaluation = time.perf_counter() - began
    step, draw = statistics.median(seconds[WARM:]), statistics.median(sampling[WARM:])
    print(f"a step takes {1e3 * step:.0f} ms, of which sampling {1e3 * draw:.0f} ms (median)")
    print(f"held-out accuracy after {options.steps} steps: {100 * after:.1f} % of {len(test):,} nodes")
    print(f"an evaluation on all edges, in {len(held_out)} blocks, takes {evaluation:.1f} s")
    print(f"peak memory of all that {peak():.2f} GB")


if __name__ == "__main__":
    main()
