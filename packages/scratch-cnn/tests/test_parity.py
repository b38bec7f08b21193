"""Golden checkpoints of the PyTorch LeNet-5 in make_golden.py, through the key table and back."""

from pathlib import Path

import pytest
from scratch_core.testing import check_image_classifier, check_round_trip

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.name for path in GOLDEN.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(name):
    check_image_classifier(GOLDEN / name)


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_keeps_every_byte(name, tmp_path):
    check_round_trip(GOLDEN / name, tmp_path)
