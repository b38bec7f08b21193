"""ResNet's key tables: the keys of Hugging Face's ResNetForImageClassification, and of timm and torchvision, beside ours."""

from collections.abc import Mapping
from typing import Any

from scratch_core.weights import Copy, Rule, conv, transpose

from scratch_resnet.config import TIMM_CLASS, TIMM_NAME, ResNetConfig

# Only the classifier is split over devices, by features and classes; the rest of a ResNet is small.
AXES = {"classifier.kernel": ("embed", "vocab")}


def recognises(cls: Any, fields: Mapping[str, Any]) -> bool:
    """Return whether a config.json is of a ResNet: by transformers' "architectures" or by timm's "architecture"."""
    timm = fields.get("architecture")
    if isinstance(timm, str):
        return timm == TIMM_CLASS or TIMM_NAME.fullmatch(timm) is not None
    return any(name in cls.architectures or name in cls.trunks for name in fields.get("architectures") or ())


def rules(config: ResNetConfig) -> list[Rule | Copy]:
    """Return theirs | ours | transform for the layout of the config."""
    return _timm(config) if config.layout == "timm" else _hugging_face(config)


def _norm(theirs: str, ours: str) -> list[Rule | Copy]:
    """The five tensors of a batch norm; the count of batches is int64 in a checkpoint of any dtype."""
    return [
        Rule(f"{theirs}.weight",              f"{ours}.scale"),
        Rule(f"{theirs}.bias",                f"{ours}.bias"),
        Rule(f"{theirs}.running_mean",        f"{ours}.mean"),
        Rule(f"{theirs}.running_var",         f"{ours}.var"),
        Rule(f"{theirs}.num_batches_tracked", f"{ours}.count", dtype="int64"),
    ]  # fmt: skip


def _hugging_face(config: ResNetConfig) -> list[Rule | Copy]:
    theirs, ours = "resnet.encoder.stages.{i}.layers.{j}", "stages.{i}.{j}"
    table: list[Rule | Copy] = [
        Rule("resnet.embedder.embedder.convolution.weight", "stem.conv.kernel", conv),
        *_norm("resnet.embedder.embedder.normalization",    "stem.norm"),
        Rule(f"{theirs}.shortcut.convolution.weight",       f"{ours}.shortcut.conv.kernel", conv),
        *_norm(f"{theirs}.shortcut.normalization",          f"{ours}.shortcut.norm"),
        Rule("classifier.1.weight",                         "classifier.kernel", transpose),
        Rule("classifier.1.bias",                           "classifier.bias"),
    ]  # fmt: skip
    for k in range(3):
        table += [
            Rule(f"{theirs}.layer.{k}.convolution.weight",  f"{ours}.layers.{k}.conv.kernel", conv),
            *_norm(f"{theirs}.layer.{k}.normalization",     f"{ours}.layers.{k}.norm"),
        ]  # fmt: skip
    return table


def _timm(config: ResNetConfig) -> list[Rule | Copy]:
    table: list[Rule | Copy] = [
        Rule("conv1.weight", "stem.conv.kernel", conv),
        *_norm("bn1",        "stem.norm"),
        Rule("fc.weight",    "classifier.kernel", transpose),
        Rule("fc.bias",      "classifier.bias"),
    ]  # fmt: skip
    for i in range(len(config.depths)):  # their stages are layer1, layer2 ...
        theirs, ours = f"layer{i + 1}.{{j}}", f"stages.{i}.{{j}}"
        table += [
            Rule(f"{theirs}.downsample.0.weight", f"{ours}.shortcut.conv.kernel", conv),
            *_norm(f"{theirs}.downsample.1",      f"{ours}.shortcut.norm"),
        ]  # fmt: skip
        for k in range(3):
            table += [
                Rule(f"{theirs}.conv{k + 1}.weight", f"{ours}.layers.{k}.conv.kernel", conv),
                *_norm(f"{theirs}.bn{k + 1}",        f"{ours}.layers.{k}.norm"),
            ]  # fmt: skip
    return table
