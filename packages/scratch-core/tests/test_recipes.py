"""Schedules, averages, precision, norms, traces, loggers and curves of a run."""

import io
import itertools
import json
import re
import sys
import time
import types
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scratch_core.errors import ConfigError, MissingExtraError
from scratch_core.layers import Linear
from scratch_core.train import Trainer
from scratch_core.train.curves import draw_curves
from scratch_core.train.loggers import open_loggers
from scratch_core.train.metrics import Progress
from scratch_core.train.optimizers import SCHEDULES, AdamW, Averaged, Optimizer, warmup_stable_decay
from scratch_core.train.precision import compute_in


class Net(nnx.Module):
    config = None

    def __init__(self, config=None, *, dtype=jnp.float32, rngs=None):
        rngs = rngs or nnx.Rngs(0)
        self.layers = nnx.List([Linear(4, 4, dtype=dtype, rngs=rngs) for _ in range(2)])
        self.head = Linear(4, 1, rngs=rngs)

    def loss(self, batch):
        x = batch
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return ((self.head(x) - 1.0).astype(jnp.float32) ** 2).sum(), jnp.float32(len(batch))


X = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)


def test_schedules_by_name():
    rates = {name: [float(make(1.0, 100)(step)) for step in range(101)] for name, make in SCHEDULES.items()}
    for values in rates.values():
        assert values[0] == 0.0
        np.testing.assert_allclose(values[5], 0.5, atol=1e-6)
        assert max(values) == values[10] == 1.0
        assert all(a >= b - 1e-6 for a, b in itertools.pairwise(values[10:]))
    np.testing.assert_allclose([rates["cosine"][100], rates["linear"][100], rates["wsd"][100]], [0.1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(rates["linear"][55], 0.5, atol=1e-6)
    np.testing.assert_allclose([rates["wsd"][90], rates["wsd"][95]], [1.0, 0.5], atol=1e-6)
    with pytest.raises(ConfigError, match=r"warmup=60 and decay=0.5 must fit in steps=100"):
        warmup_stable_decay(1.0, 100, warmup=60, decay=0.5)


def test_the_average_is_what_is_evaluated_and_saved():
    model, optimizer = Net(), Averaged(AdamW(), 0.9)
    built = optimizer.build(0.05, weight_decay=0.0, decayed=())
    trainer = Trainer(model, built, evaluation_parameters=optimizer.evaluation_parameters)
    trajectory = [np.array(model.head.kernel[...])]
    for _ in range(4):
        trainer.train_step(X)
        trajectory.append(np.array(trainer.state["parameters"]["head"]["kernel"]))
    average = trajectory[0]
    for kernel in trajectory[1:]:
        average = 0.9 * average + 0.1 * kernel
    trainer.fit([X] * 4, 4)
    np.testing.assert_allclose(model.head.kernel[...], average, atol=1e-6)
    assert np.abs(average - trajectory[-1]).max() > 1e-3
    with pytest.raises(ConfigError, match=r"--average 1\.0 must be between 0 and 1"):
        Averaged(AdamW(), 1.0)

    class Own(Optimizer):
        def evaluation_parameters(self, optimizer_state, parameters):
            return optimizer_state

    with pytest.raises(ConfigError, match="Own averages its parameters itself"):
        Averaged(Own(), 0.9)


def test_computing_in_bfloat16_keeps_parameters_float32_and_small_updates():
    model = Net()
    compute_in(model, jnp.bfloat16)
    assert model.layers[0](X).dtype == jnp.bfloat16
    assert model.head(X).dtype == jnp.float32  # this layer always computes in float32
    before = np.array(model.layers[0].kernel[...])
    Trainer(model, optax.adam(1e-5)).fit([X], 1)
    after = np.asarray(model.layers[0].kernel[...])
    assert after.dtype == np.float32
    np.testing.assert_allclose(np.abs(after - before), 1e-5, rtol=0.1)  # bfloat16 would round it away


def test_norms_a_trace_and_other_loggers_on_request(tmp_path):
    class Logger:
        def __init__(self):
            self.records = []

        def append(self, record):
            self.records.append(record)

    logger, model = Logger(), Net()
    kernels = [np.array(leaf) for leaf in jax.tree.leaves(nnx.state(model.layers[1]))]
    trainer = Trainer(model, optax.sgd(0.1), folder=tmp_path, norms=True, profile=True, loggers=[logger], log_every=1)
    trainer.fit([X] * 6, 6)
    trainer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert logger.records == lines
    assert lines[0]["gradient_norms"].keys() == lines[0]["parameter_norms"].keys() == {"layers.0", "layers.1", "head"}
    expected = np.sqrt(sum((kernel**2).sum() for kernel in kernels))
    assert lines[0]["parameter_norms"]["layers.1"] == pytest.approx(float(expected), rel=1e-5)
    total = np.sqrt(sum(value**2 for value in lines[0]["gradient_norms"].values()))
    assert lines[0]["gradient_norm"] == pytest.approx(total, rel=1e-5)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_tensorboard_gets_every_number_and_a_logger_that_is_not_installed_says_so(tmp_path, monkeypatch):
    class Writer:
        def __init__(self, folder):
            self.folder, self.scalars = folder, {}

        def add_scalar(self, name, value, step):
            self.scalars[name, step] = value

        def flush(self):
            pass

    assert open_loggers("file", tmp_path) == []
    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=Writer))
    (logger,) = open_loggers("tensorboard", tmp_path)
    logger.append({"step": 3, "loss": 2.0, "gradient_norms": {"head": 0.5}})
    assert logger._writer.scalars == {("loss", 3): 2.0, ("gradient_norms.head", 3): 0.5}
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match="--log wandb needs the extra 'wandb'"):
        open_loggers("wandb", tmp_path)


def test_the_progress_shows_the_losses_the_rate_and_the_time_left():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream in (io.StringIO(), Terminal()):
        with Progress(8, unit="tokens", stream=stream) as progress:
            progress.advance(1)
            progress.report(1, 3.25, None)
            time.sleep(0.01)
            progress.advance(2)
            progress.report(2, 2.25, 1500.0, held_out=2.75)
            progress.advance(3)
            progress.report(3, 1.25, 1500.0)
        text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
        if stream.isatty():
            last = text.splitlines()[-1]
            assert re.search(r"3/8 loss 1\.2500  held-out 2\.7500  1,500 tokens/s [-0-9:]+", last), last
        else:
            assert re.search(r"step 2/8  loss 2\.2500  held-out loss 2\.7500  1,500 tokens/s  0:00 left\n", text)
            assert re.search(r"step 3/8  loss 1\.2500  1,500 tokens/s", text)


def test_curves_show_the_held_out_numbers_also_where_there_is_one():
    records = [{"step": 1, "loss": 3.0}, {"step": 5, "loss": 2.0, "held_out_loss": 2.5, "held_out_accuracy": 0.5}]
    root = ET.fromstring(draw_curves({"a": records, "b": [*records, {"step": 9, "held_out_loss": 2.0}]}))
    svg = "{http://www.w3.org/2000/svg}"
    assert {"held-out loss", "held-out accuracy"} <= {node.text for node in root.iter(svg + "text")}
    lines = [len(node.get("points", "").split()) for node in root.iter(svg + "polyline")]
    assert lines == [2, 2, 1, 2, 1, 1]
    assert len(list(root.iter(svg + "circle"))) == 3


def test_curves_show_every_run_and_leave_out_what_is_not_finite():
    one = [{"step": step, "loss": 1 / step, "gradient_norm": 1.0} for step in (1, 10, 20)]
    two = [{"step": 1, "loss": 3.0}, {"step": 5, "loss": float("nan")}, {"step": 10, "loss": 2.0}]
    root = ET.fromstring(draw_curves({"runs/a<b": one, "runs/c": two}))
    lines = [node.get("points", "").split() for node in root.iter("{http://www.w3.org/2000/svg}polyline")]
    assert [len(points) for points in lines] == [3, 2, 3, 0]
    assert {"runs/a<b", "runs/c", "training loss"} <= {
        node.text for node in root.iter("{http://www.w3.org/2000/svg}text")
    }
    heights = [float(point.split(",")[1]) for point in lines[0]]
    assert heights == sorted(heights)  # a falling loss falls, and the y axis of an SVG points down
    with pytest.raises(ConfigError, match="nothing to draw"):
        draw_curves({"runs/a": []})
