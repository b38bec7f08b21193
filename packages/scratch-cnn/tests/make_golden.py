# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "safetensors", "torch"]
# ///
"""Record what LeNet-5 computes in PyTorch: run with ``uv run tests/make_golden.py``.

No library ships the paper's LeNet-5, so it is written here a second time, in PyTorch and channels first, only from the
paper: convolutions by torch, subsampling as an average pool times four, table I as a list of grouped inputs.
"""

import json
import runpy
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

TABLE = [
    [0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [0, 4, 5], [0, 1, 5], [0, 1, 2, 3], [1, 2, 3, 4],
    [2, 3, 4, 5], [0, 3, 4, 5], [0, 1, 4, 5], [0, 1, 2, 5], [0, 1, 3, 4], [1, 2, 4, 5], [0, 2, 3, 5], list(range(6)),
]  # fmt: skip


class Modern(nn.Module):
    """The tutorial's network."""

    def __init__(self, classes, channels):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, classes)

    def hidden(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.conv1(x)), 2)
        x = nn.functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return torch.relu(self.fc2(torch.relu(self.fc1(x.flatten(1)))))

    def forward(self, x):
        return self.fc3(self.hidden(x))


class Scale(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(n) * 0.3 + 0.1), nn.Parameter(torch.randn(n) * 0.1)

    def forward(self, x):
        total = 4 * nn.functional.avg_pool2d(x, 2)
        return total * self.weight[:, None, None] + self.bias[:, None, None]


class Sparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(60, 5, 5) * 0.1), nn.Parameter(torch.randn(16) * 0.1)

    def forward(self, x):
        maps, start = [], 0
        for inputs in TABLE:
            kernel = self.weight[start : start + len(inputs)][None]
            maps.append(nn.functional.conv2d(x[:, inputs], kernel))
            start += len(inputs)
        return torch.cat(maps, 1) + self.bias[:, None, None]


class Paper(nn.Module):
    def __init__(self, codes):
        super().__init__()
        self.conv1, self.pool1, self.conv2, self.pool2 = nn.Conv2d(1, 6, 5), Scale(6), Sparse(), Scale(16)
        self.fc1, self.fc2 = nn.Linear(400, 120), nn.Linear(120, 84)
        self.codes = codes

    def hidden(self, x):
        def f(a):
            return 1.7159 * torch.tanh(2 / 3 * a)

        x = f(self.pool1(f(self.conv1(x))))
        x = f(self.pool2(f(self.conv2(x))))
        return f(self.fc2(f(self.fc1(x.flatten(1)))))

    def forward(self, x):
        return -((self.hidden(x)[:, None] - self.codes) ** 2).sum(-1)


def write(name, model, config, x, labels):
    folder = Path(__file__).parent / "golden" / name
    folder.mkdir(parents=True, exist_ok=True)
    logits = model(x)
    loss = nn.functional.cross_entropy(logits, labels)
    loss.backward()
    tensors = {
        "pixel_values": x, "labels": labels.int(), "logits": logits, "last_hidden_state": model.hidden(x), "loss": loss,
        **{f"grad.{key}": p.grad for key, p in model.named_parameters()},
    }  # fmt: skip
    save_file({k: v.detach().contiguous() for k, v in tensors.items()}, folder / "io.safetensors")
    save_file({k: v.detach().contiguous() for k, v in model.named_parameters()}, folder / "model.safetensors")
    fields = {"architectures": ["LeNet5"], "model_type": "lenet5", **config}
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")


def main():
    # codes.py is the only file of the package that is read: its pictures are data, not a computation to check.
    codes = runpy.run_path(str(Path(__file__).parents[1] / "src/scratch_cnn/codes.py"))["digit_codes"]()
    torch.manual_seed(0)
    x, labels = torch.rand(3, 1, 32, 32) * 1.275 - 0.1, torch.tensor([3, 0, 9])
    names = {"id2label": {str(i): str(i) for i in range(10)}}
    paper = {"activation": "tanh", "pooling": "subsampling", "connection_table": True, "output": "rbf"}
    write("paper", Paper(torch.from_numpy(codes)), {**paper, **names}, x, labels)
    write("modern", Modern(10, 1), names, x, labels)
    names = {"id2label": {str(i): f"class {i}" for i in range(7)}, "num_channels": 3}
    write("colour", Modern(7, 3), names, torch.rand(2, 3, 32, 32), torch.tensor([6, 2]))


if __name__ == "__main__":
    main()
