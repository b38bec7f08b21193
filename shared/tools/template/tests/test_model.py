"""What must hold of Template for any weights: the contract of decoders, and its configurations."""

import pytest
from scratch_core.errors import ConfigError
from scratch_core.testing import CausalLMContract
from scratch_template import Template, TemplateConfig


class TestTemplate(CausalLMContract):
    model_class = Template
    decayed = (
        "head.kernel",
        "layers.*.attention.key.kernel",
        "layers.*.attention.out.kernel",
        "layers.*.attention.query.kernel",
        "layers.*.attention.value.kernel",
        "layers.*.feed_forward.down.kernel",
        "layers.*.feed_forward.gate.kernel",
        "layers.*.feed_forward.up.kernel",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 3}, "2 \\* num_heads=6 must divide d_model=64"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"vocab_size": None}, "no field 'vocab_size'"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        TemplateConfig.from_hf({**TemplateConfig.tiny().to_hf(), **change})
