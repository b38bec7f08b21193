"""The cost of a compiled program, counted from its text, and `scratch plan`."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec
from scratch_core.cli import main
from scratch_core.parallel import make_mesh
from scratch_core.train.hlo import Program

POINTS = """[scratch.models]
toy = scratch_toy:SPEC
"""
L, B, D = 5, 8, 16


@pytest.fixture(scope="module")
def folder(install):
    return install("scratch_toy", POINTS)


@pytest.fixture
def toy(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))


def program(function, *arguments):
    return Program(jax.jit(function).lower(*arguments).compile().as_text())


@pytest.mark.parametrize(("remat", "products", "kept"), [(False, 3, 2), (True, 4, 1)])
def test_a_loop_counts_as_often_as_it_runs_and_keeps_what_each_turn_keeps(remat, products, kept):
    def turn(x, w):  # keeps x and cos(x w) for the backward pass, or x alone
        return jnp.sin(x @ w), None

    def loss(w, x):
        return (jax.lax.scan(jax.checkpoint(turn, prevent_cse=False) if remat else turn, x, w)[0] ** 2).sum()

    found = program(jax.grad(loss), jnp.ones((L, D, D)), jnp.ones((B, D)))
    assert found.cost().flops == products * L * 2 * B * D * D
    assert found.kept() == (kept * L + 1) * B * D * 4  # and the last x, for the square
    assert found.cost().unknown == 0


def test_a_loop_of_unknown_length_counts_once_and_says_so():
    found = program(lambda n, x: jax.lax.fori_loop(0, n, lambda _, x: x @ x, x), 3, jnp.ones((D, D)))
    assert (found.cost().flops, found.cost().unknown) == (2 * D**3, 1)


@pytest.mark.parametrize("stride", [1, 2])
def test_products_of_a_convolution_with_padding_do_not_count(stride):
    def convolution(image, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(image, kernel, (stride, stride), "SAME", dimension_numbers=numbers)

    image, kernel = jnp.ones((2, 9, 9, 3)), jnp.ones((3, 3, 3, 4))
    products = float(convolution(image, kernel).sum())  # of ones with ones
    assert program(convolution, image, kernel).cost().flops == 2 * products
    both = jax.grad(lambda *given: (convolution(*given) ** 2).sum(), argnums=(0, 1))
    assert program(both, image, kernel).cost().flops == 3 * 2 * products


def test_collectives_of_a_loop():
    mesh = make_mesh(fsdp=4)

    def each(x):
        turn = lambda x, _: (jax.lax.psum(x, "fsdp") / 4, jax.lax.all_gather(x, "fsdp"))  # noqa: E731
        return jax.lax.scan(turn, x, None, length=L)

    spec = PartitionSpec("fsdp")
    run = jax.shard_map(each, mesh=mesh, in_specs=spec, out_specs=(spec, spec), check_vma=False)
    found = program(run, jnp.ones((4, D))).cost().collectives
    assert found == {"all-gather": (L, L * 4 * D * 4), "all-reduce": (L, L * D * 4)}


def test_the_command_says_what_a_step_needs_and_what_would_make_it_fit(toy, capsys):
    arguments = ["plan", "toy", "--mesh", "fsdp=2", "--batch-size", "4", "--sequence-length", "16"]
    assert main([*arguments, "--memory", "1GB"]) == 0
    text = capsys.readouterr().out
    assert "fsdp 2: 2 devices, 2 of the examples on each" in text
    assert "fits    " in text
    assert main([*arguments, "--memory", "1KB"]) == 0
    text = capsys.readouterr().out
    assert "does not fit: " in text
    changes = ["--remat", "--remat --accumulate 2", "--remat --batch-size 2", "--remat --mesh fsdp=4"]
    assert [line.split("  ")[1] for line in text.splitlines() if line.startswith("  --")] == changes
    assert text.splitlines()[-1].startswith("none of them is enough")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--mesh", "fsdp"), "is not an axis with its size"),
        (("--mesh", "fsdp=3"), "data * fsdp * expert = 3 times --accumulate 1 must divide --batch-size 16"),
        (("--mesh", "fsdp=4", "--accumulate", "8"), "= 4 times --accumulate 8 must divide --batch-size 16"),
        (("--mesh", "tensor=4096"), "plan in a new process"),
        (("--preset", "huge"), "unknown preset 'huge' of toy; known presets: tiny, narrow"),
        (("--sequence-length", "301"), "--sequence-length 301 is more than the 300 positions of --preset tiny"),
        (("--memory", "much"), "--memory much is not a size"),
        (("--task", "masked_lm"), "choose one of: causal_lm"),
        (("--optimizer", "adamax"), "no installed package provides the optimizer 'adamax'"),
    ],
)
def test_wrong_arguments_are_one_line(toy, fails, arguments, message):
    assert message in fails("plan", "toy", *arguments)
