"""What must hold of ResNet for any weights: the contract of image classifiers, its layers, both layouts."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from scratch_core.errors import ConfigError, DataError
from scratch_core.fine_tuning import freeze
from scratch_core.registry import find_class
from scratch_core.testing import ImageClassificationContract, jitted, noise
from scratch_core.testing.vision import check_images_are_independent
from scratch_core.train import recompute_statistics
from scratch_resnet import SPEC, ResNet, ResNetConfig
from scratch_resnet.batch_norm import BatchNorm, variance
from scratch_resnet.convolution import Convolution, convolve, max_pool
from scratch_resnet.model import Bottleneck
from scratch_resnet.winograd import pays, winograd

TINY = ResNetConfig.tiny()


@nnx.jit
def forward(model, images):
    """Return the logits; in training, also update the running statistics."""
    return model(images)


@pytest.fixture
def model():
    return ResNet(TINY, rngs=nnx.Rngs(0))


class TestResNet(ImageClassificationContract):
    model_class = ResNet
    meshes = ("8x1", "1x4", "4x2")
    decayed = (
        "classifier.kernel",
        "stages.*.*.layers.*.conv.kernel",
        "stages.*.*.shortcut.conv.kernel",
        "stem.conv.kernel",
    )

    def test_images_do_not_see_each_other(self):
        model = self.create()
        forward(model, noise(TINY, 8))  # so that the running statistics are those of images
        check_images_are_independent(model)


def test_in_training_the_logits_depend_on_the_whole_batch(model):
    images = noise(TINY, 4)
    together = forward(model, images)
    assert np.abs(together[:2] - forward(model, images[:2])).max() > 1e-3


@pytest.mark.parametrize("preset", SPEC.presets)
def test_timms_config_survives_a_round_trip(preset):
    """It has no "architectures" field; the model's class recognises it by its "architecture"."""
    name = preset if preset != "tiny" else "timm.models.resnet.ResNet"
    config = dataclasses.replace(SPEC.config(preset), layout="timm", architecture=name, num_channels=3, stem_width=64)
    assert ResNetConfig.from_hf(config.to_hf()) == config
    assert "architectures" not in config.to_hf()
    assert find_class(config.to_hf()) is ResNet


def test_a_batch_norm_is_frozen_with_all_its_parameters(model):
    """A frozen norm keeps its running statistics in training; a norm with a trainable parameter updates them."""
    freeze(model, "stem.*", "stages.0.*.norm.scale")
    assert model.stem.norm.frozen
    assert not model.stages[0][0].layers[0].norm.frozen
    before = [np.array(norm.mean[...]) for norm in (model.stem.norm, model.stages[0][0].layers[0].norm)]
    forward(model, noise(TINY, 4))
    np.testing.assert_array_equal(model.stem.norm.mean[...], before[0])
    assert np.abs(model.stages[0][0].layers[0].norm.mean[...] - before[1]).max() > 1e-3
    freeze(model, "classifier.*")
    assert not model.stem.norm.frozen


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
    """Every block without a shortcut layer is then the identity on the output of a ReLU, as in Goyal et al."""
    config = ResNetConfig(depths=(2, 1), widths=(32, 64), stem_width=16, zero_init_last=True)
    model = ResNet(config, rngs=nnx.Rngs(0))
    x = jax.nn.relu(jax.random.normal(jax.random.key(0), (2, 4, 4, 32)))
    np.testing.assert_array_equal(forward(model.stages[0][1], x), x)
    assert not (model.stages[0][1].layers[0].norm.scale[...] == 0).any()


def test_version_one_strides_in_the_first_convolution():
    """v1.5 strides in the 3x3 and reads all pixels; v1's first 1x1 and shortcut both skip odd rows and columns."""
    x = jnp.zeros((1, 8, 8, 16)).at[0, 3, 3].set(1.0)
    for first, touched in ((False, True), (True, False)):
        config = dataclasses.replace(ResNetConfig.resnet50(), stride_in_1x1=first)
        block = Bottleneck(config, 16, 32, 2, dtype=jnp.float32, rngs=nnx.Rngs(0))
        block.eval()
        run = jitted(block)
        assert bool((jnp.abs(run(x) - run(x * 0)) > 0).any()) is touched


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("rows", [8, 9])
def test_a_convolution_is_the_sum_over_its_window(size, stride, rows):
    """By the definition, with the reference's padding. At stride 2, XLA's SAME padding would give another result."""
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
    """Eq. 1 is exact: in float64 the result and both gradients agree to the last digits, also for incomplete tiles."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 3)
        x, kernel, g = (jax.random.normal(k, s) for k, s in zip(keys, [(2, *size, 5), (3, 3, 5, 4), (2, *size, 4)]))

        def value_and_gradients(form, x, kernel, g):
            value, gradient = jax.vjp(form, x, kernel)
            return value, *gradient(g)

        run = jax.jit(value_and_gradients, static_argnums=0)
        ours, plain = run(winograd, x, kernel, g), run(partial(convolve, stride=1), x, kernel, g)
        for one, other in zip(ours, plain, strict=True):
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
    """In every form, the layer computes the same convolution."""
    assert pays(jnp.zeros(kernel, dtype), stride) is expected
    conv = Convolution(kernel[2], kernel[3], kernel[0], stride, dtype=dtype, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, 9, 9, kernel[2]))
    with jax.enable_x64(True):
        wide = [jnp.asarray(each.astype(dtype), jnp.float64) for each in (x, conv.kernel[...])]
        plain = convolve(*wide, stride)
    np.testing.assert_allclose(conv(x).astype(np.float32), plain, atol=1e-5 if dtype == jnp.float32 else 0.05)


def test_the_form_of_a_convolution_is_chosen_for_the_device_of_the_program():
    """Lowered for a GPU on a machine without one, it is XLA's convolution; for a CPU it is not."""
    conv = Convolution(64, 64, 3, dtype=jnp.float32, rngs=nnx.Rngs(0))
    x = jax.ShapeDtypeStruct((1, 8, 8, 64), jnp.float32)
    for platform, convolutions in (("cpu", False), ("cuda", True)):
        text = jax.jit(conv).trace(x).lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.convolution" in text) is convolutions
        assert ("stablehlo.dot_general" in text) is not convolutions


@pytest.mark.parametrize("transform", ["jit", "gradient", "vmap"])
def test_the_chosen_form_can_be_transformed(transform):
    keys = jax.random.split(jax.random.key(0), 2)
    x, kernel = jax.random.normal(keys[0], (2, 2, 7, 7, 64)), 0.05 * jax.random.normal(keys[1], (3, 3, 64, 64))

    def chosen(x, kernel):
        return lax.platform_dependent(x, kernel, cpu=winograd, default=lambda x, kernel: convolve(x, kernel, 1))

    def result(form):
        if transform == "vmap":
            return jax.jit(jax.vmap(form, in_axes=(0, None)))(x, kernel)
        if transform == "gradient":
            return jax.jit(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(form(x, kernel))), argnums=(0, 1)))(x[0], kernel)
        return jax.jit(form)(x[0], kernel)

    plain = result(lambda x, kernel: convolve(x, kernel, 1))
    for one, other in zip(jax.tree.leaves(result(chosen)), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.abs(other).max()))


@pytest.mark.parametrize("size", [(8, 9), (1, 2)])
def test_the_maximum_of_slices_is_that_of_windows(size):
    """Values and gradients agree. The gradient goes to the first of equal values, which are frequent after a ReLU."""
    x = jnp.round(jax.random.normal(jax.random.key(0), (2, *size, 3)))

    def by_windows(x):
        pad = ((0, 0), (1, 1), (1, 1), (0, 0))
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pad)

    value, gradient = jax.vjp(max_pool, x)
    expected, expected_gradient = jax.vjp(by_windows, x)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(gradient(expected + 1.0)[0], expected_gradient(expected + 1.0)[0])


def test_the_derivatives_of_the_variance_are_those_of_its_formula():
    """The first derivative, from which the custom JVP drops a term that is zero, and the second derivative."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 3))
    weight = jax.random.normal(jax.random.key(1), (3,))
    own = jax.grad(lambda x: weight @ jnp.sqrt(variance(x, x.mean((0, 1, 2)))))
    usual = jax.grad(lambda x: weight @ x.std((0, 1, 2)))
    for one, other in ((own, usual), (jax.jacobian(own), jax.jacobian(usual))):
        np.testing.assert_allclose(jax.jit(one)(x), jax.jit(other)(x), atol=1e-6)


def test_batch_norm_refuses_a_single_value():
    with pytest.raises(DataError, match="need 2 values per channel"):
        BatchNorm(4)(jnp.ones((1, 1, 1, 4)))


def test_grad_cam_points_at_what_moves_the_logit():
    model = ResNet(TINY, rngs=nnx.Rngs(0))
    images = noise(TINY, 2, size=64)
    forward(model, images)
    model.eval()
    heat = np.asarray(jitted(model, "saliency")(images, jnp.array([1, 2])))
    assert heat.shape == (2, 8, 8)
    assert (heat >= 0).all()
    # By the definition: the gradient of the logit with respect to the last map, weighted as in the paper.
    hidden = jitted(model, "hidden")(images)
    kernel = np.asarray(model.classifier.kernel[...])
    alpha = kernel[:, [1, 2]].T / 64  # the head is a mean over 8 x 8 positions, then linear
    expected = np.maximum(np.einsum("bc,byxc->byx", alpha, hidden), 0)
    np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=1e-6)


def test_statistics_computed_again_are_those_of_one_pass_over_all_images():
    """A frozen norm and the count of batches do not change. The first norm has the same inputs in both computations."""
    images = np.random.default_rng(0).normal(size=(3, 4, 6, 6, 2)).astype(np.float32)

    class Two(nnx.Module):
        def __init__(self):
            self.first, self.second, self.frozen = BatchNorm(2), BatchNorm(2), BatchNorm(2)
            self.frozen.frozen = True

        def __call__(self, x):
            return self.frozen(self.second(jnp.tanh(self.first(x))))

    def loss(model, batch):
        return model(batch).sum(), jnp.float32(1)

    model, together = Two(), Two()
    model.first.mean[...] = jnp.full(2, jnp.nan)  # the old value does not matter
    model.first.count[...] = jnp.int32(7)
    recompute_statistics(model, images, loss)
    together.first.momentum = 1.0
    together(images.reshape(12, 6, 6, 2))
    np.testing.assert_allclose(model.first.mean[...], together.first.mean[...], atol=1e-7)
    np.testing.assert_allclose(model.first.var[...], together.first.var[...], rtol=1e-6)
    assert model.first.count[...] == 7
    assert model.first.momentum == model.second.momentum == 0.1
    np.testing.assert_array_equal(model.frozen.var[...], 1)
    # The second norm reads batches that the first normalised one by one, as in training.
    seen = np.concatenate([np.tanh((x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)) for x in images])
    np.testing.assert_allclose(model.second.mean[...], seen.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(model.second.var[...], seen.var((0, 1, 2), ddof=1), rtol=1e-5)
