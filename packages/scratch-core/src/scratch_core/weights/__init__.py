"""Reading and writing checkpoints in the Hugging Face layout, ``config.json`` and ``.safetensors`` files, strictly.

A model's key table is a list of :class:`Rule`: their key, our parameter, and the :class:`Transform` between
them. The same table loads, saves, and renames gradients. Reading is memory-mapped; no pickle is opened.

    key_table.py    rules and transforms, and the names of our parameters
    files.py        finds, checks and opens the weight files of a folder
    loading.py      load: makes a model from files
    saving.py       save, to_hf: makes files from a model
"""

from scratch_core.weights.files import open_folder, resolve, weight_files
from scratch_core.weights.key_table import (
    Copy,
    Rule,
    Transform,
    conv,
    conv1d,
    flatten,
    same,
    split_bias,
    split_in,
    split_out,
    transpose,
)
from scratch_core.weights.loading import load
from scratch_core.weights.saving import save, to_hf

__all__ = [
    "Copy",
    "Rule",
    "Transform",
    "conv",
    "conv1d",
    "flatten",
    "load",
    "open_folder",
    "resolve",
    "same",
    "save",
    "split_bias",
    "split_in",
    "split_out",
    "to_hf",
    "transpose",
    "weight_files",
]
