"""The last words of a process that fails: said once, under its rank's name, and left where torchrun looks for them."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # set by torchrun for every rank; its report quotes what it finds there
_PEER_IS_GONE = re.compile(
    r"Connection (closed|reset) by peer|Connection timed out|Broken pipe|Connection refused|No route to host"
    r"|remote process exited|Software caused connection abort"
)
SECONDS_FOR_THE_CULPRIT = 3.0


def report_failure(error: Exception) -> None:
    """Print the traceback under the rank's name, and leave it for torchrun's report.

    A rank whose peer is gone is a victim and waits first: if the peer failed by itself, the launcher has seen that and
    ends this rank before it can speak, and the traceback that remains is the one that matters.
    """
    text = "".join(traceback.format_exception(error))
    if lost_a_peer(error):
        time.sleep(SECONDS_FOR_THE_CULPRIT)
        text += "a peer of this rank is gone or cannot be reached any more\n"
    leave_word(f"{type(error).__name__}: {error}", text)
    rank = os.environ.get("RANK")
    if rank is not None:
        print(f"rank {rank} of {os.environ.get('WORLD_SIZE', '?')} on {socket.gethostname()} failed:", file=sys.stderr)
    print(text, end="", file=sys.stderr, flush=True)


def leave_word(message: str, trace: str) -> None:
    """Write why this process ends into the file that torchrun named, if there is one."""
    path = os.environ.get(_ERROR_FILE)
    if not path:
        return
    details = {"py_callstack": trace, "timestamp": str(int(time.time()))}
    with suppress(OSError):  # the reason goes to standard error in any case
        Path(path).write_text(json.dumps({"message": {"message": message, "extraInfo": details}}), encoding="utf-8")


def lost_a_peer(error: BaseException) -> bool:
    """Tell whether an exception says that another rank has gone, rather than that this one did something wrong."""
    distributed = os.environ.get("WORLD_SIZE", "1") != "1"
    return distributed and isinstance(error, RuntimeError | OSError) and bool(_PEER_IS_GONE.search(str(error)))
