"""Template computes what its reference computes: the goldens of make_golden.py, through convert.py."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scratch_template import Template

GOLDENS = sorted(p.parent for p in (Path(__file__).parent / "golden").glob("*/config.json"))


@pytest.mark.parametrize("folder", GOLDENS, ids=[p.name for p in GOLDENS])
def test_logits(folder):
    io = load_file(folder / "io.safetensors")
    logits = Template.from_pretrained(folder)(io["input_ids"], io["attention_mask"])
    real = io["attention_mask"] == 1
    np.testing.assert_allclose(logits[real], io["logits"][real], rtol=0, atol=5e-5)
