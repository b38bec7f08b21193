"""Causal language modelling: trains a model that continues text."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from scratch_core import weights
from scratch_core.data.counts import CountModels
from scratch_core.data.pipelines import TextEvaluation, Windows, training_batches
from scratch_core.data.text import TokenSplit, load_text, with_bos
from scratch_core.data.tokenizers import ByteTokenizer, Tokenizer, load_tokenizer
from scratch_core.errors import ConfigError, DataError
from scratch_core.generation import stream
from scratch_core.layers import LoRAParam, scan_layers, unscan_layers
from scratch_core.parallel import born_sharded, process_part
from scratch_core.registry import ModelSpec
from scratch_core.tasks.options import RowOptions, RunOptions, flag
from scratch_core.tasks.task import Job, Task
from scratch_core.train.lora import adapters, add_lora, merge_lora
from scratch_core.train.lora_files import save_lora
from scratch_core.weights.key_table import flatten

SAMPLE = {"temperature": 0.8}
SAMPLE_TOKENS = 200


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextOptions(RowOptions):
    """Train a causal language model on text."""

    paths: ClassVar[tuple[str, ...]] = ("data", "tokenizer", "start")

    data: Annotated[str | None, tyro.conf.arg(metavar="FILE|FOLDER")] = None
    """A text file or a folder of them; rows with a "text" (.jsonl, .csv, .tsv, .parquet, a folder of `save_to_disk`, or
    hf:NAME for a data set of the Hub); or a .npy file of token ids. The default is the source of Python's own standard
    library."""
    one_text: bool = False
    """Read all documents as one long text, so that tokens also attend to earlier documents."""
    tokenizer: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """A folder with a tokenizer.json. The default is bytes; with --start, the checkpoint's own tokenizer."""
    batch_size: int = 16
    """Examples per update."""
    sequence_length: int = 128
    """Tokens per example."""
    evaluation_tokens: int = 200_000
    """Largest number of held-out tokens for the final figures."""
    scan: bool = False
    """Compile one layer and run all layers with it. Deep models compile several times faster."""
    remat: bool = False
    """Keep only the input of each layer for the backward pass and compute the rest again: less memory, more time."""
    lora: Annotated[str | None, tyro.conf.arg(metavar="PATTERNS")] = None
    """With --start: train adapters on these linear layers and leave all other parameters unchanged, such as
    "*.attention.query,*.attention.value". Adapters need about ten times the usual learning rate. The merged model is
    saved in the run's folder, the adapters alone in its subfolder adapter/."""
    lora_rank: int = 8
    """Rank of the adapters."""
    lora_alpha: float = 16.0
    """The adapters' output is multiplied by this number divided by the rank."""

    def check(self) -> None:
        """Raise ConfigError for a number that makes no sense."""
        super().check()
        if self.lora is not None and self.start is None:
            raise ConfigError("--lora needs a checkpoint to --start from: adapters on random weights learn little")
        for name in ("sequence_length", "evaluation_tokens"):
            if getattr(self, name) < 2:
                raise ConfigError(f"{flag(name)} {getattr(self, name)} must be at least 2")


class CausalLMTask(Task):
    """The model predicts each token from the tokens before it."""

    name: ClassVar[str] = "causal_lm"
    unit: ClassVar[str] = "tokens"
    Options: ClassVar[type[RunOptions]] = TextOptions
    # The rate is that of Llama 2's supervised fine-tuning: https://arxiv.org/abs/2307.09288, section 3.1.
    fine_tuning: ClassVar[Mapping[str, Any]] = {"steps": 600, "learning_rate": 2e-5}
    contract: ClassVar[str] = "scratch_core.testing:CausalLMContract"
    instead_of_predict: ClassVar[str] = 'a language model continues a text: `scratch generate FOLDER --prompt "..."`'

    def count(self, batch: Any) -> int:
        """Return the number of tokens, padding included."""
        return batch["input_ids"].size

    def flops_per_unit(self, model: Any) -> float | None:
        """Return 6 FLOPs per weight of a matrix product: 2 forward, 4 backward (Chowdhery et al. 2022, appendix B).

        https://arxiv.org/abs/2204.02311. Attention's products of activations are left out, and frozen weights count
        like trained ones. A tied embedding counts as the head.
        """
        weights = flatten(nnx.state(model, nnx.Param))
        tied = getattr(model.config, "tie_embeddings", False)
        products = (w.size for path, w in weights.items() if path.endswith("kernel") or (tied and "embedding" in path))
        return 6.0 * sum(products)

    def prepare(self, spec: ModelSpec, options: TextOptions) -> "TextJob":
        """Return the job of a run. Raises ConfigError or DataError if model, tokenizer and text do not fit."""
        model, tokenizer = build(spec, options)
        if options.lora is not None:
            patterns = [pattern.strip() for pattern in options.lora.split(",")]
            add_lora(model, *patterns, rank=options.lora_rank, alpha=options.lora_alpha, rngs=nnx.Rngs(options.seed))
        model.remat_layers = options.remat
        if options.scan:
            scan_layers(model)
        tokens = load_text(options.data, tokenizer, reading=options.reading())
        starts, held_out_starts = tokens.train_starts, tokens.validation_starts
        if options.one_text or starts is None or held_out_starts is None:
            starts = held_out_starts = None
        windows = Windows(tokens.train, options.sequence_length, starts)
        held_out = tokens.validation[: options.evaluation_tokens]
        if held_out_starts is not None:
            held_out_starts = held_out_starts[held_out_starts < len(held_out)]
        if not tokenizer.count_bytes(held_out[1:1000]):
            raise DataError(f"{tokens.description}: these hold no text to measure the loss on; give more text")
        part, parts = process_part(options.device_mesh())
        return TextJob(
            model=model,
            batches=training_batches(
                windows, options.batch_size, seed=options.seed, process_index=part, process_count=parts
            ),
            held_out=TextEvaluation(held_out, options.batch_size, options.sequence_length, held_out_starts),
            description=tokens.description,
            fingerprint=tokens.fingerprint(),
            example=windows[0],
            update=f"{options.batch_size} x {options.sequence_length} tokens",
            trainable=nnx.Param if options.lora is None else LoRAParam,
            tokenizer=tokenizer,
            tokens=tokens,
            prompt=sample_prompt(options, tokens, tokenizer),
            seed=options.seed,
        )

    def noise(self, config: Any, batch_size: int) -> dict[str, np.ndarray]:
        """Return random tokens, 32 for each row."""
        rng = np.random.default_rng(0)
        return {"input_ids": rng.integers(0, config.vocab_size, (batch_size, 32)).astype(np.int32)}

    def shapes(self, config: Any, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shape of the tokens. Windows of text are full, so that they have no mask."""
        return {"input_ids": jax.ShapeDtypeStruct((batch_size, length), jnp.int32)}


TASK = CausalLMTask()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextJob(Job):
    """A run on text: prints samples before and after training, and compares the loss with count models."""

    held_out: TextEvaluation
    tokenizer: Tokenizer
    tokens: TokenSplit
    prompt: str
    seed: int

    def save(self, folder: Path) -> None:
        """Write the model and its tokenizer. With adapters, write the merged model, and the adapters alone."""
        self.tokenizer.save(folder)
        model = nnx.clone(self.model)
        unscan_layers(model)
        if self.trainable is not LoRAParam:
            model.save_pretrained(folder)
            return
        merge_lora(model).save_pretrained(folder)
        save_lora(model, folder / "adapter")

    def show_before(self) -> None:
        """Print the number of adapter parameters, and a sample from the model before training."""
        if self.trainable is LoRAParam:
            count = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.model, LoRAParam)))
            print(f"lora    {count:,} parameters in {len(adapters(self.model))} layers", flush=True)
        self.show_sample("before")

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print the held-out loss in bits per byte, and a sample from the trained model."""
        show_bits_per_byte(results["loss"], self.tokens.train, self.held_out, self.tokenizer)
        self.show_sample("after")

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that lets the model write more."""
        return "generate", str(folder), "--prompt", self.prompt

    def show_sample(self, when: str) -> None:
        """Print a sample from the model."""
        limit = self.model.config.max_positions
        length = len(self.tokenizer.encode(self.prompt))
        room = SAMPLE_TOKENS if limit is None else min(SAMPLE_TOKENS, limit - length - 1)
        pieces = stream_text(self.model, self.tokenizer, self.prompt, room, self.seed, SAMPLE) if room > 0 else ()
        print(f"--- sample {when} training ---\n{printable(self.prompt + ''.join(pieces))}\n---", flush=True)


def build(spec: ModelSpec, options: TextOptions) -> tuple[Any, Tokenizer]:
    """Return the model and the tokenizer; a new model gets the tokenizer's special tokens.

    Raises ConfigError if the tokenizer or the length of the examples does not fit the model.
    """
    folder = None if options.checkpoint is None else weights.resolve(options.checkpoint)
    source = options.tokenizer or folder
    tokenizer: Tokenizer = ByteTokenizer() if source is None else load_tokenizer(source)
    model_class = spec.model(TASK.name)
    if folder is not None:
        model = model_class.from_pretrained(folder, mesh=options.device_mesh())
        _check_fit(model.config, str(folder), options, tokenizer)
        return model, tokenizer
    config = spec.config(options.preset)
    _check_fit(config, f"--preset {options.preset}", options, tokenizer)
    config = dataclasses.replace(
        config, bos_token_id=tokenizer.bos_id, eos_token_id=tokenizer.eos_id, pad_token_id=tokenizer.pad_id
    )
    build = lambda: model_class(config, dtype=jnp.float32, rngs=nnx.Rngs(options.seed))  # noqa: E731
    return born_sharded(build, options.device_mesh()), tokenizer


def _check_fit(config: Any, origin: str, options: TextOptions, tokenizer: Tokenizer) -> None:
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"{origin} has vocab_size={config.vocab_size}, fewer than the tokenizer's {tokenizer.vocab_size} tokens"
        )
    longest = config.max_positions
    if longest is not None and options.sequence_length > longest:
        raise ConfigError(
            f"--sequence-length {options.sequence_length} is more than the {longest} positions of {origin}"
        )


def sample_prompt(options: TextOptions, tokens: TokenSplit, tokenizer: Tokenizer) -> str:
    """Return the prompt of the samples: "def " for the default data, else the first word of the held-out text."""
    if options.data is None:
        return "def "
    words = tokenizer.decode(tokens.validation[:200].tolist()).split()
    return words[0][:20] + " " if words else ""


def show_bits_per_byte(loss: float, train: np.ndarray, held_out: TextEvaluation, tokenizer: Tokenizer) -> None:
    """Print the held-out loss beside that of the count models, on the same targets."""
    tokens, counted = held_out.tokens, held_out.counted
    size = tokenizer.count_bytes(tokens[1:][counted])
    counts = CountModels(train, tokenizer.vocab_size)
    bits = loss * counted.sum() / math.log(2)
    print(f"held-out bits per byte ({counted.sum():,} targets, {size:,} bytes):")
    for name, value in (
        ("this model", bits),
        ("bigram counts", counts.bigram_bits(tokens, counted)),
        ("unigram counts", counts.unigram_bits(tokens, counted)),
    ):
        print(f"  {name:15} {value / size:.3f}", flush=True)


def stream_text(
    model: Any, tokenizer: Tokenizer, prompt: str, max_new_tokens: int, seed: int, sampling: dict[str, Any]
) -> Iterator[str]:
    """Yield the continuation of ``prompt`` up to the first eos. The prompt follows bos if the tokenizer has one.

    Raises DataError for an empty prompt without bos, and for a prompt that is too long for the model.
    """
    ids = with_bos(tokenizer.encode(prompt), tokenizer.bos_id)
    if not ids.size:
        raise DataError("the prompt is empty and the tokenizer has no bos: give a --prompt")
    ends = end_tokens(model.config, tokenizer)
    if sampling.get("temperature") == 0:
        sampling = {name: value for name, value in sampling.items() if name in ("temperature", "repetition_penalty")}
    pieces = stream(model, ids[None], max_new_tokens=max_new_tokens, key=jax.random.key(seed), **sampling)
    decoder = tokenizer.stream()
    for token in until(ends, (int(token) for piece in pieces for token in piece[0])):
        yield decoder.push(token)
    yield decoder.finish()


def end_tokens(config: Any, tokenizer: Tokenizer) -> set[int]:
    """Return the tokens that end a text: the config's eos_token_id (one or several) and the tokenizer's eos."""
    eos = config.eos_token_id
    named = set(eos) if isinstance(eos, Iterable) else {eos}
    return {int(token) for token in named | {tokenizer.eos_id} if token is not None}


def until(ends: set[int], tokens: Iterable[int]) -> Iterator[int]:
    """Yield the tokens before the first one that is in ``ends``."""
    for token in tokens:
        if token in ends:
            return
        yield token


def printable(text: str) -> str:
    """Return ``text`` with control characters (an untrained model writes any byte) shown as U+FFFD."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
