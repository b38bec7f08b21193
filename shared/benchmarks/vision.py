"""ResNet-50, ViT-B/16 and Swin V2-T, batch 8, float32: ours beside transformers on PyTorch, interleaved in one run.

    uv run python shared/benchmarks/vision.py --reference-python PYTHON [--models resnet vit swin]

PYTHON is an interpreter that has torch, transformers and safetensors (a CPU build is enough). Each model does a
forward pass and a training step (AdamW) on images of the size it was published for. Images per second and the share of
the rate of a large matrix product are those of our side.
"""

import tempfile
from typing import Any

from side_by_side import (
    Reference,
    Task,
    arguments,
    machine,
    parse,
    print_setting,
    print_table,
    serve,
    take_turns,
    timed,
)

BATCH = 8
MODELS = {"resnet": ("resnet50", 224), "vit": ("b16", 224), "swin": ("t_w8", 256)}  # preset, image size
TASKS = {"forward": ("forward", BATCH), "training step": ("train", BATCH)}


def pixels(rows: int, size: int) -> Any:
    """Return images [rows, size, size, 3], the same on both sides."""
    import numpy as np

    return np.random.default_rng(0).normal(size=(rows, size, size, 3)).astype(np.float32)


def serve_transformers(folder: str) -> None:
    """Serve the tasks with the transformers model of a folder."""
    import os

    import torch
    import transformers

    torch.set_num_threads(os.cpu_count() or 1)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    size = MODELS["swin" if "swin" in model.config.model_type else model.config.model_type][1]

    def images(rows: int) -> torch.Tensor:
        return torch.tensor(pixels(rows, size)).permute(0, 3, 1, 2).contiguous()

    def forward(rows: int) -> None:
        with torch.inference_mode():
            model(images(rows))

    def train(rows: int) -> None:
        model.train()
        optimizer.zero_grad()
        model(images(rows), labels=torch.arange(rows)).loss.backward()
        optimizer.step()
        model.eval()

    with torch.inference_mode():
        logits = model(images(2)).logits[:, :8].tolist()
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    serve({"logits": logits, "versions": versions}, {"forward": forward, "train": train})


class Ours:
    """The same tasks with our model of a folder."""

    def __init__(self, folder: str, size: int):
        import jax
        import optax
        import scratch_core
        from flax import nnx
        from scratch_core.losses import image_classification_loss
        from scratch_core.train import Trainer

        self.size = size
        self.trainer = Trainer(scratch_core.load(folder), optax.adamw(0.0), image_classification_loss)
        graphdef, state = nnx.split(scratch_core.load(folder))
        forward = jax.jit(lambda state, images: nnx.merge(graphdef, state)(images))
        self.forward = lambda images: jax.block_until_ready(forward(state, images))
        # XLA's count for the compiled forward pass; a training step is about three forward passes.
        cost = forward.lower(state, pixels(BATCH, size)).compile().cost_analysis()
        self.flops = {"forward": cost["flops"], "training step": 3 * cost["flops"]}

    def difference(self, hello: dict[str, Any]) -> float:
        """Return the largest difference between our logits and the reference's."""
        import numpy as np

        return float(np.abs(np.asarray(self.forward(pixels(2, self.size)))[:, :8] - np.array(hello["logits"])).max())

    def __call__(self, task: Task) -> float:
        """Return the seconds of one task, with the making of its images, as on the other side."""
        import jax
        import numpy as np

        name, rows = task
        if name == "forward":
            return timed(lambda: self.forward(pixels(rows, self.size)))
        labels = np.arange(rows, dtype=np.int32)
        return timed(
            lambda: jax.block_until_ready(
                self.trainer.train_step({"images": pixels(rows, self.size), "labels": labels})
            )
        )


def main() -> None:
    """Run both sides for each model and print a table for each."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS))
    options = parse(parser, serve_transformers)

    from flax import nnx
    from scratch_core.registry import find
    from scratch_core.train import keep_memory

    keep_memory()
    _, rate = machine()
    print(f"matrix product {rate:.0f} GFLOP/s")
    for name in options.models:
        preset, size = MODELS[name]
        spec = find(name)
        with tempfile.TemporaryDirectory() as folder:
            spec.model()(spec.config(preset), rngs=nnx.Rngs(0)).save_pretrained(folder)
            with Reference(options.reference_python, __file__, folder) as reference:
                ours = Ours(folder, size)
                print(f"\n{name} {preset}, {BATCH} images of {size} x {size}")
                print_setting(reference.hello, ours.difference(reference.hello))
                best = take_turns(TASKS, ours, reference, options.rounds)
        print_table(
            best,
            {
                task: f"{BATCH / seconds:.1f} images/s, {ours.flops[task] / seconds / 1e9 / rate:.0%} of the rate"
                for task, (seconds, _) in best.items()
            },
        )


if __name__ == "__main__":
    main()
