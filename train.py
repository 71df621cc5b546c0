"""Every training stage starts here: see README.md, or `python train.py --stage NAME --help`; `--stages FILE`
for several in turn."""

from __future__ import annotations

import os

from colossal_llama2 import cli
from colossal_llama2.align import road

if __name__ == "__main__":
    # os._exit: a process group's threads that outlive the interpreter abort it now and then (gloo, 1 run in 10), which
    # torchrun would report as a failure of a run that has saved everything.
    cli.run_chosen(road.choose, leave=os._exit)
