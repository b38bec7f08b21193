"""Goldens of PyTorch Geometric's layers, float64: outputs, loss, gradients under its names, and weights both ways."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scratch_gnn
from flax import nnx
from safetensors.numpy import load_file
from scratch_core.errors import CheckpointError
from scratch_gnn import GATConv, GATv2Conv, GCNConv, from_pyg, to_pyg

GOLDEN = Path(__file__).parent / "golden"
RENAMED = {"hidden": "hidden_channels", "out": "out_channels"}  # the spelling of golden/gnn


def runs():
    for folder in ("gnn", "gnn-more"):
        for run, settings in json.loads((GOLDEN / folder / "config.json").read_text()).items():
            yield folder, run, {RENAMED.get(name, name): value for name, value in settings.items()}


def part(tensors, run, kind=""):
    prefix = f"{run}.{kind}"
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@pytest.mark.parametrize(("folder", "run", "settings"), [pytest.param(*each, id=each[1]) for each in runs()])
def test_equals_pytorch_geometric(folder, run, settings):
    io = load_file(GOLDEN / folder / "io.safetensors")
    weights = part(load_file(GOLDEN / folder / "model.safetensors"), run)
    conv, weighted = getattr(scratch_gnn, settings.pop("conv")), settings.pop("edge_weight_used", False)
    if f"{run}.grad.eps" in io:
        settings["train_eps"] = True
    with jax.enable_x64(True):
        layer = from_pyg(conv(**settings, param_dtype=jnp.float64, rngs=nnx.Rngs(0)), weights)
        extra = [io["edge_weight"]] if weighted else []
        if conv is scratch_gnn.GINEConv:
            extra = [io[f"edge_attr.{layer.edge_dim}"]]

        def loss(layer):
            output = layer(io["x"], io["edge_index"], *extra)
            return jnp.mean((output - io[f"{run}.target"]) ** 2), output

        (value, output), gradients = nnx.jit(nnx.value_and_grad(loss, has_aux=True))(layer)
        theirs, again = to_pyg(layer, gradients), to_pyg(layer)
    np.testing.assert_allclose(output, io[f"{run}.output"], atol=1e-12)
    np.testing.assert_allclose(value, io[f"{run}.loss"], atol=1e-12)
    expected = part(io, run, "grad.")
    assert theirs.keys() == expected.keys()
    for name, gradient in expected.items():
        np.testing.assert_allclose(theirs[name], gradient, atol=1e-12, err_msg=name)
    assert again.keys() == weights.keys()
    for name, value in weights.items():
        assert (again[name].dtype, again[name].shape) == (value.dtype, value.shape), name
        assert again[name].tobytes() == value.tobytes(), name


def test_float32_is_close_to_the_reference():
    io, weights = (load_file(GOLDEN / "gnn" / f"{name}.safetensors") for name in ("io", "model"))
    layer = from_pyg(GATConv(5, 3, heads=2, rngs=nnx.Rngs(0)), part(weights, "gat_h2_concat"))
    output = layer(io["x"].astype(np.float32), io["edge_index"])
    assert output.dtype == jnp.float32
    np.testing.assert_allclose(output, io["gat_h2_concat.output"], atol=2e-6)


def test_weights_that_do_not_fit_are_listed_together():
    layer = GCNConv(3, 2, rngs=nnx.Rngs(0))
    before = np.asarray(layer.lin.kernel[...])
    wrong = {"lin.weight": np.ones((3, 2), np.float32), "scale": np.ones(2, np.float32)}
    with pytest.raises(CheckpointError) as caught:
        from_pyg(layer, wrong)
    for text in ("bias is missing", "lin.weight has shape [3, 2], expected [2, 3]", "scale is unknown"):
        assert text in str(caught.value)
    np.testing.assert_array_equal(layer.lin.kernel[...], before)
    with pytest.raises(CheckpointError, match="the state holds other, which is no parameter of GCNConv"):
        to_pyg(layer, {"other": np.ones(1)})
    with pytest.raises(CheckpointError, match="Linear has no counterpart"):
        to_pyg(layer.lin)


def test_older_names_and_shared_matrices():
    layer = GATConv(3, 2, rngs=nnx.Rngs(0))
    weights = to_pyg(layer)
    older = dict(weights)
    older["lin_src.weight"] = older["lin_dst.weight"] = older.pop("lin.weight")
    again = to_pyg(from_pyg(GATConv(3, 2, rngs=nnx.Rngs(1)), older))
    np.testing.assert_array_equal(again["lin.weight"], weights["lin.weight"])
    shared = GATv2Conv(3, 2, share_weights=True, rngs=nnx.Rngs(0))
    weights = to_pyg(shared)
    weights["lin_r.weight"] = weights["lin_r.weight"] + 1
    with pytest.raises(CheckpointError, match=r"lin_r\.weight differs from lin_l\.weight"):
        from_pyg(shared, weights)
