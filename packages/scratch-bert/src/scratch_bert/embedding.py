"""What `scratch predict` does with a bare encoder: the embeddings of texts, one JSON object a line."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, ClassVar

import tyro
from scratch_core.tasks import Task

from scratch_bert.sentences import SentenceEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """Print the embeddings of texts."""

    texts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """The texts."""


class SentenceEmbeddingTask(Task):
    """Texts to vectors. There is nothing to train: SentenceEncoder reads folders of sentence-transformers."""

    name: ClassVar[str] = "sentence_embedding"
    PredictOptions: ClassVar[type | None] = EmbedOptions

    def predict(self, folder: Path, model_class: Any, options: EmbedOptions) -> None:
        """Print {"text": ..., "embedding": [...]} for each text, pooled as the folder says."""
        embeddings = SentenceEncoder.from_pretrained(folder).encode(options.texts)
        for text, embedding in zip(options.texts, embeddings, strict=True):
            print(json.dumps({"text": text, "embedding": [round(float(number), 7) for number in embedding]}))


TASK = SentenceEmbeddingTask()
