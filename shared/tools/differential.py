"""Compare a model package with transformers on random configurations: equal, refused, or DIFFERENT.

    uv run --all-packages python shared/tools/differential.py --reference-python PYTHON --family llama

PYTHON is an interpreter that has torch and transformers; it builds the models, in one process of its own, from the
configurations that ``shared/tools/families/FAMILY.py`` draws. This process loads each checkpoint twice: with the
config.json as it was drawn, whose outputs are compared at DESIGN.md's tolerances, and with the one that transformers
saved, which must mean the same. A configuration that a package refuses with an error of its own is not a difference.

The exit code is 0 if nothing differs, 1 if something does, 2 if the comparison cannot be run. ``--keep FOLDER`` keeps
the checkpoints, to look into one that differs.
"""

import argparse
import dataclasses
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scratch_core
from scratch_core.errors import ScratchError
from scratch_core.registry import find_class
from scratch_core.testing import LOGITS, LOSS, assert_close, jitted, read_io

TOOLS = Path(__file__).resolve().parent
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


class CannotRunError(Exception):
    """The comparison cannot be run: a wrong argument, or no reference."""


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome for one configuration: "equal", "refused", "not built" (by the reference) or "DIFFERENT", and why."""

    status: str
    message: str = ""


def families() -> list[str]:
    """Return the names of the families, one for each file."""
    return sorted(path.stem for path in (TOOLS / "families").glob("[!_]*.py"))


def draw(family: Any, count: int, seed: int) -> list[dict[str, Any]]:
    """Return the fields of ``count`` config.json files, the same ones for the same seed."""
    rng = np.random.default_rng(seed)
    drawn = [{"architectures": [family.ARCHITECTURE], **family.random_config(rng)} for _ in range(count)]
    return json.loads(json.dumps(drawn, default=lambda number: number.item()))


def compare_causal_lm(model: Any, io: dict[str, np.ndarray], atol: float) -> None:
    """Compare logits at real tokens, the loss, and greedy tokens without padding and with padding on the left."""
    real = io["attention_mask"] == 1
    logits = jitted(model)(io["input_ids"], io["attention_mask"])
    assert_close(np.asarray(logits)[real], io["logits"][real], atol, "logits")
    batch = {name: io[name] for name in ("input_ids", "attention_mask", "labels")}
    total, weight = jitted(model, "loss")(batch)
    assert_close(total / weight, io["loss"], LOSS, "loss")
    new = io["tokens"].shape[1] - io["prompt"].shape[1]
    for what, mask in (("tokens", None), ("tokens_leftpad", io["padding"])):
        tokens = scratch_core.generate(model, io["prompt"], mask, max_new_tokens=new)
        if not np.array_equal(tokens, io[what]):
            raise AssertionError(f"{what}: {tokens.tolist()}, expected {io[what].tolist()}")


def compare_image_classification(model: Any, io: dict[str, np.ndarray], atol: float) -> None:
    """Compare the logits."""
    assert_close(jitted(model)(io["pixel_values"].transpose(0, 2, 3, 1)), io["logits"], atol, "logits")


def compare_masked_lm(model: Any, io: dict[str, np.ndarray], atol: float) -> None:
    """Compare logits at real tokens, and the loss."""
    real = io["attention_mask"] == 1
    logits = jitted(model)(io["input_ids"], io["attention_mask"])
    assert_close(np.asarray(logits)[real], io["logits"][real], atol, "logits")
    total, weight = jitted(model, "loss")({name: io[name] for name in ("input_ids", "attention_mask", "labels")})
    assert_close(total / weight, io["loss"], LOSS, "loss")


def compare_seq2seq(model: Any, io: dict[str, np.ndarray], atol: float) -> None:
    """Compare logits, the loss, and greedy tokens of a source with padding on the right."""
    inputs = model.decoder_inputs(io["labels"])
    assert_close(jitted(model)(io["input_ids"], inputs, io["attention_mask"]), io["logits"], atol, "logits")
    total, weight = jitted(model, "loss")({name: io[name] for name in ("input_ids", "attention_mask", "labels")})
    assert_close(total / weight, io["loss"], LOSS, "loss")
    new = io["tokens"].shape[1] - 1
    tokens = scratch_core.generate(model, io["input_ids"], io["attention_mask"], max_new_tokens=new)
    if not np.array_equal(tokens, io["tokens"]):
        raise AssertionError(f"tokens: {tokens.tolist()}, expected {io['tokens'].tolist()}")


COMPARISONS: dict[str, Callable[[Any, dict[str, np.ndarray], float], None]] = {
    "causal_lm": compare_causal_lm,
    "image_classification": compare_image_classification,
    "masked_lm": compare_masked_lm,
    "seq2seq": compare_seq2seq,
}


def check(folder: Path, atol: float) -> Result:
    """Return how our model of one configuration compares with the outputs of the reference in ``folder``."""
    refused = folder / "refused.txt"
    if refused.exists():
        return Result("not built", refused.read_text(encoding="utf-8"))
    try:
        model = scratch_core.load(folder / "given")
    except ScratchError as error:
        return Result("refused", " ".join(str(error).split()))
    except Exception as error:  # any other error is a fault of the package
        return Result("DIFFERENT", f"loading raises {type(error).__name__}: {error}")
    try:
        COMPARISONS[model.task](model, read_io(folder), atol)
        _check_configs(model, folder)
    except AssertionError as error:
        return Result("DIFFERENT", str(error))
    except Exception as error:
        return Result("DIFFERENT", f"computing raises {type(error).__name__}: {error}")
    return Result("equal")


def _check_configs(model: Any, folder: Path) -> None:
    """Raise AssertionError unless special tokens are the reference's and its own config.json means the same."""
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    for name in TOKENS:
        if hasattr(model.config, name):
            ours, theirs = getattr(model.config, name), facts[name]
            if ours != (tuple(theirs) if isinstance(theirs, list) else theirs):
                raise AssertionError(f"{name}: {ours}, expected {theirs}")
    saved = scratch_core.load(folder / "saved").config
    for name, value in vars(model.config).items():
        if getattr(saved, name) != value:
            raise AssertionError(f"{name}: {value}, but {getattr(saved, name)} from transformers' own config.json")


def run_reference(python: Path, folder: Path, request: dict[str, Any]) -> None:
    """Let the reference build every model of the request. Raises CannotRunError with the last line of its error."""
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    command = [str(python), str(TOOLS / "reference/make_models.py"), str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise CannotRunError(f"--reference-python {python} cannot be run: {error.strerror}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CannotRunError(f"--reference-python {python} failed: {last}. It needs torch, transformers, safetensors")


def compare(arguments: argparse.Namespace, folder: Path) -> int:
    """Compare all configurations in ``folder``, print a line for each and a summary, and return the exit code."""
    family = importlib.import_module(f"families.{arguments.family}")
    task = find_class({"architectures": [family.ARCHITECTURE]}).task
    if task not in COMPARISONS:
        raise CannotRunError(
            f"task {task!r} is not compared yet: add it to COMPARISONS, and to reference/make_models.py"
        )
    drawn = draw(family, arguments.count, arguments.seed)
    for number, fields in enumerate(drawn):
        (folder / f"{number}/given").mkdir(parents=True)
        (folder / f"{number}/given/config.json").write_text(json.dumps(fields, indent=1), encoding="utf-8")
    request = {"architecture": family.ARCHITECTURE, "task": task, "count": len(drawn), "seed": arguments.seed}
    run_reference(arguments.reference_python, folder, request)
    counts: Counter[str] = Counter()
    for number, fields in enumerate(drawn):
        result = check(folder / str(number), getattr(family, "LOGITS", LOGITS))
        counts[result.status] += 1
        print(f"{number:3} {result.status:9} {result.message}".rstrip(), flush=True)
        if result.status == "DIFFERENT":
            print(f"    {json.dumps(fields)}", flush=True)
        jax.clear_caches()  # no two configurations share a compiled function
    print(
        f"{arguments.family}, seed {arguments.seed}: {counts['equal']} equal, {counts['refused']} refused, "
        f"{counts['not built']} not built by the reference, {counts['DIFFERENT']} DIFFERENT"
    )
    return 1 if counts["DIFFERENT"] else 0


def parse(given: list[str] | None) -> argparse.Namespace:
    """Return the checked arguments. Raises CannotRunError."""
    parser = argparse.ArgumentParser(description="Compare a model package with transformers on random configurations.")
    parser.error = _raise  # ty: ignore[invalid-assignment]
    parser.add_argument("--reference-python", type=Path, required=True, help="a Python with torch and transformers")
    parser.add_argument("--family", required=True, help=f"one of: {', '.join(families())}")
    parser.add_argument("--count", type=int, default=40, help="number of configurations")
    parser.add_argument("--seed", type=int, default=0, help="another seed draws other configurations")
    parser.add_argument("--keep", type=Path, help="a new folder for the checkpoints, kept afterwards")
    arguments = parser.parse_args(given)
    if arguments.family not in families():
        raise CannotRunError(f"--family {arguments.family} is not one of: {', '.join(families())}")
    if arguments.count < 1:
        raise CannotRunError(f"--count {arguments.count} must be at least 1")
    if arguments.seed < 0:
        raise CannotRunError(f"--seed {arguments.seed} must be at least 0")
    if shutil.which(arguments.reference_python) is None:
        raise CannotRunError(
            f"--reference-python {arguments.reference_python} is not a program: name a Python interpreter"
        )
    if arguments.keep is not None and arguments.keep.exists():
        raise CannotRunError(f"--keep {arguments.keep} exists: name a new folder")
    return arguments


def _raise(message: str) -> None:
    raise CannotRunError(message)


def main(given: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    try:
        arguments = parse(given)
        if arguments.keep is not None:
            return compare(arguments, arguments.keep.absolute())
        with tempfile.TemporaryDirectory() as folder:
            return compare(arguments, Path(folder))
    except (CannotRunError, ScratchError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
