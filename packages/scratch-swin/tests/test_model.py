"""What must hold of Swin V2 for any weights: the contract of image classifiers, its windows, dropout, rollout."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scratch_core.errors import ConfigError
from scratch_core.testing import ImageClassificationContract, check_dropout, jitted, noise
from scratch_swin import SPEC, Swin, SwinConfig
from scratch_swin.windows import distance_index, from_windows, log_distances, shift_mask, shift_regions, to_windows

TINY = dataclasses.replace(SwinConfig.tiny(), depths=(2, 1))


@pytest.fixture(scope="module")
def model():
    model = Swin(TINY, rngs=nnx.Rngs(0))
    model.eval()
    return model


class TestSwin(ImageClassificationContract):
    model_class = Swin
    meshes = ("8x1", "1x4", "4x2")
    config = TINY
    decayed = (
        "classifier.kernel",
        "patches.kernel",
        "stages.*.blocks.*.attention.distance_bias.kernel",
        "stages.*.blocks.*.attention.distance_hidden.kernel",
        "stages.*.blocks.*.attention.key.kernel",
        "stages.*.blocks.*.attention.out.kernel",
        "stages.*.blocks.*.attention.query.kernel",
        "stages.*.blocks.*.attention.value.kernel",
        "stages.*.blocks.*.feed_forward.down.kernel",
        "stages.*.blocks.*.feed_forward.up.kernel",
        "stages.*.merge.reduction.kernel",
    )


@pytest.mark.parametrize("rate", ["dropout", "attention_dropout", "drop_path"])
def test_dropout_is_seeded_and_off_in_evaluation(rate):
    check_dropout(Swin, dataclasses.replace(TINY, **{rate: 0.5}), TINY)


def test_published_windows():
    windows = {preset: [SPEC.config(preset).window(i) for i in range(4)] for preset in SPEC.presets if preset != "tiny"}
    assert windows["t_w8"] == [8, 8, 8, 8]
    assert windows["t_w16"] == [16, 16, 16, 8]
    assert windows["l_w12"] == [12, 12, 12, 6]
    assert windows["b_w12to24"] == [24, 24, 24, 12]
    assert SPEC.config("b_w12to24").pretrained_window_sizes == (12, 12, 12, 6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": [3, 4]}, "num_heads=3 must divide the width 32"),
        ({"depths": [2, 2, 2]}, "one number for each stage"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings=True"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"image_size": 2}, "image_size=2 must be at least 2 patches"),
        ({"patch_size": 0}, "patch_size=0 must be at least 1"),
        ({"depths": ["2", "2"]}, "depths=.* must be a list of integers"),
        ({"mlp_ratio": 1e-9}, "mlp_ratio=1e-09"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio=inf must be greater than 0 and less than"),
        ({"drop_path_rate": 1.5}, "drop_path=1.5"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        SwinConfig.from_hf({**TINY.to_hf(), **change})


@pytest.mark.parametrize(
    ("rows", "columns", "window", "shift"), [(8, 8, 4, 0), (8, 12, 4, 2), (7, 5, 4, 2), (3, 3, 8, 0)]
)
def test_windows_and_back(rows, columns, window, shift):
    x = jnp.arange(2.0 * rows * columns * 3).reshape(2, rows, columns, 3)
    windows = to_windows(x, window, shift)
    assert windows.shape == (2, -(-rows // window) * -(-columns // window), window**2, 3)
    np.testing.assert_array_equal(from_windows(windows, window, shift, rows, columns), x)


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (12, 8), (7, 7)])
def test_the_mask_separates_positions_that_the_roll_put_side_by_side(rows, columns):
    """By brute force: within a window, two positions may read each other if they were neighbours before the roll."""
    window, shift = 4, 2
    Y, X = rows + -rows % window, columns + -columns % window
    places = np.stack(np.meshgrid(np.arange(Y), np.arange(X), indexing="ij"), axis=-1).astype(np.float32)
    origin = np.asarray(to_windows(jnp.asarray(places)[None], window, shift))[0]  # where each came from
    distance = np.abs(origin[:, :, None] - origin[:, None, :]).max(axis=-1)
    mask = shift_mask(rows, columns, window, shift)
    np.testing.assert_array_equal(mask, distance < window)
    assert not mask.all()
    assert len(np.unique(shift_regions(Y, X, window, shift))) == 9


def test_shifted_windows_connect_neighbouring_windows():
    """One block changes only its own window; a shifted one after it changes neighbours, but not across the edge."""
    config = dataclasses.replace(TINY, depths=(2,), num_heads=(2,), pretrained_window_sizes=(0,))
    model = Swin(config, rngs=nnx.Rngs(0))
    x = jnp.zeros((1, 8, 8, 32)) + jnp.arange(32.0)
    changed = x.at[0, 3, 3].add(jnp.sin(jnp.arange(32.0)))

    def reached(blocks):
        a, b = x, changed
        for block in blocks:
            a, b = block(a), block(b)
        return np.abs(np.asarray(a - b)).max(axis=-1)[0] > 0

    first, second = model.stages[0].blocks
    one = reached([first])
    assert one[:4, :4].all()
    assert one.sum() == 16
    both = reached([first, second])
    assert both[:6, :6].all()  # the shifted windows that touch the first one
    assert not both[6:].any()
    assert not both[:, 6:].any()


def test_distances_are_logarithmic_and_symmetric():
    table = log_distances(4, 0).reshape(7, 7, 2)
    np.testing.assert_allclose(table[:, 3, 0], -table[::-1, 3, 0])
    assert table[6, 6].tolist() == pytest.approx([np.log2(9) / 3] * 2)
    assert table[3, 3].tolist() == [0, 0]
    larger = log_distances(8, 4).reshape(15, 15, 2)  # trained at 4, used at 8: ratios above 1 before the log
    np.testing.assert_allclose(larger[7 + 3, 7, 0], table[6, 3, 0], rtol=1e-6)
    assert larger[14, 7, 0] > table[6, 3, 0]
    index = distance_index(4)
    for t in range(16):
        for s in range(16):
            down, right = t // 4 - s // 4, t % 4 - s % 4
            assert index[t, s] == (down + 3) * 7 + right + 3


def test_the_temperature_is_clamped(model):
    attention = Swin(TINY, rngs=nnx.Rngs(0)).stages[0].blocks[0].attention
    x = noise(dataclasses.replace(TINY, num_channels=32), 1, seed=3).reshape(1, 16, 16, 32)
    attention.log_scale[...] = jnp.full((2, 1, 1), np.log(100.0))
    limit = attention.weights(x, None)
    attention.log_scale[...] = jnp.full((2, 1, 1), 9.0)
    np.testing.assert_array_equal(attention.weights(x, None), limit)
    attention.log_scale[...] = jnp.full((2, 1, 1), 2.0)
    assert np.abs(attention.weights(x, None) - limit).max() > 1e-3


@pytest.mark.parametrize("size", [(16, 16), (22, 14), (9, 31)])
def test_rollout_loses_nothing_but_padding(model, size):
    """The heat sums to 1, less what attention gives to padding, for an image of any size."""
    images = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 1)).astype(np.float32))
    heat = np.asarray(jitted(model, "saliency")(images, jnp.zeros(2, jnp.int32)))
    assert heat.shape == (2, -(-size[0] // 2), -(-size[1] // 2))
    assert (heat > 0).all()
    totals = heat.sum(axis=(1, 2))
    assert (totals <= 1 + 1e-5).all()
    if size == (16, 16):
        np.testing.assert_allclose(totals, 1, rtol=1e-5)


def test_pretrained_windows_beyond_the_stages_are_ignored():
    """transformers writes four of them by default, also for two stages."""
    config = SwinConfig.from_hf({**SwinConfig.tiny().to_hf(), "pretrained_window_sizes": [3, 2, 0, 0]})
    assert config.pretrained_window_sizes == (3, 2)
