"""Checks that a decoder is safe to fine-tune. Each names the public issue in which another project had the fault.

Almost all checks share one compiled function: the loss and its gradients on rows of one shape.
"""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx

from scratch_core.data.text import with_bos
from scratch_core.errors import ConfigError
from scratch_core.layers import LoRAParam, scan_layers
from scratch_core.train.lora import add_lora, merge_lora
from scratch_core.weights.key_table import flatten

B, T = 4, 16
LENGTHS = (16, 5, 9, 2)
RTOL, ATOL = 1e-4, 1e-5


def token_loss(model: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
    """Return the model's own loss."""
    return model.loss(batch)


class FineTuningContract:
    """The part of a decoder's contract that fine-tuning depends on.

    If a model's loss has a term over the whole batch, such as a router's load balancing, the test sets ``token_loss``
    to :func:`scratch_core.losses.causal_lm_loss`, because such a term does not add up over rows, here or in the
    reference.
    """

    model: ClassVar[Any]
    model_class: ClassVar[Any]
    create: ClassVar[Any]
    token_loss: ClassVar[Any] = staticmethod(token_loss)

    lora_patterns: ClassVar[tuple[str, ...]] = ("*",)
    """The linear layers that get an adapter of rank 2; by default all, if none is narrower."""

    @property
    def untrained(self) -> Any:
        """A new model in evaluation mode. A test class whose ``model`` is not new overrides this."""
        return self.model

    def test_accumulation_over_rows_of_unequal_length_is_the_large_batch(self):
        """A mean of means weighs short texts too much: transformers#34191."""
        ids, mask = _rows(self.untrained), _mask("right")
        whole = self._measure(ids, mask)
        parts = [
            self._measure(ids, np.where(np.isin(np.arange(B), rows)[:, None], mask, 0)) for rows in ((0, 1), (2, 3))
        ]
        assert [part[1] for part in parts] == [LENGTHS[0] + LENGTHS[1] - 2, LENGTHS[2] + LENGTHS[3] - 2]
        _same(jax.tree.map(np.add, *parts), whole)

    def test_padding_on_either_side_gives_the_same_loss_and_gradients(self):
        """Padding on the left gave NaN, or counted a token that was predicted from padding: transformers#30004."""
        ids = _rows(self.untrained)
        left = np.stack([np.roll(row, T - length) for row, length in zip(ids, LENGTHS, strict=True)])
        right = self._measure(ids, _mask("right"))
        assert right[1] == sum(LENGTHS) - B
        _same(self._measure(left, _mask("left")), right)

    def test_documents_packed_together_do_not_see_each_other(self):
        """Packed documents attend to each other unless the model prevents it: trl#805, transformers#46634.

        Three documents in one row must give the same loss and gradients as in three separate rows: positions begin
        again, attention and state end with a document, and none predicts the first token of the next.
        """
        ids, lengths = _rows(self.untrained), (5, 2, 7)
        packed, mask, documents = (np.zeros_like(ids) for _ in range(3))
        packed[0, 1:15] = np.concatenate([row[:length] for row, length in zip(ids, lengths, strict=False)])
        mask[0, 1:15] = 1  # with padding on both sides
        documents[0, 1:15] = np.repeat([3, 7, 4], lengths)
        alone = (np.arange(T) < np.array([*lengths, 0])[:, None]).astype(np.int32)
        found, expected = self._measure(packed, mask, documents=documents), self._measure(ids, alone)
        assert found[1] == expected[1] == sum(lengths) - len(lengths)
        _same(found, expected)
        joined = self._measure(packed, mask)
        assert joined[1] == sum(lengths) - 1
        assert abs(joined[0] - found[0]) > 1e-2

    def test_bos_comes_once(self):
        """A missing or doubled bos ruins a model that was trained with one: lm-evaluation-harness#1465."""
        for text in ([5, 6], [1, 5, 6]):
            assert with_bos(np.array(text, np.int32), 1).tolist() == [1, 5, 6]
        assert with_bos(np.array([5, 6], np.int32), None).tolist() == [5, 6]

    def test_the_first_loss_of_a_new_model_is_that_of_guessing(self):
        """A changed initialisation gave a first loss of 60 instead of 10: OLMo#678. Guessing costs ln V."""
        total, weight, _ = self._measure(_rows(self.untrained), _mask("right"))
        assert abs(total / weight - math.log(self.untrained.config.vocab_size)) < 1.0

    def test_saved_and_loaded_three_times_gives_the_same_loss_and_files(self, tmp_path: Path):
        """A config changed with every save: transformers#47940."""
        ids, mask, model, configs = _rows(self.untrained), _mask("right"), self.untrained, []
        for number in range(3):
            model.save_pretrained(tmp_path / str(number))
            configs.append(json.loads((tmp_path / str(number) / "config.json").read_text()))
            model = self.model_class.from_pretrained(tmp_path / str(number))
        assert configs[0] == configs[1] == configs[2]
        jax.tree.map(np.testing.assert_array_equal, self._measure(ids, mask, model), self._measure(ids, mask))

    def test_merged_lora_equals_the_adapter(self):
        """Every linear layer gets an adapter. Merging broke tied heads, so an adapter there is refused: unsloth#219."""
        model, rng = self.create(), np.random.default_rng(0)
        model.eval()
        add_lora(model, *self.lora_patterns, rank=2, rngs=nnx.Rngs(1))
        for path, matrix in nnx.to_flat_state(nnx.state(model, LoRAParam)):
            if path[-1] == "lora_b":
                matrix.set_value(rng.normal(scale=0.2, size=matrix.shape).astype(np.float32))
        ids, mask = _rows(self.untrained), _mask("right")
        adapted = _loss(model, self.token_loss, ids, mask)
        (merged, *_), (base, *_) = self._measure(ids, mask, merge_lora(model)), self._measure(ids, mask)
        np.testing.assert_allclose(merged / adapted[1], adapted[0] / adapted[1], atol=5e-5)
        assert abs(merged - base) > 1e-3 * base
        if getattr(model.config, "tie_embeddings", False):
            try:
                add_lora(self.create(), "head", rngs=nnx.Rngs(0))
                said = "no error"
            except ConfigError as error:
                said = str(error)
            assert "one array with two uses" in said, said

    def test_scanned_and_rematerialised_layers_give_the_same_loss(self):
        model = self.create()
        model.eval()
        model.remat_layers = True
        try:
            scan_layers(model)
        except ConfigError as error:  # alternating layers of which the small configuration has one each
            assert "cannot be scanned" in str(error)  # noqa: PT017, it may as well be scanned
        ids, mask = _rows(self.untrained), _mask("right")
        np.testing.assert_allclose(_loss(model, self.token_loss, ids, mask), self._measure(ids, mask)[:2], rtol=RTOL)

    def _measure(
        self, ids_BT: np.ndarray, mask_BT: np.ndarray, model: Any = None, documents: np.ndarray | None = None
    ) -> Any:
        """Return sum, weight and {path: gradient of the sum}. ``model`` may be another model of the same structure.

        ``documents`` None means one document in each row. It is passed as an array, so that all tests share one
        compilation.
        """
        documents = np.zeros_like(ids_BT) if documents is None else documents
        batch = {"input_ids": ids_BT, "attention_mask": mask_BT, "document_ids": documents}
        _, parameters, rest = nnx.split(self.untrained if model is None else model, nnx.Param, ...)
        states = nnx.to_pure_dict(parameters), nnx.to_pure_dict(rest)
        total, weight, gradients = _sums(nnx.graphdef(self.untrained), self.token_loss, *states, batch)
        return jax.tree.map(np.asarray, (total, weight, flatten(gradients)))


@partial(jax.jit, static_argnums=(0, 1))
def _sums(graphdef: Any, loss: Any, parameters: Any, rest: Any, batch: Any) -> Any:
    def total(parameters: Any) -> tuple[jax.Array, jax.Array]:
        model = nnx.merge(graphdef, nnx.State(parameters), nnx.State(rest))
        return loss(model, batch)

    (summed, weight), gradients = jax.value_and_grad(total, has_aux=True)(parameters)
    return summed, weight, gradients


def _loss(model: Any, loss: Any, ids_BT: np.ndarray, mask_BT: np.ndarray) -> tuple[float, float]:
    """Return only sum and weight, for a model of any structure."""
    graphdef, state = nnx.split(model)
    batch = {"input_ids": ids_BT, "attention_mask": mask_BT}
    total, weight = jax.jit(lambda state: loss(nnx.merge(graphdef, state), batch))(state)
    return float(total), float(weight)


def _rows(model: Any, seed: int = 0) -> np.ndarray:
    """Return B random rows of T tokens."""
    return np.random.default_rng(seed).integers(1, model.config.vocab_size, (B, T)).astype(np.int32)


def _mask(side: str) -> np.ndarray:
    mask = (np.arange(T) < np.array(LENGTHS)[:, None]).astype(np.int32)
    return mask if side == "right" else mask[:, ::-1].copy()


def _same(found: Any, expected: Any) -> None:
    """Compare sum, weight and gradients. The tolerance of a gradient is relative to its largest value."""
    assert np.isfinite(found[0])
    np.testing.assert_allclose(found[:2], expected[:2], rtol=RTOL)
    assert found[2].keys() == expected[2].keys()
    for path, value in expected[2].items():
        np.testing.assert_allclose(found[2][path], value, atol=ATOL + RTOL * np.abs(value).max(), err_msg=path)
