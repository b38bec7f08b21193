# /// script
# requires-python = ">=3.11"
# dependencies = ["torch", "transformers>=5", "safetensors"]
# ///
"""Make a golden folder like the one beside this file, with the reference library. The tests never run it.

    uv run packages/scratch-vit/tests/make_golden.py FOLDER

It is a tiny random model with its inputs and the outputs of transformers: eval mode, eager attention, one thread;
``sizes.safetensors`` holds images of other sizes, with interpolated positions, for the model in ``FOLDER/vit``.
A model that exists already is kept, so that ``sizes.safetensors`` can be added to it. Another version of torch draws
other weights, so that the files hold other numbers; the tests must pass with those too.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import ViTConfig, ViTForImageClassification

SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
SIZES = {"larger": (40, 40), "smaller": (16, 16), "oblong": (32, 64), "ragged": (27, 45)}


def write(folder, io, name="io.safetensors"):
    save_file({k: v.detach().contiguous() for k, v in io.items()}, folder / name)


def main():
    folder = Path(sys.argv[1]) / "vit"
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if not (folder / "model.safetensors").exists():
        config = ViTConfig(image_size=24, patch_size=8, num_labels=5, attn_implementation="eager", **SHAPE)
        model = ViTForImageClassification(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float("norm" in str(parameter.shape)), std=0.3)
        model.save_pretrained(folder)
        x, labels = torch.randn(3, 3, 24, 24), torch.tensor([1, 4, 0])
        out = model(x, output_hidden_states=True)
        loss = torch.nn.functional.cross_entropy(out.logits, labels)
        loss.backward()
        hidden = model.vit.layernorm(out.hidden_states[-1])
        io = {
            "pixel_values": x,
            "labels": labels.int(),
            "logits": out.logits,
            "last_hidden_state": hidden,
            "loss": loss,
        }
        io["grad.vit.embeddings.position_embeddings"] = model.vit.embeddings.position_embeddings.grad
        write(folder, io)
        fields = json.loads((folder / "config.json").read_text())
        fields["torch_dtype"] = fields.pop("dtype")
        (folder / "config.legacy.json").write_text(json.dumps(fields, indent=1))
    model = ViTForImageClassification.from_pretrained(folder, attn_implementation="eager").eval()
    io = {}
    for name, size in SIZES.items():
        io[f"pixel_values.{name}"] = x = torch.randn(2, 3, *size)
        io[f"logits.{name}"] = model(x, interpolate_pos_encoding=True).logits
    write(folder, io, "sizes.safetensors")


if __name__ == "__main__":
    main()
