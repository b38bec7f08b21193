"""Checks of BERT with random weights: the contracts of its four tasks, configurations, checkpoints of other heads."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scratch_core
from flax import nnx
from safetensors.numpy import load_file, save_file
from scratch_bert import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from scratch_core.errors import CheckpointError, ConfigError, DataError
from scratch_core.fine_tuning import start_from
from scratch_core.layers import LoRAParam
from scratch_core.parallel import make_mesh
from scratch_core.tasks import find_task
from scratch_core.testing import (
    MaskedLMContract,
    QuestionAnsweringContract,
    SequenceClassificationContract,
    TokenClassificationContract,
    check_scanned_and_rematerialised,
    jitted,
    random_batch,
)
from scratch_core.train import Trainer, adamw, add_lora, merge_lora
from scratch_core.train.plan import plan_step

SMALL = dataclasses.replace(
    BertConfig.tiny(),
    vocab_size=96,
    d_model=32,
    num_heads=4,
    d_ff=64,
    num_layers=1,
    max_positions=64,
    initial_scale=0.2,
)
LAYERS = tuple(
    f"layers.*.{name}.kernel"
    for name in (
        *(f"attention.{part}" for part in ("key", "out", "query", "value")),
        "feed_forward.down",
        "feed_forward.up",
    )
)


class TestBertForMaskedLM(MaskedLMContract):
    model_class = BertForMaskedLM
    config = SMALL
    decayed = (*LAYERS, "head.transform.kernel")


class TestBertForSequenceClassification(SequenceClassificationContract):
    model_class = BertForSequenceClassification
    config = dataclasses.replace(SMALL, num_classes=3)
    decayed = (*LAYERS, "classifier.kernel", "pooler.kernel")


class TestBertForTokenClassification(TokenClassificationContract):
    model_class = BertForTokenClassification
    config = dataclasses.replace(SMALL, num_classes=3)
    decayed = (*LAYERS, "classifier.kernel")


class TestBertForQuestionAnswering(QuestionAnsweringContract):
    model_class = BertForQuestionAnswering
    config = SMALL
    decayed = (*LAYERS, "classifier.kernel")


@pytest.mark.parametrize(
    ("model_class", "task"),
    [
        (BertForMaskedLM, "masked_lm"),
        (BertForSequenceClassification, "sequence_classification"),
        (BertForTokenClassification, "token_classification"),
        (BertForQuestionAnswering, "question_answering"),
    ],
)
def test_adapters_learn_alone_and_merge(model_class, task):
    """LoRA on every linear layer of the blocks: one step moves nothing else, and merging changes no result."""
    model, batch = model_class(SMALL, rngs=nnx.Rngs(0)), random_batch(task, SMALL, 2)
    add_lora(model, "layers.*", rank=2, rngs=nnx.Rngs(1))
    assert len(nnx.to_flat_state(nnx.state(model, LoRAParam))) == 2 * 6  # two matrices for each linear layer
    before = jax.tree.map(jnp.copy, nnx.state(model, nnx.Not(LoRAParam)))
    base = jitted(model, "hidden")(batch["input_ids"])
    trainer = Trainer(model, adamw(0.1, decayed=()), trainable=LoRAParam)
    trainer.fit([batch] * 2, 2)
    model.eval()
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model, nnx.Not(LoRAParam)), before)
    adapted = jitted(model, "hidden")(batch["input_ids"])
    assert np.abs(adapted - base).max() > 1e-4
    merged = merge_lora(model)
    np.testing.assert_allclose(jitted(merged, "hidden")(batch["input_ids"]), adapted, atol=1e-5)


def test_the_product_of_two_new_positions_depends_on_their_distance_alone():
    """And each has the size that the config asks for."""
    positions = BertForMaskedLM(SMALL, rngs=nnx.Rngs(0)).positions.embedding[...]
    products = positions @ positions.T / SMALL.d_model
    for distance in (0, 1, 7):
        along = np.diag(products, distance)
        np.testing.assert_allclose(along, along[0], atol=1e-5)
    assert np.diag(products) == pytest.approx((2 * SMALL.initial_scale) ** 2, rel=1e-4)


def test_scanned_and_rematerialised_layers_compute_the_same(tmp_path):
    model = BertForMaskedLM(dataclasses.replace(SMALL, num_layers=2), rngs=nnx.Rngs(0))
    model.eval()
    mask = np.ones((2, 24), np.int32)
    mask[1, 15:] = 0
    check_scanned_and_rematerialised(model, random_batch("masked_lm", SMALL, 2) | {"attention_mask": mask}, tmp_path)


def test_collectives_of_a_step_on_a_mesh():
    """Activations are split by their batch alone after the embedding and each layer (`parallel.constrain`).

    Without that XLA made 91 all-gathers, 44 all-reduces and 22 all-to-alls, of 479 KB for each device instead of 169.
    With it and whole biases, there were 27 all-gathers more: of the biases and of the optimizer's averages of them.
    """
    task, config = find_task("masked_lm"), dataclasses.replace(SMALL, num_layers=2)
    batch, mesh = task.shapes(config, 8, 16), make_mesh(fsdp=4, tensor=2)
    plan = plan_step(lambda: BertForMaskedLM(config, rngs=nnx.Rngs(0)), adamw(1e-3), batch, mesh, handling=task)
    counts = {kind: count for kind, (count, _) in plan.collectives.items()}
    # The 6 kernels of both layers, once for both passes; the embedding for its two uses, the positions, and the tokens.
    assert counts.pop("all-gather") <= 6 * 2 + 7  # compilers differ by one
    assert counts.pop("all-reduce") <= 25
    # The embeddings of the tokens go from columns to rows, and their gradient back; the tokens go to other devices.
    assert sum(counts.values()) == 6
    assert sum(size for _, size in plan.collectives.values()) < 180_000


def test_dropout_is_on_in_training_and_off_in_evaluation():
    config = dataclasses.replace(SMALL, dropout=0.3, attention_dropout=0.3)
    model = BertForSequenceClassification(config, rngs=nnx.Rngs(0))
    forward = nnx.jit(lambda model, ids: model(ids))
    ids = jnp.ones((2, 5), jnp.int32)
    assert np.abs(forward(model, ids) - forward(model, ids)).max() > 1e-4
    model.eval()
    np.testing.assert_array_equal(forward(model, ids), forward(model, ids))


def test_half_precision_stays_finite(tmp_path):
    model = BertForMaskedLM(SMALL, rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    ids, mask = np.ones((2, 5), np.int32), np.array([[1] * 5, [0] * 5])
    for dtype in (jnp.float16, jnp.bfloat16):
        logits = jitted(BertForMaskedLM.from_pretrained(tmp_path, dtype=dtype))(ids, mask)
        assert np.isfinite(logits).all()
        assert logits.dtype == jnp.float32


def test_a_pre_training_file_serves_every_task(tmp_path):
    """The masked LM reads all of it. The other tasks get a new head, and read the pooler where they have one."""
    model = BertForPreTraining(SMALL, rngs=nnx.Rngs(0))
    model.save_pretrained(tmp_path)
    fields = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**fields, "architectures": ["BertForMaskedLM"]}))
    ids = np.ones((1, 4), np.int32)
    np.testing.assert_array_equal(jitted(scratch_core.load(tmp_path))(ids), jitted(model)(ids)[0])
    started = start_from(BertForSequenceClassification, tmp_path, ("a", "b", "c"), rngs=nnx.Rngs(1))
    assert started.config.labels == ("a", "b", "c")
    assert jitted(started)(ids).shape == (1, 3)
    np.testing.assert_array_equal(started.pooler.kernel[...], model.pooler.kernel[...])
    np.testing.assert_array_equal(jitted(started, "hidden")(ids), jitted(model, "hidden")(ids))


def test_a_bare_encoder_starts_a_task_and_keeps_its_own_classes(tmp_path):
    BertModel(SMALL, rngs=nnx.Rngs(0)).save_pretrained(tmp_path / "bare")
    started = start_from(BertForTokenClassification, tmp_path / "bare", ("O", "x"), rngs=nnx.Rngs(1))
    started.save_pretrained(tmp_path / "tagger")
    again = start_from(BertForTokenClassification, tmp_path / "tagger", ("O", "x"), rngs=nnx.Rngs(2))
    np.testing.assert_array_equal(again.classifier.kernel[...], started.classifier.kernel[...])
    other = start_from(BertForTokenClassification, tmp_path / "tagger", ("O", "y"), rngs=nnx.Rngs(2))
    assert np.abs(other.classifier.kernel[...] - started.classifier.kernel[...]).max() > 1e-3


def test_copies_of_the_tied_matrix_must_equal_it(tmp_path):
    BertForMaskedLM(SMALL, rngs=nnx.Rngs(0)).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    copy = tensors["bert.embeddings.word_embeddings.weight"]
    save_file({**tensors, "cls.predictions.decoder.weight": copy}, tmp_path / "model.safetensors")
    BertForMaskedLM.from_pretrained(tmp_path)
    save_file({**tensors, "cls.predictions.decoder.weight": copy + 1}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="must equal"):
        BertForMaskedLM.from_pretrained(tmp_path)


def test_a_text_longer_than_the_positions_is_an_error():
    with pytest.raises(DataError, match="the model has 64"):
        BertForMaskedLM(SMALL, rngs=nnx.Rngs(0))(jnp.ones((1, 65), jnp.int32))


def test_pre_training_counts_the_next_sentence_once():
    """Repeated rows have the same loss: the weight is the number of hidden tokens, as for the masked LM."""
    model = BertForPreTraining(SMALL, rngs=nnx.Rngs(0))
    batch = {**random_batch("masked_lm", SMALL, 4), "next_sentence_label": np.array([0, 1, 1, 0], np.int32)}
    loss = nnx.jit(lambda model, batch: model.loss(batch))
    once, twice = (loss(model, {k: np.tile(v, (n, 1)[: v.ndim]) for k, v in batch.items()}) for n in (1, 2))
    np.testing.assert_allclose(once[0] / once[1], twice[0] / twice[1], rtol=1e-5)
    assert twice[1] == 2 * once[1] == 2 * 24


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "mish"}, "hidden_act='mish'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"num_attention_heads": 5}, "num_heads=5 must divide d_model=32"),
        ({"hidden_dropout_prob": 1.5}, "dropout=1.5"),
        ({"problem_type": "ranking"}, "problem_type='ranking'"),
        ({"type_vocab_size": 0}, "num_token_types=0 must be greater than 0"),
    ],
)
def test_a_config_that_cannot_be_built_says_why(change, message):
    with pytest.raises(ConfigError, match=message):
        BertConfig.from_hf({**SMALL.to_hf(), **change})


def test_an_untied_head_is_refused():
    with pytest.raises(ConfigError, match="tie_embeddings=False"):
        BertForMaskedLM(dataclasses.replace(SMALL, tie_embeddings=False), rngs=nnx.Rngs(0))
