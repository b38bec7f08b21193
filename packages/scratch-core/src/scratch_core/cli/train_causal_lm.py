"""`scratch train llama` and every other causal language model: text in, a model that writes out."""

import dataclasses
import math
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import tyro
from flax import nnx

import scratch_core
from scratch_core import weights
from scratch_core.cli import runs
from scratch_core.cli.writing import stream_text
from scratch_core.data import (
    ByteTokenizer,
    CountModels,
    TextEvaluation,
    Tokenizer,
    TokenSplit,
    Windows,
    load_text,
    load_tokenizer,
    training_batches,
)
from scratch_core.errors import ConfigError
from scratch_core.losses import causal_lm_loss
from scratch_core.registry import ModelSpec
from scratch_core.train import Trainer, adamw, warmup_cosine

SAMPLE = {"temperature": 0.8}
SAMPLE_TOKENS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(runs.RunOptions):
    """Train a causal language model on text."""

    paths = ("data", "tokenizer", "start")

    data: Annotated[str | None, tyro.conf.arg(metavar="FILE|FOLDER")] = None
    """A text file, or a folder of them. The default is the source of Python's own standard library."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A folder with a tokenizer.json. The default is bytes, with --start the checkpoint's own."""
    steps: int = 600
    """How many updates in all."""
    batch_size: int = 16
    """Examples per update."""
    learning_rate: float = 3e-3
    """Its peak: after the warm-up, before the cosine decay."""
    sequence_length: int = 128
    """Tokens per example."""
    evaluation_tokens: int = 200_000
    """How many of the held-out tokens the final figures are taken from, at most."""

    def check(self) -> None:
        """Raise ConfigError for a number that makes no sense."""
        super().check()
        for name in ("sequence_length", "evaluation_tokens"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{runs.flag(name)} {getattr(self, name)} must be at least 2")


def run(spec: ModelSpec, options: Options) -> int:
    """Train, evaluate, show a sample, save; return 0, or 128 + the signal that ended it early."""
    options.check()
    model, tokenizer = build(spec, options)
    tokens = load_text(options.data, tokenizer)
    windows = Windows(tokens.train, options.sequence_length)
    held_out = tokens.validation[: options.evaluation_tokens]
    evaluation = TextEvaluation(held_out, options.batch_size, options.sequence_length)
    prompt = sample_prompt(options, tokens, tokenizer)

    folder = runs.open_run(
        spec, options, tokens.description, tokens.fingerprint(), lambda folder: save(model, tokenizer, folder)
    )
    go_on = runs.command("train", spec.name, "--resume", str(folder))
    with saying(f"to go on: {go_on}"):
        print(f"data    {tokens.description}", flush=True)
        count = sum(x.size for x in nnx.to_flat_state(nnx.state(model, nnx.Param)).leaves)
        origin = options.preset if options.start is None else f"from {options.start}"
        print(f"model   {spec.name} {origin}, {count:,} parameters", flush=True)
        trainer = build_trainer(model, options, folder)
        try:
            for line in trainer.restore():
                print(f"warning: {line}", flush=True)
            if trainer.step:
                print(f"resumed at step {trainer.step} of {options.steps}", flush=True)
            else:
                model.eval()
                show_sample("before", model, tokenizer, prompt, options.seed)
            print(f"run     {folder}: {options.steps} steps of {options.batch_size} x {options.sequence_length} tokens")
            batches = training_batches(windows, options.batch_size, seed=options.seed)
            outcome = trainer.fit(batches, options.steps)
            save(model, tokenizer, folder)
            if outcome.interrupted:
                print(
                    f"stopped by {outcome.interrupted} after step {outcome.step} of {options.steps}, saved in {folder}"
                )
                print(f"to go on: {go_on}")
                return 128 + signal.Signals[outcome.interrupted].value
            loss = trainer.evaluate(evaluation)["loss"]
        finally:
            trainer.close()
        show_bits_per_byte(loss, tokens, held_out, tokenizer)
        show_sample("after", model, tokenizer, prompt, options.seed)
        print(f"saved in {folder}")
        print(f"next: {runs.command('generate', str(folder), '--prompt', prompt)}")
    return 0


def build(spec: ModelSpec, options: Options) -> tuple[Any, Tokenizer]:
    """Return the model, a new one with the tokenizer's special tokens, and the tokenizer.

    Raises ConfigError if the tokenizer or the length of the examples does not fit the model.
    """
    folder = None if options.checkpoint is None else weights.resolve(options.checkpoint)
    source = options.tokenizer or folder
    tokenizer: Tokenizer = ByteTokenizer() if source is None else load_tokenizer(source)
    if folder is not None:
        model = spec.model().from_pretrained(folder)
        _check_fit(model.config, str(folder), options, tokenizer)
        return model, tokenizer
    config = spec.config(options.preset)
    _check_fit(config, f"--preset {options.preset}", options, tokenizer)
    names = {field.name for field in dataclasses.fields(config)}
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": tokenizer.pad_id}
    config = dataclasses.replace(config, **{name: token for name, token in special.items() if name in names})
    return spec.model()(config, dtype=jnp.float32, rngs=nnx.Rngs(options.seed)), tokenizer


def _check_fit(config: Any, origin: str, options: Options, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"{origin} has vocab_size={config.vocab_size}, fewer than the tokenizer's {tokenizer.vocab_size} tokens"
        )
    longest = config.max_positions
    if longest is not None and options.sequence_length > longest:
        raise ConfigError(
            f"--sequence-length {options.sequence_length} is more than the {longest} positions of {origin}"
        )


def build_trainer(model: Any, options: Options, folder: Path) -> Trainer:
    """Return the trainer of a run: AdamW, warm-up, cosine decay, clipping."""
    schedule = warmup_cosine(options.learning_rate, options.steps)
    return Trainer(
        model,
        adamw(schedule, decayed=model.decayed),
        causal_lm_loss,
        accumulate=options.accumulate,
        folder=folder,
        save_every=options.save_every,
        learning_rate=schedule,
    )


def save(model: Any, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model and its tokenizer into the run's folder, in the Hugging Face layout."""
    tokenizer.save(folder)
    scratch_core.save(model, folder)


def sample_prompt(options: Options, tokens: TokenSplit, tokenizer: Tokenizer) -> str:
    """Return what the samples begin with: "def " for Python, else the first word of the held-out text."""
    if options.data is None:
        return "def "
    words = tokenizer.decode(tokens.validation[:200].tolist()).split()
    return words[0][:20] + " " if words else ""


def show_sample(when: str, model: Any, tokenizer: Tokenizer, prompt: str, seed: int) -> None:
    """Print what the model writes now."""
    limit = model.config.max_positions
    room = SAMPLE_TOKENS if limit is None else min(SAMPLE_TOKENS, limit - len(tokenizer.encode(prompt)) - 1)
    text = "".join(stream_text(model, tokenizer, prompt, room, seed, SAMPLE)) if room > 0 else ""
    print(f"--- sample {when} training ---\n{printable(prompt + text)}\n---", flush=True)


def show_bits_per_byte(loss: float, tokens: TokenSplit, held_out: Any, tokenizer: Tokenizer) -> None:
    """Print the held-out loss beside what counting gives on the same targets."""
    size = tokenizer.count_bytes(held_out[1:])
    counts = CountModels(tokens.train, tokenizer.vocab_size)
    bits = loss * (len(held_out) - 1) / math.log(2)
    print(f"held-out bits per byte ({len(held_out) - 1:,} targets, {size:,} bytes):")
    for name, value in (
        ("this model", bits),
        ("bigram counts", counts.bigram_bits(held_out)),
        ("unigram counts", counts.unigram_bits(held_out)),
    ):
        print(f"  {name:15} {value / size:.3f}", flush=True)


def printable(text: str) -> str:
    """Return ``text`` with control characters (an untrained model writes any byte) shown as U+FFFD."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


@contextmanager
def saying(message: str) -> Generator[None]:
    """Print ``message`` when Ctrl-C ends what is inside."""
    try:
        yield
    except KeyboardInterrupt:
        print(f"\n{message}", flush=True)
        raise
