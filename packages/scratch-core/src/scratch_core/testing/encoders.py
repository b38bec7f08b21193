"""The contracts of the tasks of text encoders."""

from typing import ClassVar

import numpy as np

from scratch_core.testing.contracts import ModelContract
from scratch_core.testing.goldens import jitted


class EncoderContract(ModelContract):
    """Checks for every text encoder, with any head."""

    rows: ClassVar[bool] = False
    """True if there is one output per text, False if there is one per token."""

    def outputs(self, ids: np.ndarray, mask: np.ndarray | None = None, types: np.ndarray | None = None) -> np.ndarray:
        """Return the model's output; a tuple is stacked on a new last axis."""
        found = jitted(self.model)(ids, mask, types)
        return np.stack(found, axis=-1) if isinstance(found, tuple) else np.asarray(found)

    def ids(self) -> np.ndarray:
        """Return random tokens [2, 9]."""
        return np.random.default_rng(0).integers(1, self.config.vocab_size, (2, 9)).astype(np.int32)

    def test_every_token_reads_every_other_and_its_type(self):
        ids = self.ids()
        before, changed, types = self.outputs(ids), ids.copy(), np.zeros_like(ids)
        changed[:, 8] = changed[:, 8] % (self.config.vocab_size - 1) + 1
        types[:, 5:] = 1
        for after in (self.outputs(changed), self.outputs(ids, None, types)):
            moved = np.abs(after - before).reshape(2, 1 if self.rows else 9, -1).max(axis=-1)
            assert moved.min() > 1e-6

    def test_padding_changes_no_result(self):
        """Padding may be on either side and hold any tokens."""
        ids = self.ids()
        alone = self.outputs(ids)
        for left in (3, 0):
            padded = np.pad(ids, ((0, 0), (left, 3 - left)), constant_values=7)
            mask = np.pad(np.ones_like(ids), ((0, 0), (left, 3 - left)))
            found = self.outputs(padded, mask)
            np.testing.assert_allclose(found if self.rows else found[:, left : left + 9], alone, atol=1e-5)

    def test_a_row_of_padding_alone_stays_finite(self):
        mask = np.array([[1] * 9, [0] * 9])
        assert np.isfinite(self.outputs(self.ids(), mask)).all()


class MaskedLMContract(EncoderContract):
    """Checks for every masked LM."""

    def test_logits_have_the_shape_of_the_tokens(self):
        assert self.outputs(self.ids()).shape == (2, 9, self.config.vocab_size)


class SequenceClassificationContract(EncoderContract):
    """Checks for every text classifier."""

    rows: ClassVar[bool] = True

    def test_logits_are_one_number_per_class(self):
        assert self.outputs(self.ids()).shape == (2, self.config.num_classes)


class TokenClassificationContract(EncoderContract):
    """Checks for every token classifier."""

    def test_logits_are_one_number_per_token_and_class(self):
        assert self.outputs(self.ids()).shape == (2, 9, self.config.num_classes)


class QuestionAnsweringContract(EncoderContract):
    """Checks for every model that finds an answer in a text."""

    def test_logits_are_two_numbers_per_token(self):
        start, end = jitted(self.model)(self.ids())
        assert (start.shape, end.shape) == ((2, 9), (2, 9))
