"""What must hold of T5 whatever its weights: the contract of encoder-decoders, its positions, its configurations."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core import generate
from scratch_core.errors import ConfigError
from scratch_core.layers import ScannedBlocks
from scratch_core.parallel import make_mesh
from scratch_core.tasks import find_task
from scratch_core.testing import (
    SequenceToSequenceContract,
    check_scanned_and_rematerialised,
    jitted,
    random_batch,
)
from scratch_core.train import adamw
from scratch_core.train.plan import plan_step
from scratch_t5 import T5, T5Config
from scratch_t5.position_bias import buckets

STACK = ("attention.key", "attention.out", "attention.query", "attention.value")
DECODER = tuple(f"cross_{name}" for name in STACK)
FEED_FORWARD = ("feed_forward.down", "feed_forward.gate", "feed_forward.up")


class TestT5(SequenceToSequenceContract):
    model_class = T5
    config = dataclasses.replace(T5Config.tiny(), num_layers=1)
    decayed = (
        *(f"encoder.layers.*.{name}.kernel" for name in STACK + FEED_FORWARD),
        *(f"decoder.layers.*.{name}.kernel" for name in STACK + DECODER + FEED_FORWARD),
    )


def test_buckets_are_those_of_the_paper():
    """32 buckets, both ways: 8 near distances each way have their own, 128 and beyond share the last."""
    config = T5Config.t5_small()
    both = dict(zip(range(-128, 129), buckets(config, both_ways=True).tolist(), strict=True))
    assert [both[-d] for d in (0, 1, 7, 8, 15, 16, 127, 128)] == [0, 1, 7, 8, 9, 10, 15, 15]
    assert [both[d] for d in (1, 7, 8, 128)] == [17, 23, 24, 31]
    one = dict(zip(range(-128, 129), buckets(config, both_ways=False).tolist(), strict=True))
    assert [one[d] for d in (5, 0, -1, -15, -16, -128)] == [0, 0, 1, 15, 16, 31]


def test_a_longer_text_needs_no_new_positions():
    model = T5(T5Config.tiny(), rngs=nnx.Rngs(0))
    assert generate(model, np.ones((1, 300), np.int32), max_new_tokens=3).shape == (1, 4)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_narrow_floats_do_not_overflow(dtype, tmp_path):
    """The feed-forward layers of the released models leave float16's range; here they are made to."""
    model = T5(dataclasses.replace(T5Config.tiny(), num_layers=1, num_decoder_layers=1), rngs=nnx.Rngs(0))
    for stack in (model.encoder, model.decoder):
        stack.layers[0].feed_forward.down.kernel[...] = 300.0 * stack.layers[0].feed_forward.down.kernel[...]
        stack.layers[0].feed_forward.up.kernel[...] = 100.0 * stack.layers[0].feed_forward.up.kernel[...]
    model.save_pretrained(tmp_path)
    ids = np.arange(1, 13).reshape(2, 6).astype(np.int32)
    wide = np.asarray(jitted(T5.from_pretrained(tmp_path))(ids, ids))
    narrow = np.asarray(jitted(T5.from_pretrained(tmp_path, dtype=dtype))(ids, ids))
    assert np.isfinite(narrow).all()
    assert np.abs(narrow - wide).max() < 0.1 * np.abs(wide).max()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj='gated-mish' is not implemented"),
        (
            {"feed_forward_proj": "double-gelu"},
            "feed_forward_proj='double-gelu' must be ACTIVATION or",
        ),
        ({"is_encoder_decoder": False}, "is_encoder_decoder=False"),
        ({"relative_attention_num_buckets": 7}, "num_buckets=7 must be even"),
        ({"relative_attention_max_distance": 16}, "max_distance=16 must be more than half of num_buckets=32"),
        ({"dropout_rate": 1.0}, "dropout=1.0 must be at least 0 and less than 1"),
        ({"decoder_start_token_id": 400}, r"decoder_start_token_id=400 must be in \[0, vocab_size=328\)"),
        ({"d_kv": 0}, "head_dim=0 must be greater than 0"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        T5Config.from_hf({**T5Config.tiny().to_hf(), **change})


def test_a_config_without_the_decoders_depth_has_the_encoders():
    fields = {**T5Config.t5_small().to_hf(), "num_layers": 3}
    del fields["num_decoder_layers"]
    assert T5Config.from_hf(fields).num_decoder_layers == 3


def test_scanned_and_rematerialised_layers_compute_the_same(tmp_path):
    """Both stacks; and the model writes the same from its cache."""
    model = T5(dataclasses.replace(T5Config.tiny(), num_layers=2, num_decoder_layers=3), rngs=nnx.Rngs(0))
    model.eval()
    batch = random_batch("seq2seq", model.config, 2)
    written = generate(model, batch["input_ids"], max_new_tokens=4)
    check_scanned_and_rematerialised(model, batch, tmp_path)
    assert isinstance(model.encoder.layers, ScannedBlocks)
    assert isinstance(model.decoder.layers, ScannedBlocks)
    np.testing.assert_array_equal(generate(model, batch["input_ids"], max_new_tokens=4), written)


def test_collectives_of_a_step_on_a_mesh():
    """Activations are split by their batch alone after the embeddings and each layer (`parallel.constrain`).

    Without that XLA made 247 collectives, of 86 MB for each device, instead of 86 of 14 MB.
    """
    task, config = find_task("seq2seq"), dataclasses.replace(T5Config.tiny(), num_layers=2, num_decoder_layers=2)
    batch, mesh = task.shapes(config, 64, 64), make_mesh(fsdp=4, tensor=2)
    plan = plan_step(lambda: T5(config, rngs=nnx.Rngs(0)), adamw(1e-3), batch, mesh, handling=task)
    assert sum(count for count, _ in plan.collectives.values()) < 100
    assert sum(size for _, size in plan.collectives.values()) < 16e6
