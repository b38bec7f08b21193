"""Mamba-2's key tables: the keys of Hugging Face and of the authors' own checkpoints beside ours.

The two differ in one letter: Hugging Face writes ``embeddings``, the authors ``embedding``.
"""

from scratch_core.weights import Copy, Rule, conv1d, transpose

from scratch_mamba2.config import Mamba2Config


def rules(config: Mamba2Config) -> list[Rule | Copy]:
    """Return theirs | ours | transform. The in-projection's columns are z, x, B, C, dt, as in the checkpoints."""
    embedding = "backbone.embeddings.weight" if config.layout == "hf" else "backbone.embedding.weight"
    # fmt: off
    table: list[Rule | Copy] = [
        Rule(embedding,                                     "embedding.embedding"),
        Rule("backbone.layers.{i}.norm.weight",             "layers.{i}.norm.scale"),
        Rule("backbone.layers.{i}.mixer.in_proj.weight",    "layers.{i}.mixer.in_proj.kernel", transpose),
        Rule("backbone.layers.{i}.mixer.in_proj.bias",      "layers.{i}.mixer.in_proj.bias"),
        Rule("backbone.layers.{i}.mixer.conv1d.weight",     "layers.{i}.mixer.conv.kernel",    conv1d),
        Rule("backbone.layers.{i}.mixer.conv1d.bias",       "layers.{i}.mixer.conv.bias"),
        Rule("backbone.layers.{i}.mixer.dt_bias",           "layers.{i}.mixer.dt_bias"),
        Rule("backbone.layers.{i}.mixer.A_log",             "layers.{i}.mixer.A_log"),
        Rule("backbone.layers.{i}.mixer.D",                 "layers.{i}.mixer.D"),
        Rule("backbone.layers.{i}.mixer.norm.weight",       "layers.{i}.mixer.norm.scale"),
        Rule("backbone.layers.{i}.mixer.out_proj.weight",   "layers.{i}.mixer.out.kernel",     transpose),
        Rule("backbone.layers.{i}.mixer.out_proj.bias",     "layers.{i}.mixer.out.bias"),
        Rule("backbone.norm_f.weight",                      "norm.scale"),
        Rule("lm_head.weight",                              "head.kernel",                     transpose),
    ]
    # fmt: on
    if config.tie_embeddings:
        table.append(Copy("lm_head.weight", of=embedding))
    return table
