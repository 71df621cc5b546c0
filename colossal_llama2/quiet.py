"""What a command's own words are kept free of: broken pipes, and libraries that talk about themselves."""

from __future__ import annotations

import logging
import signal
from functools import partial

# transformers imports torchao wherever it is installed; what it then says of kernels it was not built for, and torch of
# how it was written, no user of ours can act on.
_NOT_OURS = {"torchao": "Failed to load ", "torch.utils._pytree": "is an Enum subclass and is now natively supported"}


def hush_libraries() -> None:
    """Keep two remarks of torchao and torch out of standard error; call before either is imported."""
    for name, words in _NOT_OURS.items():
        logging.getLogger(name).addFilter(partial(_is_worth_saying, words))


def cut_pipes_quietly() -> None:
    """Let ``command | head`` end the command without a traceback."""
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def _is_worth_saying(words: str, record: logging.LogRecord) -> bool:
    return words not in record.getMessage()
