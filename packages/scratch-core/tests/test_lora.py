"""LoRA: adapters are trained beside fixed kernels, saved without the base, loaded onto a base, and merged."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.layers import Linear, LoRALinear, LoRAParam, scan_layers, unscan_layers
from scratch_core.train import Trainer, add_lora, load_lora, merge_lora, save_lora
from scratch_core.weights import Rule, flatten, split_in, split_out, to_hf, transpose


class Tiny(nnx.Module):
    """Linear layers to and from attention heads, a head of flax's own class, and an embedding: all kinds of layers."""

    checkpoint_dtype = None

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.embedding = nnx.Embed(32, 16, rngs=rngs)
        self.layers = nnx.List([nnx.Dict(query=Linear(16, (4, 6), rngs=rngs), out=Linear((4, 6), 16, rngs=rngs))])
        self.head = nnx.Linear(16, 32, rngs=rngs)

    def __call__(self, ids):
        x = self.embedding(ids)
        for layer in self.layers:
            x = x + layer.out(jnp.tanh(layer.query(x)))
        return self.head(x)

    config = None

    @staticmethod
    def rules(config):
        return [
            Rule("wte", "embedding.embedding"),
            Rule("h.{i}.q.weight", "layers.{i}.query.kernel", split_out(4, 6)),
            Rule("h.{i}.q.bias", "layers.{i}.query.bias"),
            Rule("h.{i}.o.weight", "layers.{i}.out.kernel", split_in(4, 6)),
            Rule("h.{i}.o.bias", "layers.{i}.out.bias"),
            Rule("lm_head.weight", "head.kernel", transpose),
            Rule("lm_head.bias", "head.bias"),
        ]


IDS = np.arange(24).reshape(2, 12)


def adapted(*patterns, **options):
    """A model with adapters whose B is not zero, so that they count."""
    model = Tiny()
    add_lora(model, *patterns, **({"rank": 3, "alpha": 5.0, "rngs": nnx.Rngs(1)} | options))
    for path, matrix in nnx.to_flat_state(nnx.state(model, LoRAParam)):
        if path[-1] == "lora_b":
            matrix.set_value(jax.random.normal(jax.random.key(2), matrix.shape))
    return model


def test_a_new_adapter_changes_nothing_and_its_formula_is_that_of_the_paper():
    model = Tiny()
    before = model(IDS)
    assert add_lora(model, "*.query", "head", rank=2, rngs=nnx.Rngs(1)) == ["head", "layers.0.query"]
    np.testing.assert_array_equal(model(IDS), before)
    layer = adapted("*.out").layers[0].out
    x = np.random.default_rng(0).normal(size=(5, 4, 6)).astype(np.float32)
    kernel, a, b = (np.asarray(p[...], np.float64) for p in (layer.kernel, layer.lora_a, layer.lora_b))
    update = 5.0 / 3 * a.reshape(24, 3) @ b
    expected = x.reshape(5, 24) @ (kernel.reshape(24, 16) + update) + np.asarray(layer.bias[...])
    np.testing.assert_allclose(layer(x), expected, atol=2e-5)


def test_training_moves_the_adapters_and_not_a_bit_of_the_base():
    model = adapted("*.query", "*.out", "head")
    base = {name: np.array(value) for name, value in to_hf(model).items()}
    assert base.keys() == to_hf(Tiny()).keys()
    before = flatten(nnx.state(model, LoRAParam))
    before = {path: np.array(value) for path, value in before.items()}

    def loss(model, batch):
        return (model(batch) ** 2).sum(), jnp.float32(24)

    trainer = Trainer(model, optax.adamw(1e-2), loss, trainable=LoRAParam)
    trainer.fit([IDS] * 3, 3)
    for name, value in to_hf(model).items():
        np.testing.assert_array_equal(value, base[name], name)
    for path, value in flatten(nnx.state(model, LoRAParam)).items():
        assert np.abs(np.asarray(value) - before[path]).max() > 1e-3, path


def test_merging_keeps_the_outputs_and_all_other_arrays():
    model = adapted("*.query", "head")
    merged = merge_lora(model)
    assert not any(isinstance(module, LoRALinear) for _, module in nnx.iter_modules(merged))
    np.testing.assert_allclose(merged(IDS), model(IDS), atol=5e-5)
    assert type(model.head) is LoRALinear
    assert np.abs(np.asarray(merged(IDS) - Tiny()(IDS))).max() > 0.1
    base, changed = to_hf(model), to_hf(merged)
    assert base.keys() == changed.keys()
    same = {name for name in base if np.array_equal(base[name], changed[name])}
    assert base.keys() - same == {"h.0.q.weight", "lm_head.weight"}
    with pytest.raises(ConfigError, match="this Tiny has no adapter"):
        merge_lora(merged)


def test_adapters_stay_float32_beside_a_base_in_bfloat16():
    model = adapted("*.query")
    layer = model.layers[0].query
    layer.kernel.set_value(layer.kernel[...].astype(jnp.bfloat16))
    layer.dtype = jnp.bfloat16
    assert {p.dtype for p in jax.tree.leaves(nnx.state(model, LoRAParam))} == {jnp.dtype(jnp.float32)}
    assert layer(jnp.ones((2, 16))).dtype == jnp.bfloat16
    assert layer.merged().kernel.dtype == jnp.bfloat16


def test_saved_alone_and_loaded_onto_a_base(tmp_path):
    model = adapted("*.query", "*.out", "head")
    save_lora(model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    shapes = {key: value.shape for key, value in load_file(tmp_path / "adapter_model.safetensors").items()}
    assert shapes == {
        "base_model.model.h.0.q.lora_A.weight": (3, 16),
        "base_model.model.h.0.q.lora_B.weight": (24, 3),
        "base_model.model.h.0.o.lora_A.weight": (3, 24),
        "base_model.model.h.0.o.lora_B.weight": (16, 3),
        "base_model.model.lm_head.lora_A.weight": (3, 16),
        "base_model.model.lm_head.lora_B.weight": (32, 3),
    }
    base = Tiny()
    assert sorted(load_lora(base, tmp_path)) == ["head", "layers.0.out", "layers.0.query"]
    np.testing.assert_array_equal(base(IDS), model(IDS))
    with pytest.raises(ConfigError, match="has an adapter of rank 3 already"):
        load_lora(base, tmp_path)


def test_an_adapter_that_does_not_fit_says_why_and_changes_nothing(tmp_path):
    save_lora(adapted("*.query"), tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    tensors, fields = load_file(weights), json.loads(config.read_text())

    def refused(error, message, *, tensors=tensors, **change):
        save_file(tensors, weights)
        config.write_text(json.dumps(fields | change))
        base = Tiny()
        with pytest.raises(error, match=message):
            load_lora(base, tmp_path)
        assert type(base.layers[0].query) is Linear

    refused(ConfigError, "use_dora=True is not implemented; it must be False", use_dora=True)
    refused(ConfigError, "peft_type='IA3' is not implemented", peft_type="IA3")
    refused(CheckpointError, r"r=0 must be a whole number", r=0)
    refused(CheckpointError, r"lora_A.weight must be \[4, 16\], the file has \[3, 16\]", r=4)
    key = "base_model.model.h.0.q.lora_A.weight"
    other = {name.replace("h.0", "h.7"): value for name, value in tensors.items()}
    refused(CheckpointError, "Tiny has no linear layer h.7.q: the adapter is of another model", tensors=other)
    refused(CheckpointError, "lora_B.weight must be .* the file has nothing", tensors={key: tensors[key]})
    refused(CheckpointError, "holds no adapter", tensors={})
    weights.write_bytes(b"\x80\x02 a pickle")
    with pytest.raises(CheckpointError, match="could run code and is refused"):
        load_lora(Tiny(), tmp_path)


@pytest.mark.parametrize(
    ("patterns", "options", "message"),
    [
        ((), {}, "at least one pattern"),
        (("*.keys",), {}, r"\['\*.keys'\] match no linear layer of Tiny; it has head, layers.0"),
        (("embedding",), {}, "LoRA on embedding: this is a Embed, not a linear layer"),
        (("head",), {"rank": 16}, r"rank=16 must be at least 1 and less than both sides .* head \(16 x 32\)"),
        (("head",), {"rank": 0}, "rank=0 must be at least 1"),
    ],
)
def test_patterns_that_name_no_linear_layer_are_errors(patterns, options, message):
    with pytest.raises(ConfigError, match=message):
        adapted(*patterns, **options)


def test_adapters_of_scanned_layers_are_merged_when_these_are_a_list_again():
    model = adapted("*.query")
    before = model(IDS)
    scan_layers(model)
    assert model.layers.kinds[0]["query"].lora_a.shape == (1, 16, 3)
    for use in (merge_lora, lambda model: add_lora(model, "*.out", rngs=nnx.Rngs(0))):
        with pytest.raises(ConfigError, match="LoRA on scanned layers"):
            use(model)
    unscan_layers(model)
    np.testing.assert_allclose(merge_lora(model)(IDS), before, atol=5e-5)


def test_files_of_a_base_do_not_lose_adapters_silently(tmp_path):
    from scratch_core.weights import save

    with pytest.raises(CheckpointError, match=r"head has a LoRA adapter.* save merge_lora\(model\)"):
        save(adapted("head"), tmp_path)
