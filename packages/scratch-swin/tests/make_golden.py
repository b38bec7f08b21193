# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "safetensors"]
# ///
"""Make golden folders like those beside this file, with the reference library. The tests never run it.

    uv run packages/scratch-swin/tests/make_golden.py FOLDER

Each is a tiny random model with its inputs and the outputs that transformers computes: eval mode, eager attention, one
thread.
Another version of torch draws other weights, so that the files hold other numbers; the tests must pass with those too.
"""

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Swinv2Config, Swinv2ForImageClassification

THREE = {"depths": [2, 1, 1], "num_heads": [2, 3, 4], "image_size": 32}
GOLDENS = {
    "shift": {**THREE, "pretrained_window_sizes": [0, 0, 0]},
    "pretrained": {**THREE, "pretrained_window_sizes": [6, 6, 3]},
    "pad": {"depths": [2, 2], "num_heads": [2, 3], "image_size": 28, "pretrained_window_sizes": [0, 0]},
}
GRADIENTS = (
    "swinv2.encoder.layers.0.blocks.0.attention.self.logit_scale",
    "swinv2.encoder.layers.1.blocks.0.attention.self.continuous_position_bias_mlp.2.weight",
)


def main():
    torch.set_num_threads(1)
    for seed, (name, shape) in enumerate(GOLDENS.items()):
        torch.manual_seed(seed)
        config = Swinv2Config(embed_dim=12, window_size=4, num_labels=6, attn_implementation="eager", **shape)
        model = Swinv2ForImageClassification(config).eval()
        for key, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, mean=float("norm" in key and key.endswith("weight")), std=0.25)
            if key.endswith("logit_scale"):
                torch.nn.init.uniform_(parameter, 1.5, 3.5)
        model.get_parameter(GRADIENTS[0]).data[-1] = math.log(100.0) + 0.3  # beyond the clamp
        folder = Path(sys.argv[1]) / name
        model.save_pretrained(folder)
        size = shape["image_size"]
        x, labels = torch.randn(3, 3, size, size), torch.randint(0, 6, (3,))
        out = model(x)
        loss = torch.nn.functional.cross_entropy(out.logits, labels)
        loss.backward()
        hidden = model.swinv2(x).last_hidden_state
        io = {
            "pixel_values": x,
            "labels": labels.int(),
            "logits": out.logits,
            "last_hidden_state": hidden,
            "loss": loss,
        }
        io |= {f"grad.{key}": model.get_parameter(key).grad for key in GRADIENTS}
        save_file({k: v.detach().contiguous() for k, v in io.items()}, folder / "io.safetensors")
        fields = json.loads((folder / "config.json").read_text())
        fields["torch_dtype"] = fields.pop("dtype")
        (folder / "config.legacy.json").write_text(json.dumps(fields, indent=1))


if __name__ == "__main__":
    main()
