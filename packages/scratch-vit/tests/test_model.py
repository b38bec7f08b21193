"""What must hold of ViT for any weights: the contract of image classifiers, positions, dropout, rollout."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError, DataError
from scratch_core.testing import ImageClassificationContract, check_dropout, jitted, noise
from scratch_vit import ViT, ViTConfig
from scratch_vit.model import resize_positions

TINY = dataclasses.replace(ViTConfig.tiny(), num_layers=2)


@pytest.fixture(scope="module")
def model():
    return ViT(TINY, rngs=nnx.Rngs(0))


class TestViT(ImageClassificationContract):
    model_class = ViT
    meshes = ("8x1", "1x4", "4x2")
    config = TINY
    decayed = (
        "classifier.kernel",
        "layers.*.attention.key.kernel",
        "layers.*.attention.out.kernel",
        "layers.*.attention.query.kernel",
        "layers.*.attention.value.kernel",
        "layers.*.feed_forward.down.kernel",
        "layers.*.feed_forward.up.kernel",
        "patches.kernel",
    )


def test_logits_depend_on_the_order_of_patches_only_through_positions(model):
    """Swapping two patches of the image changes the logits, and without positions it would not."""
    images = noise(TINY, 1)
    swapped = images.at[:, :4, :4].set(images[:, 8:12, 4:8]).at[:, 8:12, 4:8].set(images[:, :4, :4])
    forward = jitted(model)
    assert np.abs(forward(images) - forward(swapped)).max() > 1e-4
    blind = ViT(TINY, rngs=nnx.Rngs(0))
    blind.positions[...] = jnp.zeros_like(blind.positions[...])
    np.testing.assert_allclose(jitted(blind)(images), jitted(blind)(swapped), atol=1e-5)


def test_logits_are_those_of_the_class_token(model):
    """In the last layer the call computes only the class token; the result equals that of the whole layer."""
    images = noise(TINY, 2)
    class_BD = jitted(model, "hidden")(images)[:, 0]
    np.testing.assert_allclose(jitted(model)(images), model.classifier(class_BD), atol=1e-5)
    x, layer = model.embed(images)[0], model.layers[-1]
    np.testing.assert_allclose(layer.class_token(x), layer(x)[:, :1], atol=1e-5)


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "drop_path"])
def test_dropout_is_seeded_and_off_in_evaluation(rate):
    check_dropout(ViT, dataclasses.replace(TINY, **{rate: 0.5}), TINY)


def test_oblong_sizes_and_missing_biases_survive_a_checkpoint(tmp_path):
    config = dataclasses.replace(
        TINY, image_size=(16, 24), patch_size=(4, 8), qkv_bias=False, labels=tuple("abcdefghij")
    )
    model = ViT(config, rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    again = ViT.from_pretrained(tmp_path)
    assert again.config == config
    images = jnp.ones((1, 16, 24, 1))
    np.testing.assert_array_equal(jitted(again)(images), jitted(model)(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 5}, "num_heads=5 must divide d_model=64"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"patch_size": 32}, "image_size=16 must be at least patch_size=32"),
        ({"image_size": [16]}, "must be a positive number or two"),
        ({"patch_size": 0}, "patch_size=0 must be at least 1"),
        ({"num_labels": 10**9}, "id2label must name the classes"),
        ({"num_labels": 10**9, "id2label": None}, "num_labels=1000000000 must be 1 to 1,000,000"),
        ({"hidden_dropout_prob": 1.0}, "dropout=1.0"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        ViTConfig.from_hf({**TINY.to_hf(), **change})


def test_images_with_other_channels_are_a_clear_error(model):
    with pytest.raises(DataError, match="channels = 1"):
        model(jnp.zeros((1, 16, 16, 3)))


def test_the_same_grid_keeps_its_positions(model):
    positions = model.positions[...]
    np.testing.assert_allclose(resize_positions(positions, (4, 4), (4, 4)), positions, atol=1e-6)
    larger = resize_positions(jnp.ones_like(positions), (4, 4), (7, 9))
    np.testing.assert_allclose(larger, jnp.ones((1, 64, 64)), atol=1e-5)  # the weights of each place sum to 1


def test_rollout_is_the_product_of_the_papers_equation():
    model = ViT(dataclasses.replace(TINY, num_layers=3), rngs=nnx.Rngs(0))
    images = noise(TINY, 2)
    x, _ = model.embed(images)
    product = np.eye(17)[None].repeat(2, axis=0)
    for layer in model.layers:
        weights = np.asarray(layer.attention.weights(*[layer.attention_norm(x)] * 2)).mean(axis=1)
        np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
        product = (0.5 * weights + 0.5 * np.eye(17)) @ product
        x = layer(x)
    heat = np.asarray(model.saliency(images, jnp.zeros(2, jnp.int32)))
    assert heat.shape == (2, 4, 4)
    np.testing.assert_allclose(heat.reshape(2, 16), product[:, 0, 1:], rtol=1e-5, atol=1e-7)
