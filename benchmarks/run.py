"""Every benchmark in turn: `make bench DATA=DIR`. Raw results go to benchmarks/results/.

DIR holds ``llama2_tokenizer/`` (a SentencePiece BPE tokenizer), ``pieces_zh_20k.jsonl`` (a piece list) and
``pretrain/`` (jsonl of source, target, category). One after the other, because they share the machine's processors.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from colossal_llama2 import cli
from colossal_llama2.errors import InputError

HERE = Path(__file__).resolve().parent
SCRIPTS = (
    "tokenizer_parity",
    "expand_tokenizer",
    "expand_byte_level",
    "mine_pieces",
    "init_model",
    "corpus_recount",
    "real_road",
)


@dataclass(frozen=True)
class RunSettings:
    """Run the benchmarks one after the other."""

    data: Path
    """Folder with llama2_tokenizer/, pieces_zh_20k.jsonl and pretrain/."""
    only: tuple[str, ...] = SCRIPTS
    """Names of the benchmarks to run."""


def main(settings: RunSettings) -> int:
    """Run them; return 1 when one of them says that a promise is broken."""
    unknown = [name for name in settings.only if name not in SCRIPTS]
    if unknown:
        raise InputError(f"no benchmark is called {unknown[0]}", remedy=f"choose from {', '.join(SCRIPTS)}")
    failed = [name for name in settings.only if _run(name, settings.data)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run(name: str, data: Path) -> int:
    print(f"== {name}", flush=True)
    return subprocess.run([sys.executable, str(HERE / f"{name}.py"), "--data", str(data)], check=False).returncode


if __name__ == "__main__":
    cli.run(RunSettings, main)
