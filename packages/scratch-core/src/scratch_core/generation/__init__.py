"""Generation for any model with ``start`` and ``decode``: at once, as a stream, or with beams."""

from scratch_core.generation.beam import beam_search
from scratch_core.generation.generate import generate, stream

__all__ = ["beam_search", "generate", "stream"]
