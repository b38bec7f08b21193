"""The contract of each task: test classes that the tests of every model package inherit.

    class TestLlama(CausalLMContract):
        model_class = Llama
        decayed = ("layers.*.attention.query.kernel", ...)

The tests of a package add checks of properties that only its model has.
"""

import dataclasses
from importlib.metadata import entry_points
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scratch_core.errors import DataError
from scratch_core.generation import beam_search, generate
from scratch_core.registry import ARCHITECTURES, MODELS, ModelSpec
from scratch_core.testing.decoding import check_beam_search, check_causal, check_decoding, check_two_traces
from scratch_core.testing.fine_tuning import FineTuningContract
from scratch_core.testing.goldens import check_bare_trunk, jitted
from scratch_core.testing.parameters import count_parameters, decayed_parameters
from scratch_core.testing.training import check_meshes, overfit_one_batch, random_batch
from scratch_core.testing.vision import (
    check_bfloat16,
    check_images_are_independent,
    check_new_head_on_a_frozen_trunk,
    noise,
)


class ModelContract:
    """Checks for every model of any task."""

    model_class: ClassVar[Any]
    decayed: ClassVar[tuple[str, ...]]
    """The parameters with weight decay, with ``*`` for the number of a layer."""

    config: ClassVar[Any] = None
    """The configuration of the tested model; None: the preset ``tiny``."""

    spec: ClassVar[ModelSpec]
    model: ClassVar[Any]
    overfit_rate: ClassVar[float] = 3e-3
    meshes: ClassVar[tuple[str, ...]] = ("4x2",)
    """The meshes whose losses must equal those of one device; 4x2 splits over both axes at once."""

    @classmethod
    def setup_class(cls) -> None:
        """Build the model that the tests share. A test that changes the model builds its own with :meth:`create`."""
        cls.spec = find_spec(cls.model_class)
        cls.config = cls.config or cls.model_class.Config.tiny()
        cls.model = cls.create()
        cls.model.eval()

    @classmethod
    def create(cls) -> Any:
        """Return a new model of the same configuration."""
        return cls.model_class(cls.config, rngs=nnx.Rngs(0))

    def pytest_generate_tests(self, metafunc: Any) -> None:
        """Run a test with a ``preset`` argument for each preset, or for the first if the class is not the default."""
        if "preset" in metafunc.fixturenames:
            spec = find_spec(metafunc.cls.model_class)
            default = spec.model() is metafunc.cls.model_class
            metafunc.parametrize("preset", list(spec.presets)[: None if default else 1])

    def test_is_registered(self):
        """The spec names this class for its task, and each of its architectures is an entry point to it.

        A trunk is an entry point to this class too, or to its own class.
        """
        assert self.spec.model(self.model_class.task) is self.model_class
        points = {point.name: point for point in entry_points(group=ARCHITECTURES)}
        for name in (*self.model_class.architectures, *self.model_class.trunks):
            found = points[name].load()
            assert found is self.model_class or name in found.architectures

    def test_presets_have_their_number_of_parameters(self, preset):
        """The number is that of the default class."""
        assert count_parameters(self.spec.model(), self.spec.config(preset)) == self.spec.presets[preset]

    def test_config_survives_a_round_trip(self, preset):
        config = self.spec.config(preset)
        assert type(config).from_hf(config.to_hf()) == config

    def test_weight_decay_acts_on_these_parameters_alone(self):
        found = decayed_parameters(self.model_class, self.config)
        print("\n".join(found))
        assert found == sorted(self.decayed)

    def test_saved_and_loaded_is_the_same(self, tmp_path):
        self.model.save_pretrained(tmp_path / "saved")
        loaded = self.model_class.from_pretrained(tmp_path / "saved")
        batch = random_batch(self.model_class.task, self.model.config, 2)
        # One function for both: two compilations may round differently.
        loss = nnx.jit(lambda model: jnp.divide(*model.loss(batch)))
        np.testing.assert_array_equal(loss(loaded), loss(self.model))

    def test_a_bare_trunk_loads_with_a_fresh_head(self, tmp_path):
        for name, prefix in self.model_class.trunks.items():
            check_bare_trunk(self.model, tmp_path / name, name, prefix)

    def test_overfits_one_batch(self):
        model = self.create()
        overfit_one_batch(model, random_batch(model.task, model.config), rate=self.overfit_rate)

    def test_meshes_give_the_losses_of_one_device(self):
        check_meshes(self.model_class, self.config, self.meshes)


class CausalLMContract(FineTuningContract, ModelContract):
    """Checks for every decoder: causality, caching, padding, generation, fine-tuning."""

    def test_logits_have_the_shape_of_the_tokens(self):
        logits = jitted(self.model)(jnp.ones((2, 7), jnp.int32))
        assert (logits.shape, logits.dtype) == ((2, 7, self.model.config.vocab_size), jnp.float32)

    def test_no_token_reads_a_later_one(self):
        check_causal(self.model)

    def test_cached_chunked_and_padded_decoding_equal_the_full_pass(self):
        check_decoding(self.model)

    def test_generation_compiles_twice(self):
        check_two_traces(self.model)

    def test_beams_have_the_scores_of_the_full_pass_and_one_beam_is_greedy(self):
        check_beam_search(self.model)

    def test_swapping_two_earlier_tokens_changes_the_last_logits(self):
        ids = np.array([[5, 9, 70, 3]])
        forward = jitted(self.model)
        assert np.abs(np.asarray(forward(ids) - forward(ids[:, [1, 0, 2, 3]])))[0, -1].max() > 1e-4

    def test_a_row_of_padding_alone_stays_finite(self):
        mask = np.array([[1, 1, 1], [0, 0, 0]])
        assert np.isfinite(jitted(self.model)(np.ones((2, 3), np.int32), mask)).all()

    def test_gradients_are_finite_with_padding(self):
        batch = {"input_ids": jnp.ones((2, 6), jnp.int32), "attention_mask": jnp.array([[1] * 6, [0] * 6])}
        gradients = nnx.jit(nnx.grad(lambda model: model.loss(batch)[0]))(self.model)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))

    def test_a_full_cache_is_an_error(self):
        cache = self.model.init_cache(2, 8)
        if cache.capacity is None:  # a state or a window that never fills
            return
        _, cache = jitted(self.model, "decode")(np.ones((2, 6), np.int32), cache)
        _raises("room for 8 tokens: row 0 holds 6 and gets 3", self.model.decode, np.ones((2, 3), np.int32), cache)

    def test_a_cache_of_another_batch_size_is_an_error(self):
        decode, cache = jitted(self.model, "decode"), self.model.init_cache(1, 8)
        _raises("input_ids has 2 rows, the cache 1", decode, np.ones((2, 3), np.int32), cache)

    def test_every_leaf_of_a_cache_has_the_batch_first(self):
        """Indexing the leaves reorders the rows, as beam search does."""
        rng, order = np.random.default_rng(0), np.array([2, 0, 0])
        ids = rng.integers(0, self.model.config.vocab_size, (3, 8)).astype(np.int32)
        mask = np.array([[1] * 5, [0, 0, 1, 1, 1], [0, 1, 1, 1, 1]])
        decode = jitted(self.model, "decode")
        _, cache = decode(ids[:, :5], self.model.init_cache(3, 8), mask)
        moved, _ = decode(ids[order, 5:], jax.tree.map(lambda leaf: leaf[order], cache))
        stayed, _ = decode(ids[:, 5:], cache)
        np.testing.assert_allclose(moved, np.asarray(stayed)[order], atol=1e-5)


class SequenceToSequenceContract(ModelContract):
    """Checks for every encoder-decoder: causality of the target, caching, padding, generation."""

    def inputs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return random sources [2, 9] and targets [2, 7]."""
        rng = np.random.default_rng(0)
        source, target = (rng.integers(1, self.config.vocab_size, (2, T)).astype(np.int32) for T in (9, 7))
        return source, target

    def test_logits_have_the_shape_of_the_target(self):
        source, target = self.inputs()
        logits = jitted(self.model)(source, target)
        assert (logits.shape, logits.dtype) == ((2, 7, self.config.vocab_size), jnp.float32)

    def test_no_token_reads_a_later_one_and_all_read_the_source(self):
        source, target = self.inputs()
        forward = jitted(self.model)
        logits, changed, read = np.asarray(forward(source, target)), target.copy(), source.copy()
        changed[:, 4] = (changed[:, 4] + 1) % self.config.vocab_size
        read[:, 8] = (read[:, 8] + 1) % self.config.vocab_size
        np.testing.assert_array_equal(np.asarray(forward(source, changed))[:, :4], logits[:, :4])
        assert np.abs(np.asarray(forward(source, changed))[:, 4:] - logits[:, 4:]).max(axis=-1).min() > 1e-6
        assert np.abs(np.asarray(forward(read, target)) - logits).max(axis=-1).min() > 1e-6

    def test_cached_and_padded_decoding_equal_the_full_pass(self):
        """Target tokens come in chunks of 1, 4 and 2. The source has padding with arbitrary tokens on either side."""
        source, target = self.inputs()
        full = np.asarray(jitted(self.model)(source, target))
        decode = jitted(self.model, "decode")
        for left in (3, 0):
            padded = np.pad(source, ((0, 0), (left, 3 - left)), constant_values=5)
            mask = np.pad(np.ones_like(source), ((0, 0), (left, 3 - left)))
            cache, pieces = self.model.init_cache(padded, mask, 7), []
            for chunk in np.split(target, [1, 5], axis=1):
                logits, cache = decode(chunk, cache)
                pieces.append(np.asarray(logits))
            np.testing.assert_allclose(np.concatenate(pieces, axis=1), full, atol=2e-5)

    def test_generation_compiles_twice_and_one_beam_is_greedy(self):
        check_two_traces(self.model)
        source, _ = self.inputs()
        greedy = generate(self.model, source, max_new_tokens=6)
        start = self.config.decoder_start_token_id
        assert (greedy.shape, greedy[:, 0].tolist()) == ((2, 7), [start, start])
        one, _ = beam_search(self.model, source, num_beams=1, max_new_tokens=6)
        np.testing.assert_array_equal(one[:, 0], greedy)

    def test_a_row_of_padding_alone_stays_finite(self):
        source, target = self.inputs()
        mask = np.ones_like(source)
        mask[1] = 0
        assert np.isfinite(jitted(self.model)(source, target, mask)).all()

    def test_a_full_cache_is_an_error(self):
        source, target = self.inputs()
        _, cache = jitted(self.model, "decode")(target[:, :3], self.model.init_cache(source, None, 4))
        _raises("room for 4 tokens: row 0 holds 3 and gets 2", self.model.decode, target[:, :2], cache)


class ImageClassificationContract(ModelContract):
    """Checks for every image classifier."""

    def test_config_survives_a_round_trip(self, preset):
        """A preset has no class names; its config.json names the classes LABEL_0 and so on."""
        config = self.spec.config(preset)
        again = type(config).from_hf(config.to_hf())
        assert dataclasses.replace(again, labels=()) == config
        assert type(config).from_hf(again.to_hf()) == again

    def test_the_names_of_the_classes_decide_and_not_their_order_in_the_file(self):
        """Data and checkpoints may order the same classes differently: transformers#12822, #5196."""
        config = self.config.with_labels(("dog", "cat", "owl"))
        fields = config.to_hf()
        fields["id2label"] = dict(reversed(fields["id2label"].items()))
        again = type(config).from_hf(fields)
        assert again.labels == ("dog", "cat", "owl")
        assert again.to_hf()["label2id"] == {"dog": 0, "cat": 1, "owl": 2}

    def test_logits_are_one_number_per_class(self):
        logits = jitted(self.model)(noise(self.config, 2))
        assert (logits.shape, logits.dtype) == ((2, self.config.num_classes), jnp.float32)

    def test_images_do_not_see_each_other(self):
        check_images_are_independent(self.create())

    def test_a_new_head_on_a_frozen_trunk(self, tmp_path):
        check_new_head_on_a_frozen_trunk(self.create(), tmp_path)

    def test_computing_in_bfloat16(self):
        check_bfloat16(self.model_class, self.config)


def find_spec(model_class: Any) -> ModelSpec:
    """Return the spec that offers a class. A package with two generations of a model has a spec for each."""
    package = model_class.__module__.partition(".")[0]
    for point in entry_points(group=MODELS):
        spec = point.load() if point.module == package else None
        if spec is not None and f"{package}:{model_class.__name__}" in spec.models.values():
            return spec
    raise AssertionError(
        f"no spec of {package} under the entry points {MODELS!r} names {package}:{model_class.__name__}: "
        "add it to pyproject.toml, then `uv sync --all-packages`"
    )


def _raises(message: str, call: Any, *arguments: Any) -> None:
    """Fail unless the call raises DataError with this text in its message."""
    try:
        call(*arguments)
        said = "no error"
    except DataError as error:
        said = str(error)
    assert message in said, said
