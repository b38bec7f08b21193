"""What `scratch predict` does with a bare encoder: the embeddings of texts, one JSON object a line."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from scratch_core.errors import ConfigError
from scratch_core.tasks import Task
from scratch_core.tasks.task import Rows

from scratch_bert.sentences import SentenceEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Print the embeddings of texts."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """The texts."""
    out: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Embed every line of a .jsonl file, and write the lines with a "prediction" here. TEXTS is then that file; its
    lines have a "text"."""

    def __post_init__(self):
        if not self.texts:
            raise ConfigError("there is no text to embed: give one or more")
        if self.out is not None and len(self.texts) != 1:
            raise ConfigError(
                f"--out writes the embeddings of one .jsonl file, and {len(self.texts)} are given: run it for each"
            )

    @property
    def text(self) -> str:
        """The file of rows, where there is an ``out``."""
        return self.texts[0]


class SentenceEmbeddingTask(Task):
    """Texts to vectors. There is nothing to train: SentenceEncoder reads folders of sentence-transformers."""

    name: ClassVar[str] = "sentence_embedding"
    PredictOptions: ClassVar[type | None] = EmbedOptions
    row_fields: ClassVar[tuple[str, ...]] = ("text",)

    def predict(self, folder: Path, model_class: Any, options: EmbedOptions) -> None:
        """Print {"text": ..., "embedding": [...]} for each text, pooled as the folder says."""
        for text, embedding in zip(options.texts, _embed(folder, options.texts), strict=True):
            print(json.dumps({"text": text, "embedding": embedding}))

    def predict_rows(self, folder: Path, model: Any, rows: Rows, options: EmbedOptions) -> list[Any]:
        """Return the embedding of each "text", a list of numbers."""
        return _embed(folder, [row["text"] for row in rows])


def _embed(folder: Path, texts: Sequence[str]) -> list[list[float]]:
    """Return the embeddings, with seven digits after the point."""
    embeddings = SentenceEncoder.from_pretrained(folder).encode(texts)
    return [[round(float(number), 7) for number in embedding] for embedding in embeddings]


TASK = SentenceEmbeddingTask()
