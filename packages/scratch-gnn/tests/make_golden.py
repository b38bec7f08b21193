# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "torch_geometric", "safetensors", "numpy"]
# ///
"""Make a golden folder like ``golden/gnn-more`` beside this file, with PyTorch Geometric. The tests never run it.

    uv run packages/scratch-gnn/tests/make_golden.py FOLDER

A random graph with self loops, a repeated edge and an isolated node; for each run a layer with random weights, its
output, the mean squared error to a target, and the gradients, all float64. ``golden/gnn`` has the same form.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch_geometric.nn import GATConv, GATv2Conv, GCNConv, GINConv, GINEConv, SAGEConv

RUNS = {
    "gcn_improved": {"conv": "GCNConv", "out_channels": 4, "improved": True, "edge_weight_used": True},
    "gcn_plain": {"conv": "GCNConv", "out_channels": 4, "normalize": False, "edge_weight_used": True, "bias": False},
    "gcn_no_loops": {"conv": "GCNConv", "out_channels": 4, "add_self_loops": False},
    "gat_mean": {"conv": "GATConv", "out_channels": 4, "heads": 3, "concat": False, "negative_slope": 0.1},
    "gat_no_loops": {"conv": "GATConv", "out_channels": 4, "heads": 2, "add_self_loops": False, "bias": False},
    "gatv2": {"conv": "GATv2Conv", "out_channels": 3, "heads": 2},
    "gatv2_mean": {"conv": "GATv2Conv", "out_channels": 3, "heads": 2, "concat": False, "bias": False},
    "gatv2_shared": {"conv": "GATv2Conv", "out_channels": 3, "heads": 2, "share_weights": True},
    "sage_max": {"conv": "SAGEConv", "out_channels": 4, "aggr": "max"},
    "sage_normalized": {"conv": "SAGEConv", "out_channels": 4, "normalize": True},
    "sage_no_root": {"conv": "SAGEConv", "out_channels": 4, "root_weight": False, "bias": False},
    "gin_fixed": {"conv": "GINConv", "hidden_channels": 6, "out_channels": 4, "eps": 0.3},
    "gine": {"conv": "GINEConv", "hidden_channels": 6, "out_channels": 4, "train_eps": True, "edge_dim": 2},
    "gine_plain": {"conv": "GINEConv", "hidden_channels": 6, "out_channels": 4},
}
CONVS = {conv.__name__: conv for conv in (GCNConv, GATConv, GATv2Conv, SAGEConv, GINConv, GINEConv)}


def build(conv, in_channels, arguments):
    if conv not in ("GINConv", "GINEConv"):
        return CONVS[conv](in_channels, **arguments)
    hidden, out = arguments.pop("hidden_channels"), arguments.pop("out_channels")
    up, down = torch.nn.Linear(in_channels, hidden), torch.nn.Linear(hidden, out)
    return CONVS[conv](torch.nn.Sequential(up, torch.nn.ReLU(), down), **arguments)


def main():
    folder = Path(sys.argv[1]) / "gnn-more"
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    N, D = 9, 5
    x = torch.randn(N, D)
    edge_index = torch.randint(0, N - 1, (2, 24))
    edge_index[:, 0] = 2  # a self loop
    edge_index[:, 1] = edge_index[:, 5] = torch.tensor([3, 4])  # the same edge twice
    edge_weight = torch.rand(24) + 0.5
    attributes = {2: torch.randn(24, 2), D: torch.randn(24, D)}
    io = {"x": x, "edge_index": edge_index.int(), "edge_weight": edge_weight}
    io |= {f"edge_attr.{A}": value for A, value in attributes.items()}
    weights, config = {}, {}
    for run, settings in RUNS.items():
        arguments = {name: value for name, value in settings.items() if name not in ("conv", "edge_weight_used")}
        layer = build(settings["conv"], D, arguments)
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
        extra = [edge_weight] if settings.get("edge_weight_used") else []
        if settings["conv"] == "GINEConv":
            extra = [attributes[settings.get("edge_dim", D)]]
        output = layer(x, edge_index, *extra)
        target = torch.randn_like(output)
        loss = torch.nn.functional.mse_loss(output, target)
        loss.backward()
        io |= {f"{run}.output": output, f"{run}.target": target, f"{run}.loss": loss}
        io |= {f"{run}.grad.{name}": parameter.grad for name, parameter in layer.named_parameters()}
        weights |= {f"{run}.{name}": value.clone() for name, value in layer.state_dict().items()}
        config[run] = {"in_channels": D, **settings}
    for name, tensors in (("io", io), ("model", weights)):
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    main()
