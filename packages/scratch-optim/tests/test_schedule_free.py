"""What schedule-free methods promise beyond the goldens: optax's form, masks, dtypes, the trainer, settings."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.train import Trainer, find_optimizer
from scratch_optim import evaluation_parameters, schedule_free_adamw, schedule_free_sgd

TARGET = np.linspace(-1, 1, 6).reshape(2, 3).astype(np.float32)


def run(optimizer, average, steps=40):
    """Return y and x after some steps on a badly scaled quadratic."""
    scales = jnp.array([1.0, 10.0, 100.0])

    @jax.jit
    def step(y, state):
        updates, state = optimizer.update(jax.grad(lambda w: (scales * (w - TARGET) ** 2).sum())(y), state, y)
        return optax.apply_updates(y, updates), state

    y = jnp.zeros((2, 3))
    state = optimizer.init(y)
    for _ in range(steps):
        y, state = step(y, state)
    return np.asarray(y), np.asarray(average(state, y))


def test_without_warmup_it_is_optaxs_form():
    pairs = (
        (schedule_free_sgd(3e-3, momentum=0.9), optax.contrib.schedule_free(optax.sgd(3e-3), 3e-3, b1=0.9)),
        (schedule_free_adamw(0.03, weight_decay=0.1), optax.contrib.schedule_free_adamw(0.03, weight_decay=0.1)),
    )
    for ours, theirs in pairs:
        found, expected = run(ours, evaluation_parameters), run(theirs, optax.contrib.schedule_free_eval_params)
        np.testing.assert_allclose(found, expected, atol=2e-6)


def test_in_warmup_optax_weighs_a_step_by_the_rate_of_the_next():
    """optax#1744: its own count is one ahead of the inner optimizer's, whose count decides the step.

    With the count reduced by one for the weights only, optax gives our result, which test_parity.py compares with the
    reference.
    """

    def rate(count):
        return 3e-3 * jnp.minimum(1.0, (count + 1) / 20)

    ours = run(schedule_free_sgd(3e-3, momentum=0.9, warmup_steps=20), evaluation_parameters)
    for reduced_by, same in ((0, False), (1, True)):
        weights = lambda count, n=reduced_by: rate(count - n)  # noqa: E731
        theirs = optax.contrib.schedule_free(optax.sgd(rate), learning_rate=weights, b1=0.9)
        difference = np.abs(ours[1] - run(theirs, optax.contrib.schedule_free_eval_params)[1]).max()
        assert difference < 2e-6 if same else difference > 1e-4


def test_a_schedule_is_the_same_as_warmup_steps():
    rate = lambda count: 3e-3 * jnp.minimum(1.0, (count + 1) / 20)  # noqa: E731
    for method in (schedule_free_sgd, schedule_free_adamw):
        built_in = run(method(3e-3, warmup_steps=20), evaluation_parameters)
        np.testing.assert_allclose(run(method(rate), evaluation_parameters), built_in, atol=1e-6)


def test_weight_decay_acts_at_y_where_the_mask_is_true():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    optimizer = schedule_free_sgd(0.1, weight_decay=0.5, mask={"kernel": True, "bias": False})
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-5)  # c is 1 in the first step, so y follows z
    np.testing.assert_array_equal(updates["bias"], 0)


def test_bfloat16_parameters_follow_float32_though_their_steps_round_to_nothing():
    optimizer = schedule_free_adamw(1e-3)

    @jax.jit
    def step(y, state):
        updates, state = optimizer.update(2 * (y - TARGET.astype(y.dtype)), state, y)
        return optax.apply_updates(y, updates), state

    losses = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        y = jnp.ones((2, 3), dtype)
        state = optimizer.init(y)
        assert (state.z.dtype, state.second_moment.dtype) == (jnp.float32, jnp.float32)
        for _ in range(300):
            y, state = step(y, state)
        x = evaluation_parameters(state, y)
        assert (y.dtype, x.dtype) == (dtype, dtype)
        losses[dtype] = float(((x.astype(jnp.float32) - TARGET) ** 2).sum())
    assert losses[jnp.float32] < 0.9 * ((1 - TARGET) ** 2).sum()
    assert losses[jnp.bfloat16] == pytest.approx(losses[jnp.float32], rel=0.02)


def test_a_part_of_the_parameters_and_a_rate_that_changes():
    """optax.partition hides the other parameters, and optax.inject_hyperparams traces the learning rate."""
    y = {"a": jnp.ones(3), "b": jnp.ones(2)}
    method = optax.inject_hyperparams(schedule_free_adamw, static_args="warmup_steps")
    optimizer = optax.partition({"a": method(learning_rate=0.1), "b": optax.sgd(0.1)}, {"a": "a", "b": "b"})
    updates, state = jax.jit(optimizer.update)(y, optimizer.init(y), y)
    y = optax.apply_updates(y, updates)
    x = evaluation_parameters(state, y)
    np.testing.assert_allclose(x["a"], 0.9, rtol=1e-5)
    np.testing.assert_array_equal(x["b"], y["b"])


@pytest.mark.parametrize("name", ["schedule-free-sgd", "schedule-free-adamw"])
def test_the_trainer_evaluates_saves_and_ends_with_the_average(name, tmp_path):
    def loss(model, batch):
        return ((model(batch["x"]) - batch["y"]) ** 2).sum(), jnp.float32(batch["x"].shape[0])

    rng = np.random.default_rng(0)
    x = rng.standard_normal((16, 3)).astype(np.float32)
    batch = {"x": x, "y": x @ np.ones((3, 2), np.float32)}
    found = find_optimizer(name)
    results = []
    for folder, steps in (("whole", (30,)), ("resumed", (17, 30))):
        for until in steps:
            model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
            trainer = Trainer(
                model,
                found.build(0.05, weight_decay=0.0, decayed=()),
                loss,
                folder=tmp_path / folder,
                evaluation_parameters=found.evaluation_parameters,
            )
            trainer.restore()
            trainer.fit([batch] * until, until)
            trainer.close()
        y = np.asarray(trainer.state["parameters"]["kernel"])
        assert np.abs(y - model.kernel[...]).max() > 1e-6  # the model holds x, the trainer continues from y
        results.append((trainer.evaluate([batch])["loss"], np.asarray(model.kernel[...]), y))
    for whole, resumed in zip(*results, strict=True):
        np.testing.assert_array_equal(whole, resumed)
    expected = float(((batch["x"] @ results[0][1] + model.bias[...] - batch["y"]) ** 2).sum() / 16)
    assert results[0][0] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedule_free_adamw(1e-3, b1=0.0), "b1=0.0 must be above 0 and below 1: at 0, x cannot be computed"),
        (lambda: schedule_free_sgd(1e-3, momentum=1.0), "momentum=1.0 must be above 0 and below 1"),
        (lambda: schedule_free_sgd(0.0), "learning_rate=0.0 must be above 0"),
        (lambda: schedule_free_sgd(float("nan")), "learning_rate=nan must be above 0 and finite"),
        (lambda: schedule_free_sgd("0.1"), "learning_rate='0.1' must be a number, not of type str"),
        (lambda: schedule_free_sgd(0.1).init(jnp.ones((0, 3))), r"the parameter given has shape \(0, 3\)"),
        (lambda: schedule_free_adamw(1e-3, b2=1.0), "b2=1.0 must be at least 0 and below 1"),
        (lambda: schedule_free_adamw(1e-3, warmup_steps=-1), "warmup_steps=-1 must be an integer of at least 0"),
        (lambda: schedule_free_sgd(1e-3, r=-1), "r=-1 must be at least 0"),
        (
            lambda: schedule_free_sgd(1e-3).init({"a": {"b": jnp.ones(2, jnp.complex64)}}),
            "parameter a.b has dtype comp",
        ),
        (
            lambda: schedule_free_sgd(1e-3).init([jnp.ones(2), jnp.ones(2, jnp.int32)]),
            "the parameter 1 has dtype int32",
        ),
        (
            lambda: evaluation_parameters(optax.adam(1e-3).init(jnp.ones(2)), jnp.ones(2)),
            "holds 0 schedule-free states",
        ),
        (
            lambda: schedule_free_sgd(1e-3).update(jnp.ones(2), schedule_free_sgd(1e-3).init(jnp.ones(2))),
            "need the par",
        ),
    ],
)
def test_a_wrong_setting_is_an_error_with_its_value(make, message):
    with pytest.raises(ConfigError, match=message):
        make()
