"""BERT's key table: the keys of Hugging Face's Bert classes beside ours."""

from scratch_core.weights import Copy, Rule, split_bias, split_in, split_out, transpose

from scratch_bert.config import BertConfig


def encoder(config: BertConfig, prefix: str = "bert.") -> list[Rule | Copy]:
    """Return theirs | ours | transform of the encoder. N heads, H head width."""
    N, H = config.num_heads, config.d_model // config.num_heads
    # fmt: off
    table = [
        Rule("embeddings.word_embeddings.weight",                  "embedding.embedding"),
        Rule("embeddings.position_embeddings.weight",              "positions.embedding"),
        Rule("embeddings.token_type_embeddings.weight",            "token_types.embedding"),
        Rule("embeddings.LayerNorm.weight",                        "embedding_norm.scale"),
        Rule("embeddings.LayerNorm.bias",                          "embedding_norm.bias"),
        Rule("encoder.layer.{i}.attention.self.query.weight",      "layers.{i}.attention.query.kernel", split_out(N, H)),
        Rule("encoder.layer.{i}.attention.self.query.bias",        "layers.{i}.attention.query.bias",   split_bias(N, H)),
        Rule("encoder.layer.{i}.attention.self.key.weight",        "layers.{i}.attention.key.kernel",   split_out(N, H)),
        Rule("encoder.layer.{i}.attention.self.key.bias",          "layers.{i}.attention.key.bias",     split_bias(N, H)),
        Rule("encoder.layer.{i}.attention.self.value.weight",      "layers.{i}.attention.value.kernel", split_out(N, H)),
        Rule("encoder.layer.{i}.attention.self.value.bias",        "layers.{i}.attention.value.bias",   split_bias(N, H)),
        Rule("encoder.layer.{i}.attention.output.dense.weight",    "layers.{i}.attention.out.kernel",   split_in(N, H)),
        Rule("encoder.layer.{i}.attention.output.dense.bias",      "layers.{i}.attention.out.bias"),
        Rule("encoder.layer.{i}.attention.output.LayerNorm.weight", "layers.{i}.attention_norm.scale"),
        Rule("encoder.layer.{i}.attention.output.LayerNorm.bias",  "layers.{i}.attention_norm.bias"),
        Rule("encoder.layer.{i}.intermediate.dense.weight",        "layers.{i}.feed_forward.up.kernel",   transpose),
        Rule("encoder.layer.{i}.intermediate.dense.bias",          "layers.{i}.feed_forward.up.bias"),
        Rule("encoder.layer.{i}.output.dense.weight",              "layers.{i}.feed_forward.down.kernel", transpose),
        Rule("encoder.layer.{i}.output.dense.bias",                "layers.{i}.feed_forward.down.bias"),
        Rule("encoder.layer.{i}.output.LayerNorm.weight",          "layers.{i}.feed_forward_norm.scale"),
        Rule("encoder.layer.{i}.output.LayerNorm.bias",            "layers.{i}.feed_forward_norm.bias"),
    ]
    # fmt: on
    return [Rule(prefix + rule.theirs, rule.ours, rule.transform) for rule in table]


def pooled(config: BertConfig, prefix: str = "bert.") -> list[Rule | Copy]:
    """Return the table of the encoder with its pooler."""
    return [
        *encoder(config, prefix),
        Rule(prefix + "pooler.dense.weight", "pooler.kernel", transpose),
        Rule(prefix + "pooler.dense.bias", "pooler.bias"),
    ]


def bare(config: BertConfig) -> list[Rule | Copy]:
    """Return the table of BertModel, whose keys have no prefix."""
    return pooled(config, prefix="")


MASKED_LM: list[Rule | Copy] = [
    Rule("cls.predictions.transform.dense.weight", "head.transform.kernel", transpose),
    Rule("cls.predictions.transform.dense.bias", "head.transform.bias"),
    Rule("cls.predictions.transform.LayerNorm.weight", "head.norm.scale"),
    Rule("cls.predictions.transform.LayerNorm.bias", "head.norm.bias"),
    Rule("cls.predictions.bias", "head.bias"),
    Copy("cls.predictions.decoder.weight", of="bert.embeddings.word_embeddings.weight"),
    Copy("cls.predictions.decoder.bias", of="cls.predictions.bias"),
]


def masked_lm(config: BertConfig) -> list[Rule | Copy]:
    """Return the table of the masked LM."""
    return [*encoder(config), *MASKED_LM]


def pre_training(config: BertConfig) -> list[Rule | Copy]:
    """Return the table of both heads of pre-training."""
    return [
        *pooled(config),
        *MASKED_LM,
        Rule("cls.seq_relationship.weight", "classifier.kernel", transpose),
        Rule("cls.seq_relationship.bias", "classifier.bias"),
    ]


CLASSIFIER = [
    Rule("classifier.weight", "classifier.kernel", transpose),
    Rule("classifier.bias", "classifier.bias"),
]


def sequence_classifier(config: BertConfig) -> list[Rule | Copy]:
    """Return the table of the classifier of texts."""
    return [*pooled(config), *CLASSIFIER]


def token_classifier(config: BertConfig) -> list[Rule | Copy]:
    """Return the table of the classifier of tokens."""
    return [*encoder(config), *CLASSIFIER]


def question_answering(config: BertConfig) -> list[Rule | Copy]:
    """Return the table of question answering."""
    return [
        *encoder(config),
        Rule("qa_outputs.weight", "classifier.kernel", transpose),
        Rule("qa_outputs.bias", "classifier.bias"),
    ]
