"""Rotary positions in any spelling are read as transformers reads them, or are refused with an error."""

import json
from pathlib import Path

import numpy as np
import pytest
from scratch_core.errors import ConfigError
from scratch_core.layers import Rope, read_rope

# Made by make_rope.py, beside this file.
CASES = json.loads((Path(__file__).parent / "golden/rope.json").read_text())
UNREAD = r"rope_type='(yarn|dynamic)' is not implemented|partial_rotary_factor|must be smaller than high_freq_factor"


def test_400_spellings_are_read_as_the_reference_does_or_refused():
    equal = 0
    for case in CASES:
        if case["frequencies"] is None:  # the reference cannot compute
            continue
        try:
            rope = read_rope(case["fields"], max_positions=2048)
        except ConfigError as error:
            with pytest.raises(ConfigError, match=UNREAD):
                raise error
            continue
        np.testing.assert_allclose(rope.frequencies(8), case["frequencies"], rtol=1e-6, err_msg=str(case["fields"]))
        equal += 1
    assert (len(CASES), equal) == (400, 237)


@pytest.mark.parametrize("inside", [{"rope_type": "default"}, {}, None])
def test_a_base_beside_rope_parameters_without_one_is_read(inside):
    assert read_rope({"rope_parameters": inside, "rope_theta": 5e5}) == Rope(5e5)


def test_llama3_scaling_needs_a_length_from_somewhere():
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    with pytest.raises(ConfigError, match="no field 'max_position_embeddings'"):
        read_rope({"rope_scaling": scaling})
    with pytest.raises(ConfigError, match="max_position_embeddings=0 must be at least 1"):
        read_rope({"rope_scaling": scaling, "max_position_embeddings": 0})


def test_a_base_for_each_kind_of_layer_is_refused():
    with pytest.raises(ConfigError, match="gives full_attention rotary positions of their own"):
        read_rope({"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5e5}}})
