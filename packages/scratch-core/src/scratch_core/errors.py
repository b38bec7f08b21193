"""The errors that people see: each message states the rule, the values that break it, and what to do."""


class ScratchError(ValueError):
    """Base of every error that a caller's input can cause; the command line prints it and exits with 2."""


class ConfigError(ScratchError):
    """A model or run was described in a way that cannot be built, or that is not implemented."""


class CheckpointError(ScratchError):
    """A checkpoint cannot be read as it stands, or does not fit the model."""


class DataError(ScratchError):
    """Input data is empty, malformed, or does not fit the model."""


class TrainingError(ScratchError):
    """Training cannot continue, for example because the loss has diverged."""


class MissingExtraError(ScratchError):
    """An optional library is not installed; the message names the extra and the command that installs it."""

    def __init__(self, extra: str, purpose: str):
        super().__init__(
            f"{purpose} needs the extra {extra!r} of scratch-core: install it with "
            f"`uv pip install 'scratch-core[{extra}]'`"
        )
