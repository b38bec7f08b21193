"""Known mistakes in fine-tuning Gemma 2, each with a test that fails if it happens here.

shared/docs/fine_tuning_gemma2.md lists them with the places where they were reported.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from scratch_core.data.tokenizers import ByteTokenizer
from scratch_core.errors import DataError
from scratch_core.layers import Rope
from scratch_core.train import Trainer
from scratch_gemma import Gemma2, Gemma2Config, GemmaConfig, encode_chat
from scratch_gemma.model import RMSNorm, embed_scaled

CONFIG = Gemma2Config(
    264, 48, 2, num_heads=4, num_kv_heads=2, head_dim=16, d_ff=64, query_pre_attn_scalar=24, window=4,
    attention_cap=0.5, logit_cap=0.5, bos_token_id=256, eos_token_id=257, pad_token_id=258,
)  # fmt: skip
LENGTHS = (12, 7, 3, 5)


def padded_batch(side: str) -> dict[str, np.ndarray]:
    """Rows of LENGTHS tokens, padded to 12: longer than the window, so that some windows are all padding."""
    rng, mask = np.random.default_rng(0), np.zeros((4, 12), np.int32)
    ids = np.full((4, 12), 258, np.int32)
    for row, length in enumerate(LENGTHS):
        real = slice(0, length) if side == "right" else slice(12 - length, 12)
        mask[row, real], ids[row, real] = 1, rng.integers(0, 256, length)
    return {"input_ids": ids, "attention_mask": mask}


def large_model(config: Gemma2Config = CONFIG, **kwargs) -> Gemma2:
    """A model with weights so large that scores and logits reach their caps."""
    model = Gemma2(config, rngs=nnx.Rngs(0), **kwargs)
    for leaf in jax.tree.leaves(nnx.state(model, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable)):
        leaf.set_value(3 * leaf[...])
    return model


@nnx.jit
def loss_and_gradients(model, batch):
    return nnx.value_and_grad(lambda model: jnp.divide(*model.loss(batch)))(model)


@nnx.jit
def mean_loss(model, batch):
    return jnp.divide(*model.loss(batch))


def test_a_chat_begins_with_one_bos_and_ends_with_eos():
    ids, labels = encode_chat(ByteTokenizer(), "Hi", "Hello")
    assert (ids == 256).sum() == 1
    assert (ids[0], ids[-1]) == (256, 257)
    text = "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>"
    assert bytes(ids[1:-1].tolist()).decode() == text
    assert len(ids) == len(labels)
    start, _ = encode_chat(ByteTokenizer(), "Hi")
    np.testing.assert_array_equal(start, ids[: len(start)])


def test_only_the_answer_is_learned_with_its_end():
    ids, labels = encode_chat(ByteTokenizer(), "Hi", "Hello")
    learned = labels != -100
    np.testing.assert_array_equal(labels[learned], ids[learned])
    assert bytes(labels[learned][:-1].tolist()).decode() == "Hello<end_of_turn>"
    assert labels[-1] == 257


@pytest.mark.parametrize("text", ["<bos>Hi", "<start_of_turn>user\nHi<end_of_turn>\n"])
def test_a_text_that_holds_control_tokens_is_refused(text):
    with pytest.raises(DataError, match=r"the prompt .* already has <.*: give the text without them"):
        encode_chat(ByteTokenizer(), text, "Hello")


def test_a_tokenizer_without_bos_is_refused():
    class NoBos(ByteTokenizer):
        bos_id = None

    with pytest.raises(DataError, match="bos_id=None and eos_id=257, but Gemma needs both"):
        encode_chat(NoBos(), "Hi", "Hello")


def test_the_caps_hold_in_training_as_in_evaluation():
    model, batch = large_model(), padded_batch("right")
    model.eval()
    evaluated = mean_loss(model, batch)
    model.train()
    trained, gradients = loss_and_gradients(model, batch)
    np.testing.assert_allclose(trained, evaluated, rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    for lost in ("attention_cap", "logit_cap"):
        without = mean_loss(large_model(dataclasses.replace(CONFIG, **{lost: None})), batch)
        assert abs(without - evaluated) > 1e-3, f"{lost} changes nothing"


def test_padding_on_either_side_gives_one_loss_and_one_gradient():
    model = large_model()
    right, left = (loss_and_gradients(model, padded_batch(side)) for side in ("right", "left"))
    np.testing.assert_allclose(left[0], right[0], rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(left[1]), jax.tree.leaves(right[1]), strict=True):
        assert np.isfinite(ours).all()
        np.testing.assert_allclose(ours, theirs, atol=1e-5 + 1e-4 * np.abs(theirs).max())


def test_bfloat16_layers_over_float32_weights_give_finite_float32_gradients():
    model, batch = large_model(dtype=jnp.bfloat16), padded_batch("left")
    loss, gradients = loss_and_gradients(model, batch)
    exact = mean_loss(large_model(), batch)
    assert abs(loss - exact) < 0.05
    for leaf in jax.tree.leaves(gradients):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()


def test_the_embeddings_scale_is_rounded_before_it_multiplies():
    embedding = nnx.Embed(9, 3072, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    x = embed_scaled(embedding, jnp.arange(9)[None])
    assert x.dtype == jnp.bfloat16
    rounded = embedding.embedding[...].astype(jnp.bfloat16) * jnp.bfloat16(55.5)  # sqrt(3072) is 55.4256
    np.testing.assert_array_equal(x[0].astype(jnp.float32), rounded.astype(jnp.float32))


def test_the_norm_adds_one_in_float32_and_rounds_last():
    norm, x = RMSNorm(64, epsilon=1e-6), jax.random.normal(jax.random.key(0), (5, 64)).astype(jnp.bfloat16)
    norm.scale[...] = jnp.full(64, 0.003)  # 1 + 0.003 is 1 in bfloat16
    x64 = np.asarray(x.astype(jnp.float32), np.float64)
    exact = x64 / np.sqrt((x64**2).mean(axis=-1, keepdims=True) + 1e-6) * 1.003
    assert norm(x).dtype == jnp.bfloat16
    np.testing.assert_allclose(norm(x).astype(jnp.float32), exact, rtol=2**-8)


def test_rotary_angles_are_float32_whatever_the_layers_compute_in():
    x, positions = jnp.ones((1, 2, 1, 64), jnp.bfloat16), jnp.array([[8190, 8191]])
    turned = Rope()(x, positions)
    exact = Rope()(x.astype(jnp.float32), positions).astype(jnp.bfloat16)
    np.testing.assert_array_equal(turned.astype(jnp.float32), exact.astype(jnp.float32))
    assert not np.array_equal(turned[:, 0], turned[:, 1])  # in bfloat16 both positions are 8192


def test_micro_batches_of_unequal_length_equal_the_large_batch():
    batch = padded_batch("right")
    steps = []
    for accumulate in (1, 4):
        trainer = Trainer(Gemma2(CONFIG, rngs=nnx.Rngs(0)), optax.sgd(0.1), accumulate=accumulate)
        metrics = trainer.train_step(batch)
        steps.append((float(metrics["loss"]), float(metrics["gradient_norm"])))
    np.testing.assert_allclose(steps[1], steps[0], rtol=1e-5)


def test_the_first_loss_is_about_that_of_guessing():
    config = Gemma2Config.tiny()
    ids = np.random.default_rng(0).integers(0, 264, (4, 32)).astype(np.int32)
    assert abs(mean_loss(Gemma2(config, rngs=nnx.Rngs(0)), {"input_ids": ids}) - math.log(264)) < 0.2


@pytest.mark.parametrize("config", [GemmaConfig.gemma_7b(), Gemma2Config.gemma2_27b(), CONFIG])
def test_a_config_saved_and_loaded_three_times_stays_the_same(config):
    fields = config.to_hf()
    for _ in range(3):
        again = type(config).from_hf(fields)
        assert again == config
        assert again.to_hf() == fields
        fields = again.to_hf()
