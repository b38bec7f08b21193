"""Generation for any model with ``start`` and ``decode``: at once, as a stream, or with beams."""

from scratch_core.generation.generate import generate, stream

__all__ = ["generate", "stream"]
