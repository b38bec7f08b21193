"""A golden checkpoint of transformers' ViTForImageClassification, through the key table and back."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scratch_core
from safetensors.numpy import load_file
from scratch_core.testing import (
    LOGITS,
    assert_close,
    check_image_classifier,
    check_round_trip,
    jitted,
    with_legacy_config,
)

GOLDEN = Path(__file__).parent / "golden"
SIZES = load_file(GOLDEN / "vit" / "sizes.safetensors")


def test_equals_the_reference():
    check_image_classifier(GOLDEN / "vit")


def test_the_legacy_config_says_the_same(tmp_path):
    legacy = scratch_core.load(with_legacy_config(GOLDEN / "vit", tmp_path))
    assert legacy.config == scratch_core.load(GOLDEN / "vit").config


def test_round_trip_keeps_every_byte(tmp_path):
    check_round_trip(GOLDEN / "vit", tmp_path)


@pytest.mark.parametrize("name", [name.removeprefix("logits.") for name in SIZES if name.startswith("logits.")])
def test_other_sizes_of_images_equal_the_reference(name):
    """Larger, smaller and oblong images, with the reference's interpolate_pos_encoding."""
    model = scratch_core.load(GOLDEN / "vit")
    images = jnp.asarray(SIZES[f"pixel_values.{name}"].transpose(0, 2, 3, 1))
    assert_close(jitted(model)(images), SIZES[f"logits.{name}"], LOGITS, name)
    assert np.abs(SIZES[f"logits.{name}"]).max() > 0.1
