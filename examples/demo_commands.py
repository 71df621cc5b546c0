"""Running the project's commands as a user would, each shown before it runs."""

from __future__ import annotations

import shlex
import subprocess
import sys


def say(heading: str) -> None:
    """Print a heading."""
    print(f"\n=== {heading} ===", flush=True)


def run_tool(script: str, *arguments: object, keep_output: bool = False) -> str:
    """Run one of the project's commands."""
    return run_command([sys.executable, script], *arguments, keep_output=keep_output)


def run_command(program: list[str], *arguments: object, keep_output: bool = False) -> str:
    """Print a command as one would type it, run it, and leave the demo with its exit code if it fails.

    Returns:
        What it printed, where `keep_output` says so.
    """
    words = list(map(str, arguments))
    print(f"\n$ {shown(program, words)}", flush=True)
    done = subprocess.run([*program, *words], stdout=subprocess.PIPE if keep_output else None, text=True, check=False)
    if done.returncode:
        print(f"error: {program[-1]} exited with {done.returncode}", file=sys.stderr)
        sys.exit(1)
    if keep_output:
        print(done.stdout, end="", flush=True)
    return done.stdout or ""


def shown(program: list[str], words: list[str]) -> str:
    """Write a command as one would type it, a flag a line."""
    typed = ["python" if word == sys.executable else word for word in program]
    lines = [shlex.join(typed)]
    for word in words:
        if word.startswith("--"):
            lines.append(word)
        else:
            lines[-1] += f" {shlex.quote(word)}"
    return " \\\n    ".join(lines)
