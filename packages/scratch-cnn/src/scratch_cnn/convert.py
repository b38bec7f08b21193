"""LeNet-5's key table: the names of PyTorch's own LeNet tutorial (conv1, conv2, fc1, fc2, fc3) beside the paper's.

In the tutorial, fc1 is a linear layer on the flattened maps of S4, channels first. Here it is C5, a 5 x 5 convolution,
which covers the whole maps.
"""

from scratch_core.weights import Copy, Rule, Transform, conv, same, transpose

from scratch_cnn.config import LeNet5Config

flattened = Transform((None, (16, 5, 5)), (2, 3, 1, 0))  # [120, 16 * 5 * 5] -> [5, 5, 16, 120]


def rules(config: LeNet5Config) -> list[Rule | Copy]:
    """Return theirs | ours | transform. pool1 and pool2 are the trainable subsampling of the paper."""
    return [
        Rule("conv1.weight", "c1.kernel", conv),
        Rule("conv1.bias",   "c1.bias"),
        Rule("pool1.weight", "s2.coefficient"),
        Rule("pool1.bias",   "s2.bias"),
        Rule("conv2.weight", "c3.kernel", same if config.connection_table else conv),
        Rule("conv2.bias",   "c3.bias"),
        Rule("pool2.weight", "s4.coefficient"),
        Rule("pool2.bias",   "s4.bias"),
        Rule("fc1.weight",   "c5.kernel", flattened),
        Rule("fc1.bias",     "c5.bias"),
        Rule("fc2.weight",   "f6.kernel", transpose),
        Rule("fc2.bias",     "f6.bias"),
        Rule("fc3.weight",   "classifier.kernel", transpose),
        Rule("fc3.bias",     "classifier.bias"),
    ]  # fmt: skip
