# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "pillow", "safetensors", "timm", "transformers"]
# ///
"""Record the pixels that transformers' and timm's own pipelines make from china.jpg.

uv run tests/photos/make_photos.py
"""

import json
from importlib import import_module
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from timm.data import create_transform, resolve_data_config

HERE = Path(__file__).parent
HALF, MEAN, STD = [0.5] * 3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
RESCALE = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}
NORMAL = {**RESCALE, "do_normalize": True, "image_mean": MEAN, "image_std": STD}


def square(rows, columns):
    return {"height": rows, "width": columns}


CASES = {
    "vit": ("ViT", {**NORMAL, "image_mean": HALF, "image_std": HALF, "size": square(48, 64), "resample": 2}),
    "convnext": ("ConvNext", {**NORMAL, "size": {"shortest_edge": 50}, "crop_pct": 0.875, "resample": 3}),
    "bit": (
        "Bit",
        {**NORMAL, "size": {"shortest_edge": 61}, "do_center_crop": True, "crop_size": square(40, 75), "resample": 3},
    ),
    "padded": (
        "Bit",
        {**RESCALE, "do_normalize": False, "size": {"shortest_edge": 31}, "do_center_crop": True}
        | {"crop_size": square(40, 40), "resample": 2},
    ),
    "deit": (
        "DeiT",
        {**NORMAL, "size": square(52, 52), "do_center_crop": True, "crop_size": square(45, 45), "resample": 1},
    ),
    "vit-defaults": ("ViT", {"size": square(20, 30)}),
    "deit-defaults": ("DeiT", {"size": square(30, 40), "crop_size": square(25, 25)}),
    "bit-defaults": ("Bit", {"size": {"shortest_edge": 30}, "crop_size": square(25, 25)}),
    "clip-defaults": ("CLIP", {"size": {"shortest_edge": 30}, "crop_size": square(25, 25)}),
    "convnext-defaults": ("ConvNext", {"size": {"shortest_edge": 30}}),
}
TIMM = {  # floor(45 / 0.93) is 48, so the margin of 3 is odd
    "timm-defaults": {"input_size": [3, 40, 40]},
    "timm-odd": {"input_size": [3, 45, 45], "crop_pct": 0.93, "interpolation": "bilinear", "mean": HALF, "std": HALF},
    "timm-squash": {"input_size": [3, 45, 45], "crop_pct": 0.93, "crop_mode": "squash", "interpolation": "bicubic"},
}

if __name__ == "__main__":
    photo, pixels, fields = Image.open(HERE / "china.jpg").convert("RGB"), {}, {}
    for name, (kind, arguments) in CASES.items():
        module = import_module(f"transformers.models.{kind.lower()}.image_processing_pil_{kind.lower()}")
        processor = getattr(module, f"{kind}ImageProcessorPil")(**arguments)
        values = processor(images=photo, return_tensors="np")["pixel_values"][0]
        pixels[name] = np.ascontiguousarray(values.transpose(1, 2, 0).astype(np.float32))
        fields[name] = {"image_processor_type": f"{kind}ImageProcessor", **arguments}
    for name, about in TIMM.items():
        values = create_transform(**resolve_data_config(pretrained_cfg=about))(photo).numpy()
        pixels[name], fields[name] = np.ascontiguousarray(values.transpose(1, 2, 0)), {"pretrained_cfg": about}
    save_file(pixels, HERE / "expected.safetensors")
    (HERE / "processors.json").write_text(json.dumps(fields, indent=1) + "\n")
