"""The trainer: its results equal those of a plain loop, and a run that is interrupted and resumed changes no result."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scratch_core.data import TextEvaluation, Windows, training_batches
from scratch_core.errors import CheckpointError, ConfigError, DataError, TrainingError
from scratch_core.layers import LoRAParam
from scratch_core.losses import causal_lm_loss
from scratch_core.train import (
    Best,
    Checkpoints,
    Evaluation,
    MetricsLog,
    Trainer,
    adamw,
    add_lora,
    find_optimizer,
    recompute_statistics,
    warmup_cosine,
)
from scratch_core.train.checkpoints import digest
from scratch_core.train.optimizers import SCHEDULES, AdamW, Averaged


class Toy(nnx.Module):
    """A language model that reads only the last token. Normalisation and dropout give it state."""

    def __init__(self, vocab_size=32, width=16, *, dropout=0.0, normalise=False, rngs):
        self.embedding = nnx.Embed(vocab_size, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs) if normalise else None
        self.dropout = nnx.Dropout(dropout, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs)])
        self.head = nnx.Linear(width, vocab_size, rngs=rngs)

    def __call__(self, input_ids, attention_mask=None):
        x = self.embedding(input_ids)
        x = self.norm(x) if self.norm is not None else x
        for layer in self.layers:
            x = x + nnx.relu(layer(self.dropout(x)))
        return self.head(x)


def toy(**options):
    return Toy(rngs=nnx.Rngs(0), **options)


def tokens(count=2000):
    """A text in which each token largely determines the next."""
    steps = np.random.default_rng(0).choice([1, 3], count)
    return (np.cumsum(steps) % 32).astype(np.uint16)


def batches(batch_size=8, seed=0):
    return training_batches(Windows(tokens(), 16), batch_size, seed=seed)


def parameters(model):
    return jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_step_equals_the_plain_loop():
    # Written out by hand: exactly what the trainer must do.
    data, reference, optimizer = batches(), toy(), optax.adam(1e-2)
    graphdef, params = nnx.split(reference, nnx.Param, ...)[:2]
    rest = nnx.split(reference, nnx.Param, ...)[2]
    state, losses = optimizer.init(params), []

    @jax.jit
    @jax.value_and_grad
    def mean_loss(params, batch):
        total, weight = causal_lm_loss(nnx.merge(graphdef, params, rest), batch)
        return total / weight

    for k in range(3):
        loss, gradients = mean_loss(params, data[k])
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        losses.append(float(loss))

    model = toy()
    trainer = Trainer(model, optax.adam(1e-2), causal_lm_loss)
    for k in range(3):
        assert abs(trainer.fit(data, k + 1).loss - losses[k]) < 1e-5
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), parameters(model), nnx.to_pure_dict(params))


def test_fit_learns_and_compiles_once():
    traces = []

    def counted(model, batch):
        traces.append(1)
        return causal_lm_loss(model, batch)

    model = toy()
    trainer = Trainer(model, adamw(warmup_cosine(3e-2, 60), weight_decay=0.0), counted)
    held_out = TextEvaluation(tokens(700)[500:], 4, 16)
    before = trainer.evaluate(held_out)["loss"]
    outcome = trainer.fit(batches(), 60)
    after = trainer.evaluate(held_out)["loss"]
    assert outcome.step == trainer.step == 60
    assert outcome.interrupted is None
    assert before > 3.0
    assert after < 1.0  # two equally likely successors: log 2 = 0.69
    assert len(traces) == 2  # one for the step, one for the evaluation


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulation_equals_the_large_batch(accumulate):
    # Labels are missing very unevenly: a mean of means would differ in the first digit.
    batch = dict(batches(batch_size=8)[0])
    labels = np.array(batch["input_ids"])
    labels[0, 2:] = labels[3, 5:] = labels[6] = -100
    data = [batch | {"labels": labels}] * 3
    plain, split = toy(), toy()
    losses = []
    for model, pieces in ((plain, 1), (split, accumulate)):
        trainer = Trainer(model, optax.sgd(0.1), causal_lm_loss, accumulate=pieces)
        losses.append([trainer.fit(data, k + 1).loss for k in range(3)])
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), parameters(plain), parameters(split))


def test_the_loss_is_the_models_own_unless_another_is_given():
    class Own(Toy):
        def loss(self, batch):
            total, weight = causal_lm_loss(self, batch)
            return 2 * total, weight

    own, given = (
        Trainer(Own(rngs=nnx.Rngs(0)), optax.sgd(0.0), *loss).fit(batches(), 1).loss for loss in ((), (causal_lm_loss,))
    )
    assert own == pytest.approx(2 * given, rel=1e-6)


def test_steps_is_a_loop_of_ones_own():
    data, fitted, stepped = batches(), toy(dropout=0.2), toy(dropout=0.2)
    Trainer(fitted, optax.adam(1e-2), causal_lm_loss).fit(data, 3)
    trainer, seen = Trainer(stepped, optax.adam(1e-2), causal_lm_loss), []
    for step, metrics in trainer.steps(data, 10):
        seen.append((step, metrics["count"], np.isfinite(metrics["loss"])))
        if step == 3:
            break
    assert seen == [(1, 8, True), (2, 8, True), (3, 8, True)]
    same(parameters(fitted), parameters(stepped))  # the model has them when the loop has ended
    for step, _ in trainer.steps(data, 4):
        assert step == 4
    with contextlib.suppress(RuntimeError):
        for _ in trainer.steps(data, 9):
            raise RuntimeError
    assert trainer.step == 5
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(parameters(stepped)))
    assert list(trainer.steps(data, 5)) == []


def test_evaluation_and_the_final_model_read_the_parameters_of_the_optimizer():
    """An optimizer halves the evaluated parameters: loss and final model use the halves, but training does not."""
    plain, halved, data = toy(), toy(), batches()
    half = lambda state, parameters: jax.tree.map(lambda x: x / 2, parameters)  # noqa: E731
    losses = []
    for model, options in ((plain, {}), (halved, {"evaluation_parameters": half})):
        trainer = Trainer(model, optax.sgd(0.1), causal_lm_loss, **options)
        losses.append([trainer.fit(data, k + 1).loss for k in range(3)])
        evaluated = trainer.evaluate([data[0]])["loss"]
        assert evaluated == pytest.approx(float(np.divide(*causal_lm_loss(model, data[0]))), abs=1e-5)
    assert losses[0] == losses[1]
    same(jax.tree.map(lambda x: x / 2, parameters(plain)), parameters(halved))


def test_the_optimizer_called_adamw_is_the_usual_recipe():
    parameters = {"kernel": jnp.ones((2, 2)), "embedding": jnp.ones((2, 2))}
    gradients = jax.tree.map(lambda x: 3 * x, parameters)
    updates = []
    for optimizer in (
        find_optimizer("adamw").build(0.1, weight_decay=0.3, decayed=("embedding",)),
        adamw(0.1, weight_decay=0.3, decayed=("embedding",)),
    ):
        updates.append(optimizer.update(gradients, optimizer.init(parameters), parameters)[0])
    same(*updates)
    assert find_optimizer("adamw").evaluation_parameters(None, parameters) is parameters


def test_accumulate_must_divide_the_batch():
    with pytest.raises(ConfigError, match="accumulate=3 must divide the batch size 8"):
        Trainer(toy(), optax.sgd(0.1), causal_lm_loss, accumulate=3).fit(batches(), 1)


def test_every_step_reads_its_own_batch():
    seen = []

    class Recorder:
        def __getitem__(self, k):
            seen.append(k)
            return batches()[k]

    # SGD with rate 0: the loss of each step is that of its batch at the first parameters.
    model = toy()
    trainer = Trainer(model, optax.sgd(0.0), causal_lm_loss)
    losses = [trainer.fit(Recorder(), k + 1).loss for k in range(4)]
    expected = [float(np.divide(*causal_lm_loss(model, batches()[k]))) for k in range(4)]
    assert seen == [0, 1, 2, 3]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert len(set(losses)) == 4


def test_dropout_is_on_in_fit_off_in_evaluate_and_drawn_anew():
    model = toy(dropout=0.5)
    batch = batches()[0]
    trainer = Trainer(model, optax.sgd(0.0), causal_lm_loss)
    first, second = (trainer.fit([batch] * 2, k + 1).loss for k in range(2))
    one, two = (trainer.evaluate([batch])["loss"] for _ in range(2))
    assert abs(first - second) > 1e-4  # the rate is 0, so only the dropout masks differ
    assert one == two
    off = float(np.divide(*causal_lm_loss(model, batch)))  # fit leaves the model in evaluation mode
    assert abs(one - off) < 1e-6
    assert abs(first - one) > 1e-4


def test_running_statistics_move_in_fit_and_not_in_evaluate():
    model = toy(normalise=True)
    trainer = Trainer(model, optax.sgd(0.0), causal_lm_loss)
    start = np.array(model.norm.mean[...])
    trainer.evaluate([batches()[0]])
    np.testing.assert_array_equal(model.norm.mean[...], start)
    trainer.fit(batches(), 2)
    assert np.abs(np.asarray(model.norm.mean[...]) - start).max() > 1e-4


def test_evaluation_is_one_mean_over_all_targets_and_counts_no_padding():
    model, data = toy(), tokens(100)
    trainer = Trainer(model, optax.sgd(0.0), causal_lm_loss)
    logits = model(jnp.asarray(data[None, :-1].astype(np.int32)))  # this model reads no context
    expected = float(optax.softmax_cross_entropy_with_integer_labels(logits[0], data[1:].astype(np.int32)).mean())
    for batch_size, length in ((1, 100), (4, 16), (3, 7)):
        assert abs(trainer.evaluate(TextEvaluation(data, batch_size, length))["loss"] - expected) < 1e-5
    padded = dict(TextEvaluation(data, 4, 16)[1])
    padded["input_ids"] = np.where(padded["labels"] == -100, 5, padded["input_ids"])  # arbitrary tokens as padding
    assert trainer.evaluate([padded]) == trainer.evaluate([TextEvaluation(data, 4, 16)[1]])


def test_metrics_are_named_and_an_empty_evaluation_is_an_error():
    trainer = Trainer(toy(), optax.sgd(0.0), causal_lm_loss)
    count = lambda model, batch: (jnp.float32(3.0), jnp.float32(2.0))  # noqa: E731
    assert trainer.evaluate([batches()[0]], {"constant": count})["constant"] == 1.5
    with pytest.raises(DataError, match="nothing to evaluate"):
        trainer.evaluate([])


def test_frozen_parameters_stay_as_they_are():
    model = toy()
    before = parameters(model)
    in_head = lambda path, x: isinstance(x, nnx.Param) and "head" in path  # noqa: E731
    Trainer(model, adamw(1e-2), causal_lm_loss, trainable=in_head).fit(batches(), 3)
    after = parameters(model)
    assert np.abs(after["head"]["kernel"] - before["head"]["kernel"]).max() > 1e-3
    before.pop("head"), after.pop("head")
    same(before, after)


def test_updates_that_are_not_finite_are_skipped_and_then_stop_the_run(tmp_path):
    def broken(model, batch):
        total, weight = causal_lm_loss(model, batch)
        return jnp.where(batch["bad"][0], jnp.nan, 1.0) * total, weight

    def data(bad):
        return [dict(batches()[k]) | {"bad": np.array([b] * 8)} for k, b in enumerate(bad)]

    model = toy()
    trainer = Trainer(model, optax.adam(1e-2), broken, max_skipped=3, folder=tmp_path, log_every=1)
    trainer.fit(data([False]), 1)
    good = parameters(model)
    trainer.fit(data([False, True, True]), 3)
    same(good, parameters(model))
    trainer.fit(data([False, True, True, False]), 4)  # the count starts again
    with pytest.raises(TrainingError, match="3 steps in a row, up to step 7: lower the learning rate"):
        trainer.fit(data([False, True, True, False] + [True] * 9), 13)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(parameters(model)))
    assert [line["skipped"] for line in trainer.metrics.read()][:7] == [0, 1, 2, 0, 1, 2, 3]
    trainer.close()


def run(folder, steps, *, until=None, **options):
    """Train in ``folder`` up to ``steps``, interrupted by SIGINT in step ``until``; resumes where it was."""
    model = toy(dropout=0.2, normalise=True)
    trainer = Trainer(
        model, adamw(warmup_cosine(1e-2, 12)), causal_lm_loss, folder=folder, save_every=5, log_every=1, **options
    )
    assert trainer.restore() == []
    source = batches()

    class Data:
        def __getitem__(self, k):
            if k + 1 == until:
                os.kill(os.getpid(), signal.SIGINT)
            return source[k]

    outcome = trainer.fit(Data(), steps)
    trainer.close()
    return model, outcome, trainer


def test_interrupted_and_resumed_is_bit_identical(tmp_path):
    whole, outcome, _ = run(tmp_path / "whole", 12)
    assert (outcome.step, outcome.interrupted) == (12, None)
    _, outcome, _ = run(tmp_path / "parts", 12, until=7)
    assert (outcome.step, outcome.interrupted) == (7, "SIGINT")
    parts, outcome, trainer = run(tmp_path / "parts", 12)
    assert (outcome.step, outcome.interrupted) == (12, None)
    same(parameters(whole), parameters(parts))
    # Everything: optimizer, dropout's RNG, running statistics; and the log has each step once, with the same loss.
    lines = [json.loads(line) for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [(line["loss"], line["gradient_norm"]) for line in lines] == [
        (line["loss"], line["gradient_norm"]) for line in expected
    ]
    assert trainer.step == 12


def test_resume_reads_the_checkpoint(tmp_path):
    # Steps 1 to 5 are in the checkpoint: a resume that nothing reads would start at 0 and log them again.
    run(tmp_path, 5)
    MetricsLog(tmp_path / "metrics.jsonl").append({"step": 6, "loss": 99.0})  # after the checkpoint: replaced
    _, outcome, trainer = run(tmp_path, 6)
    steps = [line["step"] for line in trainer.metrics.read()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert outcome.loss == trainer.metrics.read()[-1]["loss"] != 99.0


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    Trainer(toy(), optax.sgd(0.1), causal_lm_loss).fit(batches(), 1)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("dtype", [np.float32, np.uint32, np.int8, np.bool_, jnp.bfloat16, np.float16])
def test_digest_notices_each_bit_and_each_swap(dtype):
    random = np.random.default_rng(0)
    x = random.integers(0, 2 if dtype is np.bool_ else 100, (7, 9)).astype(dtype)
    x[0, 0], x[3, 4] = 0, 1
    base = int(digest(jnp.asarray(x)))
    assert int(digest(jnp.asarray(x.copy()))) == base
    bits = x.view(np.uint8).copy()
    for position in range(bits.size) if dtype is not np.bool_ else []:
        for bit in (0, 7):
            bits.flat[position] ^= 1 << bit
            assert int(digest(jnp.asarray(bits.view(x.dtype).reshape(x.shape)))) != base
            bits.flat[position] ^= 1 << bit
    swapped = x.copy()
    swapped[0, 0], swapped[3, 4] = x[3, 4], x[0, 0]
    assert int(digest(jnp.asarray(swapped))) != base


def state(value):
    return {
        "parameters": {
            "layers": {0: {"kernel": jnp.full((64, 64), value)}, 1: {"kernel": jnp.ones((3,), jnp.bfloat16)}}
        },
        "optimizer": (jnp.int32(value), {"m": jnp.arange(4.0)}, ()),
        "key": jax.random.key(int(value)),
    }


def test_checkpoints_keep_the_newest_and_restore_every_kind_of_array(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    assert checkpoints.restore(state(0.0)) is None
    for step in range(1, 5):
        checkpoints.save(step, state(float(step)))
    found = checkpoints.restore(state(0.0))
    assert found.step == 4
    assert found.damaged == []
    assert checkpoints.steps() == [3, 4]
    key = found.state.pop("key")
    expected = state(4.0)
    same(found.state, {name: expected[name] for name in found.state})
    assert float(jax.random.uniform(key)) == float(jax.random.uniform(expected["key"]))
    checkpoints.close()


def test_values_are_copied_before_the_state_is_donated(tmp_path):
    advance = jax.jit(lambda x: x + 1, donate_argnums=0)
    checkpoints, x = Checkpoints(tmp_path), jnp.zeros((1000, 1000))
    checkpoints.save(1, {"x": x})
    for _ in range(20):
        x = advance(x)
    found = checkpoints.restore({"x": x})
    assert found.damaged == []
    assert float(found.state["x"].max()) == 0.0
    checkpoints.close()


def largest_file(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_flipped_bit_is_noticed_named_and_passed_over(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    random = jax.random.uniform(jax.random.key(0), (64, 64))  # does not compress: a flipped bit decodes
    for step in (1, 2):
        checkpoints.save(step, {"parameters": {"kernel": random * step}, "small": jnp.ones(2)})
    checkpoints.wait()
    path = largest_file(tmp_path / "2" / "state")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    like = {"parameters": {"kernel": random}, "small": jnp.ones(2)}
    found = checkpoints.restore(like)
    assert found.step == 1
    assert len(found.damaged) == 1
    assert "step 2 is damaged" in found.damaged[0]
    assert "parameters.kernel" in found.damaged[0] or "cannot be read" in found.damaged[0]
    np.testing.assert_array_equal(found.state["parameters"]["kernel"], random)
    checkpoints.save(2, like)  # the run comes by again
    assert checkpoints.restore(like).step == 2
    checkpoints.close()


def test_all_damaged_is_an_error_and_so_is_another_model(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"kernel": jnp.ones((4, 4))})
    with pytest.raises(CheckpointError, match=r"step 1 is of another model.*kernel: wanted .*5.*found .*4"):
        checkpoints.restore({"kernel": jnp.ones((5, 4))})
    with pytest.raises(CheckpointError, match="bias"):
        checkpoints.restore({"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)})
    largest_file(tmp_path / "1" / "state").write_bytes(b"")
    (tmp_path / "1" / "state" / "manifest.ocdbt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no step is intact: .*step 1 is damaged"):
        checkpoints.restore({"kernel": jnp.ones((4, 4))})
    checkpoints.close()


def test_metrics_log_leaves_out_a_torn_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append({"step": step})
    with open(log.path, "a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in log.read()] == [1, 2, 3]
    log.truncate_after(2)
    assert log.path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_schedule_and_decay():
    schedule = warmup_cosine(1.0, 100, warmup=10)
    assert [round(float(schedule(k)), 3) for k in (0, 5, 10, 55, 100)] == [0.0, 0.5, 1.0, 0.55, 0.1]
    assert float(warmup_cosine(1.0, 5)(0)) == 1.0
    with pytest.raises(ConfigError, match="warmup=5 must be at least 0 and less than steps=5"):
        warmup_cosine(1.0, 5, warmup=5)
    parameters = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "norm": {"scale": jnp.ones(2)}}
    optimizer = adamw(0.1, weight_decay=0.5)
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, parameters), optimizer.init(parameters), parameters)
    assert float(updates["kernel"][0, 0]) == pytest.approx(-0.05)
    assert float(updates["bias"][0]) == float(updates["norm"]["scale"][0]) == 0.0


@pytest.mark.parametrize("option", ["accumulate", "save_every", "keep", "log_every", "max_skipped"])
def test_numbers_below_one_are_refused(option):
    with pytest.raises(ConfigError, match=f"{option}=0 must be at least 1"):
        Trainer(toy(), optax.sgd(0.1), causal_lm_loss, **{option: 0})


def average(decay=0.7):
    optimizer = Averaged(AdamW(), decay)
    return optimizer.build(2e-2, weight_decay=0.0, decayed=()), optimizer.evaluation_parameters


def test_evaluation_on_the_way_is_logged_and_changes_no_bit_of_the_training(tmp_path):
    held_out, models = TextEvaluation(tokens(700)[500:], 4, 16), [toy(dropout=0.2, normalise=True) for _ in range(2)]
    one = lambda model, batch: (jnp.float32(1.0), jnp.float32(1.0))  # noqa: E731
    for model, evaluation in zip(models, (None, Evaluation(held_out, {"one": one}, every=3)), strict=True):
        optimizer, evaluated = average()
        options = {"folder": tmp_path, "log_every": 4} if evaluation else {}
        trainer = Trainer(model, optimizer, causal_lm_loss, evaluation_parameters=evaluated, **options)
        outcome = trainer.fit(batches(), 8, evaluation=evaluation)
        losses = trainer.evaluate(held_out)["loss"]
    same(*map(parameters, models))
    same(*(np.asarray(model.norm.var[...]) for model in models))
    lines = trainer.metrics.read()
    trainer.close()
    assert [line["step"] for line in lines] == [1, 3, 4, 6, 8]
    assert [line["step"] for line in lines if "held_out_loss" in line] == [3, 6, 8]
    assert outcome.held_out == {"loss": losses, "one": 1.0}
    assert (lines[-1]["held_out_loss"], lines[-1]["held_out_one"]) == (losses, 1.0)
    # The loss is that of the final model: the optimizer's average, with running statistics of its own.
    sums = [causal_lm_loss(models[1], batch) for batch in held_out]
    assert losses == pytest.approx(float(sum(s for s, _ in sums) / sum(w for _, w in sums)), abs=1e-5)


def fit_table(folder, table, *, until=None, **options):
    """Train a bias that falls by 0.1 in each of 12 steps, up to a SIGINT in step ``until``.

    It is evaluated after every 2 steps, and the held-out loss after step k is ``table[k]``.
    """

    def loss(model, batch):
        if "table" in batch:
            return batch["table"][jnp.round(-10 * model.bias[0]).astype(int)], jnp.float32(1)
        return model.bias.sum(), jnp.float32(1)

    class Data:
        def __getitem__(self, k):
            if k + 1 == until:
                os.kill(os.getpid(), signal.SIGINT)
            return {"x": np.zeros(1)}

    model = nnx.Linear(1, 1, rngs=nnx.Rngs(0))
    trainer = Trainer(model, optax.sgd(0.1), loss, folder=folder, save_every=5, keep=1, **options)
    trainer.restore()
    return trainer, trainer.fit(Data(), 12, evaluation=Evaluation([{"table": np.array(table)}], every=2, patience=2))


def test_a_run_stops_when_its_patience_ends_and_keeps_the_best_also_when_it_was_interrupted(tmp_path):
    table = np.array([9, 9, 5, 9, 3, 9, 4, 9, 3, 9, 1, 9, 1], np.float32)  # 3 after step 4, and nothing lower by 8
    logs = []
    for name, until in (("whole", None), ("fifth", 5), ("seventh", 7)):
        if until is not None:
            trainer, outcome = fit_table(tmp_path / name, table, until=until, keep_best=1)
            assert (outcome.step, outcome.interrupted, outcome.hopeless) == (until, "SIGINT", False)
            trainer.close()
        trainer, outcome = fit_table(tmp_path / name, table, keep_best=1)
        assert (outcome.step, outcome.hopeless, outcome.best) == (8, True, Best(3.0, 4, 2))
        assert trainer.checkpoints.steps() == [4, 8]
        assert trainer.load_best() == []
        assert trainer.step == 4
        np.testing.assert_allclose(trainer.model.bias[...], -0.4, atol=1e-6)
        logs.append([(line["step"], line.get("held_out_loss")) for line in trainer.metrics.read()])
        trainer.close()
    assert logs == [[(1, None), (2, 5.0), (4, 3.0), (6, 4.0), (8, 3.0)]] * 3
    trainer, outcome = fit_table(tmp_path / "whole", table)  # started again, it makes no step
    assert (outcome.step, outcome.hopeless, outcome.held_out) == (8, True, None)
    trainer.close()


def test_a_loss_that_is_not_a_number_is_no_improvement():
    best = Best()
    for step, loss in ((1, float("nan")), (2, 2.0), (3, float("nan")), (4, 2.0)):
        best.add(step, loss)
    assert best == Best(2.0, 2, 2)
    records = [{"step": 1, "held_out_loss": 3.0}, {"step": 2}, {"step": 4, "held_out_loss": float("nan")}]
    assert Best.logged(records) == Best(3.0, 1, 1)
    with pytest.raises(ConfigError, match="patience=-1 must be at least 0"):
        Evaluation([], patience=-1)


def test_statistics_over_batches_are_those_of_one_pass_over_all(tmp_path):
    ids = np.random.default_rng(0).integers(0, 32, (6, 4, 16)).astype(np.int32)
    model, together = toy(normalise=True, dropout=0.3), toy(normalise=True)
    key = np.asarray(jax.random.key_data(model.dropout.rngs.key[...]))
    recompute_statistics(model, ({"input_ids": batch} for batch in ids), causal_lm_loss)
    together.norm.momentum = 0.0
    together.train()
    together(ids.reshape(24, 16))
    np.testing.assert_allclose(model.norm.mean[...], together.norm.mean[...], atol=1e-6)
    np.testing.assert_allclose(model.norm.var[...], together.norm.var[...], rtol=1e-5)
    assert model.norm.momentum == 0.99
    assert model.norm.use_running_average
    assert model.dropout.deterministic
    np.testing.assert_array_equal(key, jax.random.key_data(model.dropout.rngs.key[...]))

    with pytest.raises(DataError, match=r"batch 1 of the statistics has the shapes .*\(3, 16\).*give batches of one"):
        recompute_statistics(model, [{"input_ids": ids[0]}, {"input_ids": ids[1, :3]}], causal_lm_loss)
    with pytest.raises(DataError, match="need at least one batch"):
        recompute_statistics(model, [], causal_lm_loss)
    recompute_statistics(toy(), iter(lambda: pytest.fail("no statistics: no batch is read"), None), causal_lm_loss)

    class Other(nnx.Module):
        def __init__(self):
            self.total = nnx.BatchStat(jnp.zeros(()))

    with pytest.raises(ConfigError, match="Other keeps running statistics, but has no mean"):
        recompute_statistics(Other(), [])


def test_averaged_parameters_are_evaluated_with_statistics_of_their_own(tmp_path):
    data, (optimizer, evaluated) = batches(), average()
    options = {"folder": tmp_path, "evaluation_parameters": evaluated}
    model = toy(normalise=True)
    trainer = Trainer(model, optimizer, causal_lm_loss, **options)
    trainer.fit(data, 20)
    trained = trainer.state["rest"]["norm"]
    expected = toy(normalise=True)
    nnx.update(expected, nnx.state(model, nnx.Param))
    recompute_statistics(expected, (data[k] for k in range(16)), causal_lm_loss)
    np.testing.assert_array_equal(model.norm.var[...], expected.norm.var[...])
    assert np.abs(np.asarray(trained["var"] - model.norm.var[...])).max() > 1e-3
    assert trainer.evaluate([data[0]])["loss"] == pytest.approx(
        float(np.divide(*causal_lm_loss(expected, data[0]))), abs=1e-5
    )
    trainer.close()
    resumed = Trainer(toy(normalise=True), optimizer, causal_lm_loss, **options)
    resumed.restore()
    with pytest.raises(ConfigError, match=r"no training data is known to compute them from: call fit\(dataset, 20\)"):
        resumed.evaluate([data[0]])
    resumed.fit(data, 20)
    np.testing.assert_array_equal(resumed.model.norm.var[...], expected.norm.var[...])
    resumed.close()

    plain = toy(normalise=True)  # trained and evaluated parameters are the same, and so are the statistics
    trainer = Trainer(plain, adamw(2e-2), causal_lm_loss)
    trainer.fit(data, 3)
    np.testing.assert_array_equal(plain.norm.var[...], trainer.state["rest"]["norm"]["var"])


@pytest.mark.parametrize("kind", ["average", "schedule", "lora", "accumulation"])
def test_what_a_run_carries_along_resumes_bit_for_bit(tmp_path, kind):
    """Beside dropout, running statistics and AdamW's moments, which `run` above has; schedule-free: scratch-optim."""
    ends = []
    for folder, legs in (("whole", (9,)), ("parts", (4, 9))):
        for until in legs:
            model, options = toy(dropout=0.2), {}
            optimizer = adamw(SCHEDULES["wsd"](1e-2, 9) if kind == "schedule" else 1e-2)
            if kind == "average":
                optimizer, options["evaluation_parameters"] = average()
            elif kind == "accumulation":
                options["accumulate"] = 2
            elif kind == "lora":
                add_lora(model, "layers.*", "head", rank=2, rngs=nnx.Rngs(1))
                options["trainable"] = LoRAParam
            trainer = Trainer(model, optimizer, causal_lm_loss, folder=tmp_path / folder, keep=1, **options)
            trainer.restore()
            outcome = trainer.fit(batches(), until)
            trainer.close()
            assert trainer.checkpoints.steps() == [until]
        is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
        everything = trainer.state, nnx.to_pure_dict(nnx.state(model, nnx.Param)), jnp.float32(outcome.loss)
        ends.append(jax.tree.map(lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x), everything))  # noqa: B023
    same(*ends)


# ------------------------------------------------------------------------------------------------- memory

STEP = """
import resource, sys
import jax, jax.numpy as jnp
from scratch_core.train import keep_memory

print(keep_memory() if sys.argv[1] == "keep" else None)
x = jnp.ones((4096, 64))
step = jax.jit(lambda x: (x @ x.T) @ x)  # 64 MB of temporary memory
page_faults = []
for _ in range(25):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    page_faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
# Those of the median step. A step that begins before the memory of the last one is free has to take more memory.
print(sorted(page_faults[-11:])[5])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator has these settings")
def test_kept_memory_is_not_asked_for_again():
    def page_faults_of_a_step(how):
        run = subprocess.run([sys.executable, "-c", STEP, how], capture_output=True, text=True, check=True)
        kept, faults = run.stdout.split()
        return kept, int(faults)

    kept, faults = page_faults_of_a_step("keep")
    assert kept == "True"
    assert faults < page_faults_of_a_step("give back")[1] / 10
