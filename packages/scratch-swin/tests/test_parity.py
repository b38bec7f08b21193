"""Golden checkpoints of transformers' Swinv2ForImageClassification, through the key table and back.

Logits and hidden states may differ by 3e-4: cosine attention multiplies float32 rounding errors by its scale, which is
up to 100. The reference adds the shift mask twice, the paper once; the result is the same.
"""

from pathlib import Path

import pytest
import scratch_core
from safetensors.numpy import load_file, save_file
from scratch_core.errors import CheckpointError
from scratch_core.testing import check_image_classifier, check_round_trip, with_legacy_config

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name):
    check_image_classifier(GOLDEN / name, atol=3e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_legacy_config_says_the_same(name, tmp_path):
    legacy = scratch_core.load(with_legacy_config(GOLDEN / name, tmp_path))
    assert legacy.config == scratch_core.load(GOLDEN / name).config


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_keeps_every_byte(name, tmp_path):
    check_round_trip(GOLDEN / name, tmp_path)


def test_tables_of_older_checkpoints_are_ignored(tmp_path):
    folder = with_legacy_config(GOLDEN / "shift", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    attention = "swinv2.encoder.layers.0.blocks.0.attention.self"
    for name in ("relative_position_index", "relative_coords_table"):
        tensors[f"{attention}.{name}"] = tensors["classifier.bias"]
    save_file(tensors, folder / "model.safetensors")
    scratch_core.load(folder)
    tensors[f"{attention}.unheard_of"] = tensors["classifier.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="unheard_of"):
        scratch_core.load(folder)
