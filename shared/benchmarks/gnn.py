"""GCN and GAT of two layers on a power-law graph, float32: ours beside PyTorch Geometric, interleaved in one run.

    uv run --all-packages python shared/benchmarks/gnn.py --reference-python PYTHON [--nodes 100000 --edges 1000000]

PYTHON is an interpreter that has torch, torch_geometric and safetensors (a CPU build is enough). Each model does a
forward pass over the whole graph and a training step (AdamW, every node labelled). The peak memory of a process covers
both models.
"""

import resource
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import Reference, Task, arguments, parse, print_setting, print_table, serve, take_turns, timed

WIDTH, HIDDEN, CLASSES, HEADS = 64, 64, 16, 8
MODELS = ("gcn", "gat")
TASKS = {f"{conv} {what}": (f"{conv} {what}", 0) for conv in MODELS for what in ("forward", "training step")}


def power_law(nodes: int, edges: int) -> Any:
    """Return features, edges and labels: targets are uniform, the frequency of a source falls as rank^-0.8."""
    import numpy as np

    rng = np.random.default_rng(0)
    popularity = np.arange(1, nodes + 1) ** -0.8
    source = rng.choice(nodes, edges, p=popularity / popularity.sum())
    edge_index = np.stack([source, rng.integers(0, nodes, edges)]).astype(np.int32)
    x = rng.normal(size=(nodes, WIDTH)).astype(np.float32)
    return x, edge_index, rng.integers(0, CLASSES, nodes).astype(np.int32)


def peak() -> float:
    """Return the peak of this process's memory in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def serve_pytorch_geometric(folder: str) -> None:
    """Serve the tasks with PyTorch Geometric's layers, with the weights of a folder."""
    import os

    import numpy as np
    import torch
    import torch_geometric
    from safetensors.torch import load_file
    from torch_geometric.nn import GATConv, GCNConv

    torch.set_num_threads(os.cpu_count() or 1)
    nodes, edges = map(int, (Path(folder) / "size").read_text().split())
    x, edge_index, labels = (torch.from_numpy(np.asarray(each)).clone() for each in power_law(nodes, edges))
    edge_index, labels = edge_index.long(), labels.long()

    class Two(torch.nn.Module):
        def __init__(self, conv: str):
            super().__init__()
            if conv == "gcn":
                layers = [GCNConv(WIDTH, HIDDEN), GCNConv(HIDDEN, CLASSES)]
            else:
                layers = [GATConv(WIDTH, HIDDEN // HEADS, HEADS), GATConv(HIDDEN, CLASSES, 1, concat=False)]
            self.convs = torch.nn.ModuleList(layers)
            self.load_state_dict(load_file(Path(folder) / conv / "model.safetensors"))

        def forward(self) -> torch.Tensor:
            return self.convs[1](torch.relu(self.convs[0](x, edge_index)), edge_index)

    models = {conv: Two(conv) for conv in MODELS}
    optimizers = {conv: torch.optim.AdamW(model.parameters(), lr=0.0) for conv, model in models.items()}

    def forward(conv: str) -> None:
        with torch.inference_mode():
            models[conv]()

    def train(conv: str) -> None:
        optimizers[conv].zero_grad()
        torch.nn.functional.cross_entropy(models[conv](), labels).backward()
        optimizers[conv].step()

    tasks = {f"{conv} forward": (lambda _, conv=conv: forward(conv)) for conv in MODELS}
    tasks |= {f"{conv} training step": (lambda _, conv=conv: train(conv)) for conv in MODELS}
    with torch.inference_mode():
        logits = {conv: model()[:100].tolist() for conv, model in models.items()}
    versions = f"torch {torch.__version__}, torch_geometric {torch_geometric.__version__}"
    serve({"logits": logits, "versions": versions}, {**tasks, "peak": lambda _: peak()})


class Ours:
    """The same tasks with our models of a folder."""

    def __init__(self, folder: Path, nodes: int, edges: int):
        import jax
        import optax
        import scratch_core
        from flax import nnx
        from scratch_core.train import Trainer

        x, edge_index, labels = map(jax.numpy.asarray, power_law(nodes, edges))
        self.batch = {"x": x, "edge_index": edge_index, "labels": labels}
        self.forwards, self.trainers = {}, {}
        for conv in MODELS:
            graphdef, state = nnx.split(scratch_core.load(folder / conv))
            forward = jax.jit(lambda state, batch, graphdef=graphdef: nnx.merge(graphdef, state).read(batch))
            self.forwards[conv] = lambda forward=forward, state=state: forward(state, self.batch).block_until_ready()
            self.trainers[conv] = Trainer(scratch_core.load(folder / conv), optax.adamw(0.0))

    def difference(self, hello: Any) -> float:
        """Return the largest difference between our logits and the reference's."""
        import numpy as np

        logits = {conv: np.asarray(forward())[:100] for conv, forward in self.forwards.items()}
        return max(float(np.abs(logits[conv] - np.array(hello["logits"][conv])).max()) for conv in MODELS)

    def __call__(self, task: Task) -> float:
        """Return the seconds of one task."""
        import jax

        conv, _, what = task[0].partition(" ")
        if what == "forward":
            return timed(self.forwards[conv])
        return timed(lambda: jax.block_until_ready(self.trainers[conv].train_step(self.batch)))


def main() -> None:
    """Run both sides and print a table."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--nodes", type=int, default=100_000)
    parser.add_argument("--edges", type=int, default=1_000_000)
    options = parse(parser, serve_pytorch_geometric)

    from flax import nnx
    from scratch_core.train import keep_memory
    from scratch_gnn import GNNConfig, NodeClassifier

    keep_memory()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "size").write_text(f"{options.nodes} {options.edges}")
        for conv in MODELS:
            config = GNNConfig(WIDTH, HIDDEN, CLASSES, conv=conv, heads=HEADS if conv == "gat" else 1)
            NodeClassifier(config, rngs=nnx.Rngs(0)).save_pretrained(folder / conv)
        with Reference(options.reference_python, __file__, name) as reference:
            ours = Ours(folder, options.nodes, options.edges)
            print(f"{options.nodes:,} nodes, {options.edges:,} edges, {WIDTH} features, {HIDDEN} hidden")
            print_setting(reference.hello, ours.difference(reference.hello))
            best = take_turns(TASKS, ours, reference, options.rounds)
            theirs = reference(("peak", 0))
    print_table(best, {})
    print(f"\npeak memory {peak():.2f} GB, theirs {theirs:.2f} GB")


if __name__ == "__main__":
    main()
