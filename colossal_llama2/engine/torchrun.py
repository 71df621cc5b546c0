"""torchrun as the launcher starts it: the same program, which also leaves word of the rank that failed first.

`python -m torch.distributed.run` prints its report between two tracebacks of its own and always exits with 1. Here the
report goes into a file instead, so that the launcher can name the rank, show its traceback once, and tell a mistake of
the user's from a failure.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from colossal_llama2.engine.nodes.watchdog import FAILURE_FILE, NODE_DIR


def main(arguments: Sequence[str]) -> int:
    """Run torchrun with these arguments; return 0, or 1 after writing down which rank failed and why."""
    node_dir = Path(os.environ[NODE_DIR])
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(line_buffering=True)  # the ranks' lines pass through here and are wanted now
    os.environ["TORCHELASTIC_ERROR_FILE"] = str(node_dir / "torchrun.json")  # or it complains that there is none
    try:
        run.main(["--log-dir", str(node_dir / "logs"), "--tee", "3", *arguments])
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        (node_dir / FAILURE_FILE).write_text(json.dumps(_describe(rank, failure)), encoding="utf-8")
        return 1
    return 0


def _describe(rank: int, failure: ProcessFailure) -> dict[str, Any]:
    message, trace = failure.message, ""
    if isinstance(message, dict):
        trace = str(message.get("extraInfo", {}).get("py_callstack", ""))
        message = message.get("message", "")
    if failure.exitcode > 0 and not isinstance(failure.message, dict):
        message = "left no traceback"
    return {"rank": rank, "exit": failure.exitcode, "message": str(message), "traceback": trace}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
