"""What must hold of LeNet-5 for any weights: the contract of image classifiers for both versions, and the paper."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_cnn import LeNet5, LeNet5Config
from scratch_cnn.codes import digit_codes
from scratch_cnn.config import CONNECTIONS
from scratch_cnn.model import scaled_tanh
from scratch_core.errors import ConfigError, DataError
from scratch_core.testing import ImageClassificationContract, count_parameters, jitted, noise
from scratch_core.testing.vision import check_images_are_independent

PAPER, MODERN = LeNet5Config.paper(), LeNet5Config.modern()
KERNELS = ("c1.kernel", "c3.kernel", "c5.kernel", "f6.kernel")


class TestPaper(ImageClassificationContract):
    model_class = LeNet5
    config = PAPER
    meshes = ("8x1", "1x4", "4x2")
    decayed = KERNELS

    def test_images_do_not_see_each_other(self):
        """With a linear output, because distances are near 100 and round more than the contract allows."""
        check_images_are_independent(LeNet5(dataclasses.replace(PAPER, output="linear"), rngs=nnx.Rngs(0)))


class TestModern(ImageClassificationContract):
    model_class = LeNet5
    config = MODERN
    meshes = ("8x1", "1x4", "4x2")
    decayed = ("classifier.kernel", *KERNELS)


def test_parameters_of_each_layer_are_those_of_the_paper():
    """Section II.B: C1 156, S2 12, C3 1,516, S4 32, C5 48,120, F6 10,164; the output has none."""
    model = LeNet5(PAPER, rngs=nnx.Rngs(0))
    counts = {
        name: sum(leaf.size for leaf in jax.tree.leaves(nnx.state(getattr(model, name), nnx.Param)))
        for name in ("c1", "s2", "c3", "s4", "c5", "f6", "classifier")
    }
    assert counts == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120, "f6": 10_164, "classifier": 0}
    assert count_parameters(LeNet5, PAPER) == 60_000  # as the paper says in its last line of II.B
    assert count_parameters(LeNet5, MODERN) == 61_706


def test_c3_reads_only_the_maps_of_the_table():
    layer = LeNet5(PAPER, rngs=nnx.Rngs(0)).c3
    x = jax.random.normal(jax.random.key(0), (1, 14, 14, 6))
    before = layer(x)
    for i in range(6):
        changed = np.abs(layer(x.at[..., i].add(1.0)) - before).max(axis=(0, 1, 2)) > 1e-5
        np.testing.assert_array_equal(changed, [i in inputs for inputs in CONNECTIONS])
    assert sum(map(len, CONNECTIONS)) == 60


def test_the_squashing_function_has_the_papers_fixed_points():
    np.testing.assert_allclose(scaled_tanh(jnp.array([-1.0, 0.0, 1.0])), [-1, 0, 1], atol=1e-4)


def test_the_output_is_the_distance_from_a_picture():
    codes = digit_codes()
    assert codes.shape == (10, 84)
    assert set(np.unique(codes)) == {-1, 1}
    logits = np.asarray(LeNet5(PAPER, rngs=nnx.Rngs(0)).classifier(jnp.asarray(codes)))
    assert (logits.argmax(axis=1) == np.arange(10)).all()
    np.testing.assert_array_equal(np.diag(logits), 0)
    apart = -logits[~np.eye(10, dtype=bool)]  # 4 for each pixel in which two pictures differ
    assert apart.min() >= 4 * 6


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "gelu"}, "activation='gelu' must be one of relu, tanh"),
        ({"pooling": "mean"}, "pooling='mean'"),
        ({"output": "rbf", "id2label": {"0": "a", "1": "b"}}, "'rbf' for 10 digits; num_classes=2"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        LeNet5Config.from_hf({**MODERN.to_hf(), **change})


@pytest.mark.parametrize("shape", [(1, 28, 28, 1), (1, 32, 32, 3)])
def test_images_of_another_shape_are_a_clear_error(shape):
    with pytest.raises(DataError, match="batch, 32, 32, 1"):
        LeNet5(MODERN, rngs=nnx.Rngs(0))(jnp.zeros(shape))


def test_grad_cam_has_the_size_of_c3():
    model = LeNet5(MODERN, rngs=nnx.Rngs(0))
    heat = np.asarray(jitted(model, "saliency")(noise(MODERN, 2), jnp.array([3, 4])))
    assert heat.shape == (2, 10, 10)
    assert (heat >= 0).all()
    assert heat.max() > 0
