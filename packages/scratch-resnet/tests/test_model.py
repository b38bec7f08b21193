"""What holds for any ResNet, whatever its weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError, DataError
from scratch_core.models import count_parameters, find_class
from scratch_core.testing import check_meshes, jitted, overfit_one_batch, random_batch
from scratch_core.vision.testing import (
    check_bfloat16,
    check_images_are_independent,
    check_new_head_on_a_frozen_trunk,
    noise,
)
from scratch_resnet import SPEC, ResNet, ResNetConfig
from scratch_resnet.model import BatchNorm, Convolution, max_pool, variance
from scratch_resnet.winograd import pays, winograd

TINY = ResNetConfig.tiny()


@pytest.fixture
def model():
    return ResNet(TINY, rngs=nnx.Rngs(0))


def test_images_are_independent(model):
    model(noise(TINY, 8))  # so that the running statistics are of use
    check_images_are_independent(model)


def test_batch_statistics_join_the_images_of_a_batch_in_training(model):
    images = noise(TINY, 4)
    together = model(images)
    assert np.abs(together[:2] - model(images[:2])).max() > 1e-3


def test_a_new_head_on_a_frozen_trunk(model, tmp_path):
    check_new_head_on_a_frozen_trunk(model, tmp_path)


def test_bfloat16():
    check_bfloat16(ResNet, TINY)


def test_overfits_one_batch():
    overfit_one_batch(ResNet(TINY, rngs=nnx.Rngs(0)), *random_batch(SPEC, TINY))


def test_meshes_give_the_losses_of_one_device():
    check_meshes("resnet")


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032), (101, 44_549_160), (152, 60_192_808)],
)
def test_presets_have_the_published_number_of_parameters(depth, parameters):
    assert count_parameters(ResNet, SPEC.config(f"resnet{depth}")) == parameters


@pytest.mark.parametrize("preset", SPEC.presets)
@pytest.mark.parametrize("layout", ["hf", "timm"])
def test_config_survives_a_round_trip(preset, layout):
    config = SPEC.config(preset)
    if layout == "timm":
        name = preset if preset != "tiny" else "timm.models.resnet.ResNet"
        config = dataclasses.replace(config, layout=layout, architecture=name, num_channels=3, stem_width=64)
    again = type(config).from_hf(config.to_hf())
    assert dataclasses.replace(again, labels=()) == config
    assert find_class({"architectures": ["ResNetForImageClassification"], **config.to_hf()}) is ResNet


def test_names_of_the_classes_survive_a_checkpoint(tmp_path):
    for layout in ("hf", "timm"):
        config = dataclasses.replace(
            TINY, num_channels=3, stem_width=64, num_classes=2, labels=("cat", "dog"), layout=layout
        )
        ResNet(config, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / layout)
        assert ResNet.from_pretrained(tmp_path / layout).config.labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architecture": "resnet50d"}, "'resnet50d' is not implemented"),
        ({"architecture": "resnet18", "global_pool": "max"}, "global_pool='max'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"layer_type": "bottle"}, "block='bottle'"),
        ({"depths": [1, 2]}, "one of each per stage"),
        ({"hidden_sizes": [256, 512, 1024, 2050]}, "multiples of 4"),
        ({"depths": [2.0, 2.0, 2.0, 2.0]}, "must be a list of integers"),
        ({"id2label": {"1": "cat"}}, "id2label"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(fields, message):
    with pytest.raises(ConfigError, match=message):
        ResNetConfig.from_hf(fields)


@pytest.mark.parametrize("shape", [(1, 32, 32, 3), (1, 1, 32, 32)])
def test_images_of_another_shape_are_a_clear_error(model, shape):
    with pytest.raises(DataError, match="batch, rows, columns, 1"):
        model(jnp.zeros(shape))


def test_the_last_norm_can_start_at_zero():
    """Then every block is the identity (after its ReLU), as Goyal et al. want it."""
    config = dataclasses.replace(ResNetConfig.resnet50(), depths=(2, 1, 1, 1), zero_init_last=True)
    model = ResNet(config, rngs=nnx.Rngs(0))
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 4, 4, 256)))
    np.testing.assert_array_equal(model.stages[0][1](x), x)
    assert not (model.stages[0][1].layers[0].norm.scale[...] == 0).any()


def test_version_one_strides_in_the_first_convolution():
    """v1.5 reads all pixels in its 3x3; v1 never sees the odd ones (but through nothing else: no 3x3 came before)."""
    x = jnp.zeros((1, 8, 8, 64)).at[0, 3, 3].set(1.0)
    from scratch_resnet.model import make_block

    for first, touched in ((False, True), (True, False)):
        config = dataclasses.replace(ResNetConfig.resnet50(), stride_in_1x1=first)
        block = make_block(config, 64, 128, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
        block.eval()
        assert bool((jnp.abs(block(x) - block(x * 0)) > 0).any()) is touched


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("rows", [8, 9])
def test_a_convolution_is_the_sum_over_its_window(size, stride, rows):
    """Against the definition, with the padding of the reference: also at stride 2, where SAME would differ."""
    conv = Convolution(2, 3, size, stride, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = np.asarray(jax.random.normal(jax.random.key(1), (1, rows, rows, 2)))
    pad = size // 2
    padded = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    out = (rows + 2 * pad - size) // stride + 1
    expected = np.zeros((1, out, out, 3))
    for y in range(out):
        for z in range(out):
            window = padded[0, y * stride : y * stride + size, z * stride : z * stride + size]
            expected[0, y, z] = np.einsum("ijc,ijco->o", window, np.asarray(conv.kernel[...]))
    np.testing.assert_allclose(conv(x), expected, atol=1e-5)


@pytest.mark.parametrize("size", [(6, 6), (7, 4), (1, 9)])
def test_winograd_is_the_convolution(size):
    """Eq. 1 is exact: in float64 the result and both gradients agree to the last digits, tiles cut or not."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 3)
        x, kernel, g = (jax.random.normal(k, s) for k, s in zip(keys, [(2, *size, 5), (3, 3, 5, 4), (2, *size, 4)]))

        def usual(x, kernel):
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        value, gradient = jax.vjp(winograd, x, kernel)
        expected, expected_gradient = jax.vjp(usual, x, kernel)
        for one, other in zip((value, *gradient(g)), (expected, *expected_gradient(g))):
            np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize(
    ("kernel", "stride", "dtype", "expected"),
    [
        ((3, 3, 64, 64), 1, jnp.float32, True),
        ((3, 3, 64, 64), 2, jnp.float32, False),
        ((3, 3, 32, 64), 1, jnp.float32, False),
        ((7, 7, 64, 64), 1, jnp.float32, False),
        ((3, 3, 64, 64), 1, jnp.bfloat16, False),
    ],
)
def test_the_form_of_a_convolution_is_chosen_by_its_shape(kernel, stride, dtype, expected):
    """Whichever it is, the layer's result is the same convolution."""
    assert pays(jnp.zeros(kernel, dtype), stride) is (expected and jax.default_backend() == "cpu")
    conv = Convolution(kernel[2], kernel[3], kernel[0], stride, dtype=dtype, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, 9, 9, kernel[2]))
    pad = [(kernel[0] // 2,) * 2] * 2
    with jax.enable_x64(True):
        wide = [jnp.asarray(each.astype(dtype), jnp.float64) for each in (x, conv.kernel[...])]
        usual = jax.lax.conv_general_dilated(
            *wide, (stride, stride), pad, dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
        )
    np.testing.assert_allclose(conv(x).astype(np.float32), usual, atol=1e-5 if dtype == jnp.float32 else 0.05)


@pytest.mark.parametrize("size", [(8, 9), (1, 2)])
def test_the_maximum_of_slices_is_that_of_windows(size):
    """In value and in gradient, which goes to the first of equals: after a ReLU there are many."""
    x = jnp.round(jax.random.normal(jax.random.key(0), (2, *size, 3)))

    def by_windows(x):
        pad = ((0, 0), (1, 1), (1, 1), (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pad)

    value, gradient = jax.vjp(lambda x: max_pool(max_pool(x, axis=2), axis=1), x)
    expected, expected_gradient = jax.vjp(by_windows, x)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(gradient(expected + 1.0)[0], expected_gradient(expected + 1.0)[0])


def test_the_derivatives_of_the_variance_are_those_of_its_formula():
    """The first, which leaves a term out that is zero, and the second, in which that term is not."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 3))
    weight = jax.random.normal(jax.random.key(1), (3,))
    own = jax.grad(lambda x: weight @ jnp.sqrt(variance(x, x.mean((0, 1, 2)))))
    usual = jax.grad(lambda x: weight @ x.std((0, 1, 2)))
    for one, other in ((own, usual), (jax.jacobian(own), jax.jacobian(usual))):
        np.testing.assert_allclose(one(x), other(x), atol=1e-6)


def test_batch_norm_refuses_a_single_value():
    with pytest.raises(DataError, match="need 2 values per channel"):
        BatchNorm(4)(jnp.ones((1, 1, 1, 4)))


def test_grad_cam_points_at_what_moves_the_logit():
    model = ResNet(TINY, rngs=nnx.Rngs(0))
    images = noise(TINY, 2, size=128)
    model(images)
    model.eval()
    heat = np.asarray(jitted(model, "saliency")(images, jnp.array([1, 2])))
    assert heat.shape == (2, 16, 16)
    assert (heat >= 0).all()
    # By the definition: the gradient of the logit by the last map, weighted as in the paper.
    hidden = model.hidden(images)
    kernel = np.asarray(model.classifier.kernel[...])
    alpha = kernel[:, [1, 2]].T / 256  # the head is a mean over 16 x 16 positions, then linear
    expected = np.maximum(np.einsum("bc,byxc->byx", alpha, hidden), 0)
    np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=1e-6)
