# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "timm", "safetensors", "numpy"]
# ///
"""Make golden folders like those beside this file, with the reference libraries. The tests never run it.

    uv run packages/scratch-resnet/tests/make_golden.py FOLDER [NAME ...]

Each is a tiny random model with its inputs and the outputs of transformers or timm: eval mode, one thread.
``training`` is five steps of gradient descent in training mode, and the running statistics after them.
Another version of torch draws other weights, so that the files hold other numbers; the tests must pass with those too.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

SHAPES = {
    "basic": {"embedding_size": 12, "hidden_sizes": [12, 16, 24], "layer_type": "basic", "num_labels": 5},
    "bottleneck": {"embedding_size": 16, "hidden_sizes": [24, 32, 48], "layer_type": "bottleneck", "num_labels": 7},
    "training": {"embedding_size": 8, "hidden_sizes": [16, 24, 32], "layer_type": "bottleneck", "num_labels": 4},
}
TIMM = {"block": "bottleneck", "layers": [1, 2, 1, 1], "channels": [6, 8, 8, 10], "num_classes": 6}


def randomise(model):
    """Draw weights and statistics large enough for every part of the model to matter."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 1.5)


def evaluation(model, features, size, names, classes):
    """Return inputs and outputs of a model in eval mode, with the loss and two of its gradients."""
    x, labels = torch.randn(3, 3, size, size), torch.randint(0, classes, (3,))
    logits = model(x)
    logits = getattr(logits, "logits", logits)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    io = {"pixel_values": x, "labels": labels.int(), "logits": logits, "last_hidden_state": features(x), "loss": loss}
    return io | {f"grad.{name}": model.get_parameter(name).grad for name in names}


def training(model):
    """Return five batches, the losses on them, and the statistics and two parameters after five steps."""
    model.train()
    x, labels = torch.randn(5, 6, 3, 32, 32), torch.randint(0, 4, (5, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for images, classes in zip(x, labels):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images).logits, classes)
        loss.backward()
        optimizer.step()
        losses.append(loss)
    io = {"pixel_values": x, "labels": labels.int(), "losses": torch.stack(losses)}
    return io | {f"after.{name}": value for name, value in model.state_dict().items()}


def write(folder, io):
    save_file({k: v.detach().contiguous() for k, v in io.items()}, folder / "io.safetensors")


def main():
    root, wanted = Path(sys.argv[1]), sys.argv[2:]
    torch.set_num_threads(1)
    for seed, (name, shape) in enumerate(SHAPES.items()):
        if wanted and name not in wanted:
            continue
        from transformers import ResNetConfig, ResNetForImageClassification

        torch.manual_seed(seed)
        model = ResNetForImageClassification(ResNetConfig(depths=[1, 2, 1], **shape)).eval()
        randomise(model)
        model.save_pretrained(root / name)
        if name == "training":
            write(root / name, training(model))
            continue
        names = ["resnet.embedder.embedder.normalization.weight"]
        names.append("resnet.encoder.stages.1.layers.0.layer.1.convolution.weight")
        features = lambda x, model=model: model.resnet(x).last_hidden_state  # noqa: E731
        write(root / name, evaluation(model, features, 32 if name == "basic" else 40, names, shape["num_labels"]))
        fields = json.loads((root / name / "config.json").read_text())
        fields["torch_dtype"] = fields.pop("dtype")
        (root / name / "config.legacy.json").write_text(json.dumps(fields, indent=1))
    if not wanted or "timm" in wanted:
        from timm.models.resnet import Bottleneck, ResNet

        torch.manual_seed(9)
        model = ResNet(Bottleneck, TIMM["layers"], channels=TIMM["channels"], num_classes=TIMM["num_classes"]).eval()
        randomise(model)
        (root / "timm").mkdir(parents=True, exist_ok=True)
        save_file(model.state_dict(), root / "timm/model.safetensors", metadata={"format": "pt"})
        names = ["bn1.bias", "layer2.0.downsample.0.weight"]
        write(root / "timm", evaluation(model, model.forward_features, 40, names, TIMM["num_classes"]))
        fields = {"architecture": "timm.models.resnet.ResNet", **TIMM}
        (root / "timm/config.json").write_text(json.dumps(fields, indent=1))


if __name__ == "__main__":
    main()
