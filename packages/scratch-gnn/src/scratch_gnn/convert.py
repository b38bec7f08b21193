"""PyTorch Geometric's names beside ours, for each layer and for the layers of a model (``convs.0``, ``convs.1``).

Its models GCN, GAT and GraphSAGE have the same names as ours. Its GIN names the MLPs differently, and its last MLP has
another width.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from scratch_core.errors import CheckpointError
from scratch_core.weights import Copy, Rule, flatten, transpose
from scratch_core.weights.key_table import find_rule

from scratch_gnn.config import GNNConfig
from scratch_gnn.gin import Fixed

# fmt: off
GIN = [
    Rule("nn.0.weight",  "up.kernel",    transpose),
    Rule("nn.0.bias",    "up.bias"),
    Rule("nn.2.weight",  "down.kernel",  transpose),
    Rule("nn.2.bias",    "down.bias"),
    Rule("eps",          "eps"),
]
TABLE: Mapping[str, list[Rule]] = {  # theirs | ours | transform
    "GCNConv": [
        Rule("lin.weight",    "lin.kernel",    transpose),
        Rule("bias",          "bias"),
    ],
    "GATConv": [
        Rule("lin.weight",    "lin.kernel",    transpose),
        Rule("att_src",       "att_src"),
        Rule("att_dst",       "att_dst"),
        Rule("bias",          "bias"),
    ],
    "GATv2Conv": [
        Rule("lin_l.weight",  "lin_l.kernel",  transpose),
        Rule("lin_l.bias",    "lin_l.bias"),
        Rule("lin_r.weight",  "lin_r.kernel",  transpose),
        Rule("lin_r.bias",    "lin_r.bias"),
        Rule("att",           "att"),
        Rule("bias",          "bias"),
    ],
    "SAGEConv": [
        Rule("lin_l.weight",  "lin_l.kernel",  transpose),
        Rule("lin_l.bias",    "lin_l.bias"),
        Rule("lin_r.weight",  "lin_r.kernel",  transpose),
    ],
    "GINConv": GIN,
    "GINEConv": [
        *GIN,
        Rule("lin.weight",    "lin.kernel",    transpose),
        Rule("lin.bias",      "lin.bias"),
    ],
}
CONVS = {
    "gcn": "GCNConv", "gat": "GATConv", "gatv2": "GATv2Conv", "sage": "SAGEConv", "gin": "GINConv", "gine": "GINEConv",
}
# fmt: on


def rules(config: GNNConfig) -> list[Rule | Copy]:
    """Return theirs | ours | transform of a model."""
    layers: list[Rule | Copy] = [
        Rule(f"convs.{{i}}.{rule.theirs}", f"convs.{{i}}.{rule.ours}", rule.transform)
        for rule in TABLE[CONVS[config.conv]]
    ]
    return [*layers, Rule("gate.weight", "gate.kernel", transpose), Rule("gate.bias", "gate.bias")]


def from_pyg(layer: Any, weights: Mapping[str, Any]) -> Any:
    """Fill a layer in place with the arrays of PyTorch Geometric's ``state_dict()``, and return it.

    Arrays may be numpy, JAX, or CPU tensors; they get the dtype of the layer's parameters. Raises CheckpointError that
    lists each name that is missing or unknown, and each wrong shape.
    """
    ours, table = _held(layer), _table(layer)
    given = {name: np.asarray(value) for name, value in weights.items()}
    problems, values = [], {}
    if "lin_src.weight" in given:  # GATConv before PyTorch Geometric 2.5; lin_dst was the same matrix
        given["lin.weight"] = given.pop("lin_src.weight")
        _drop_copy(given, "lin_dst.weight", "lin.weight", problems)
    if getattr(layer, "lin_r", layer) is None and type(layer).__name__ == "GATv2Conv":  # share_weights
        for part in ("weight", "bias"):
            _drop_copy(given, f"lin_r.{part}", f"lin_l.{part}", problems)
    for path, variable in ours.items():
        found = find_rule(table, path, variable.shape)
        if found is None:
            raise CheckpointError(f"the key table of {type(layer).__name__} has no row for {path}")
        rule, (name,) = found
        expected = rule.their_shape(variable.shape)
        if name not in given:
            problems.append(f"{name} is missing")
        elif (value := given.pop(name)).shape != expected:
            problems.append(f"{name} has shape {list(value.shape)}, expected {list(expected)}")
        else:
            index = tuple(slice(0, size) for size in variable.shape)
            values[path] = jnp.asarray(rule.read([value], index), variable.dtype)
    problems += [f"{name} is unknown" for name in given]
    if problems:
        raise CheckpointError(
            f"these are not the weights of this {type(layer).__name__}: {'; '.join(problems)}. Build the layer with the "
            "arguments that it had in PyTorch Geometric"
        )
    for path, variable in ours.items():
        variable.set_value(values[path])
    return layer


def to_pyg(layer: Any, state: Any = None) -> dict[str, np.ndarray]:
    """Return {PyTorch Geometric's name: array} of a layer's parameters, or of ``state``, such as their gradients.

    Without ``state``, a shared matrix is listed under both of its names, as ``load_state_dict`` requires. Raises
    CheckpointError for an array that is not a parameter of the layer.
    """
    table, result = _table(layer), {}
    ours = {path: variable[...] for path, variable in _held(layer).items()} if state is None else flatten(state)
    for path, value in ours.items():
        found = find_rule(table, path, value.shape)
        if found is None:
            raise CheckpointError(f"the state holds {path}, which is no parameter of {type(layer).__name__}")
        rule, (name,) = found
        (theirs,) = rule.to_theirs(np.asarray(jax.device_get(value)))
        result[name] = np.asarray(theirs, order="C")
    if state is None and getattr(layer, "lin_r", layer) is None and type(layer).__name__ == "GATv2Conv":
        copies = {name.replace("lin_l", "lin_r"): value for name, value in result.items() if name.startswith("lin_l")}
        result |= copies
    return result


def _held(layer: Any) -> dict[str, nnx.Variable]:
    """Return {our path: variable} for all that a checkpoint holds."""
    flat: Any = nnx.to_flat_state(nnx.state(layer, nnx.Any(nnx.Param, Fixed)))
    return {".".join(map(str, path)): _variable(layer, path) for path, _ in flat}


def _variable(layer: Any, path: tuple[Any, ...]) -> nnx.Variable:
    for name in path:
        layer = getattr(layer, name)
    return layer


def _table(layer: Any) -> list[Rule]:
    name = type(layer).__name__
    if name not in TABLE:
        raise CheckpointError(f"{name} has no counterpart in PyTorch Geometric here; known: {', '.join(TABLE)}")
    return TABLE[name]


def _drop_copy(given: dict[str, np.ndarray], copy: str, original: str, problems: list[str]) -> None:
    """Remove a name whose array must equal that of ``original``; add a problem if it does not."""
    if copy in given:
        value = given.pop(copy)
        if original not in given or not np.array_equal(value, given[original]):
            problems.append(f"{copy} differs from {original}, which this layer shares with it")
