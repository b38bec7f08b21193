"""The plan of a training step of Llama equals the step that the trainer runs, on 8 simulated devices."""

import functools

import jax
import numpy as np
import pytest
from flax import nnx
from scratch_core.layers import scan_layers
from scratch_core.parallel import make_mesh
from scratch_core.tasks import find_task
from scratch_core.train import Trainer, adamw, find_optimizer
from scratch_core.train.plan import plan_step, read_plan
from scratch_llama import Llama, LlamaConfig

ROWS, LENGTH, WIDTH, VOCAB = 8, 16, 32, 96
KERNELS = 2 * WIDTH * 32 + 2 * WIDTH * 16 + 3 * WIDTH * 64  # per layer: query and out, key and value, feed-forward
TASK = find_task("causal_lm")
ADAMW = adamw(1e-3)


def build(layers, scan):
    sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "d_ff": 64}
    model = Llama(LlamaConfig(VOCAB, WIDTH, layers, **sizes), rngs=nnx.Rngs(0))
    if scan:
        model.remat_layers = True
        scan_layers(model)
    return model


@functools.cache
def plan(layers=2, scan=False, accumulate=1):
    mesh = make_mesh(fsdp=4, tensor=2)
    batch = TASK.shapes(None, ROWS, LENGTH)
    return plan_step(lambda: build(layers, scan), ADAMW, batch, mesh, handling=TASK, accumulate=accumulate)


@pytest.mark.parametrize(("scan", "accumulate"), [(False, 1), (True, 2)], ids=["loop", "scan, remat, two parts"])
def test_the_plan_equals_the_step_that_the_trainer_runs(scan, accumulate):
    mesh, planned = make_mesh(fsdp=4, tensor=2), plan(2, scan, accumulate)
    trainer = Trainer(build(2, scan), ADAMW, handling=TASK, mesh=mesh, accumulate=accumulate)
    batch = TASK.place({"input_ids": np.zeros((ROWS, LENGTH), np.int32)}, mesh)
    compiled = trainer._step.lower(trainer.state, batch).compile()
    assert planned == read_plan(compiled, trainer.state)
    memory = compiled.memory_analysis()
    assert planned.temporary == memory.temp_size_in_bytes
    assert planned.total <= memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert 0 < planned.activations < planned.temporary
    for device in jax.devices()[:8]:
        for held, name in ((planned.parameters, "parameters"), (planned.optimizer, "optimizer")):
            shards = [shard for x in jax.tree.leaves(trainer.state[name]) for shard in x.addressable_shards]
            assert held == sum(shard.data.nbytes for shard in shards if shard.device == device)


def test_the_average_of_the_parameters_is_sharded_like_the_parameters():
    mesh, optimizer = make_mesh(fsdp=4, tensor=2), find_optimizer("adamw", average=0.9)
    state = Trainer(build(1, False), optimizer.build(1e-3, weight_decay=0, decayed=()), mesh=mesh).state
    assert [x.sharding for x in jax.tree.leaves(state["optimizer"].average)] == [
        x.sharding for x in jax.tree.leaves(state["parameters"])
    ]


def test_the_plan_counts_6_flops_per_weight_and_token_plus_those_of_attention():
    tokens = ROWS * LENGTH
    products = 6 * (2 * KERNELS + WIDTH * VOCAB) * tokens  # 2 forward, 4 backward; the last term is the head
    attention = 12 * 2 * tokens * LENGTH * WIDTH  # scores and weighted values, masked or not, over 2 layers
    assert 8 * plan().flops == products + attention
    # Rematerialised layers compute all but their last product again.
    again = 2 * 2 * (KERNELS - 64 * WIDTH) * tokens + attention // 3
    assert 8 * plan(2, True, 2).flops == products + attention + again


def test_rematerialised_layers_keep_their_input_and_nothing_else():
    deep, shallow = plan(4, True, 2), plan(2, True, 2)
    rows = ROWS // 4 // 2  # rows of a micro-batch on one device
    assert deep.activations - shallow.activations == 2 * rows * LENGTH * WIDTH * 4
    assert plan().activations > 5 * shallow.activations


def test_collectives_of_a_step():
    """After the embedding and after each layer, activations are split by batch only (`parallel.constrain`).

    Without this constraint, XLA made 49 all-gathers, 41 all-reduces and 21 all-to-alls: 521 KB for each device instead
    of 168.
    """
    counts = {kind: count for kind, (count, _) in plan().collectives.items()}
    # Over fsdp, once for both passes: the 7 kernels of each of the 2 layers, and the head. Three more for the
    # embedding, whose columns are split over fsdp and whose rows over tensor: its columns, the tokens of all devices,
    # and the rows found for these tokens.
    assert counts.pop("all-gather") == 7 * 2 + 1 + 3
    # For each layer: over tensor, the outputs of attention and feed-forward, and in the backward pass the gradients of
    # their inputs; over fsdp, the gradients of the kernels, some of them combined. Once: the maximum and the sum of the
    # softmax over a split vocabulary, the gradients of the head's input and of the embedding, three for the loss and
    # the norm with the remaining gradients, three for the norm in the optimizer.
    assert counts.pop("all-reduce") == 8 * 2 + 10
    # The embedded tokens change from split columns to split rows, their gradient changes back, and the tokens move.
    # Compilers differ in which kind of collective they use for this.
    assert sum(counts.values()) == 3
    assert sum(size for _, size in plan().collectives.values()) < 180_000
