"""Memory that every training step asks for again."""

import ctypes

# The parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_memory() -> bool:
    """Let this process keep the memory that it frees, at its largest size so far; return whether that is possible.

    On a CPU, XLA allocates the temporary memory of each step again. glibc takes blocks of that size from the system and
    returns them right after, so every step of a large model begins with the system clearing gigabytes, page by page.
    Call this before the first computation: the threads of JAX allocate as they were set up when they started.
    Only glibc's allocator has these settings; elsewhere nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1), mallopt(_ARENA_MAX, 1)])
