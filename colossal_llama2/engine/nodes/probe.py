"""What `tools/doctor.py` asks a host: reads one request on standard input, answers with one JSON object.

Requests: ``{"look": {...}}`` tells what the host is like and leaves a mark in the save folder; ``{"marks": {...}}``
tells which hosts' marks it sees and whether it reaches the master; ``{"remove": path}`` takes a mark away;
``{"listen": port}`` is the master, until standard input ends.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from colossal_llama2.engine.nodes.remote import ROOT

PACKAGES = ("torch", "transformers", "colossalai", "numpy", "safetensors", "tokenizers", "datasets", "peft")
_SMALL_FILES = ("config.json", "manifest.json", "tokenizer.json", "model.safetensors.index.json")


def look(request: dict[str, Any]) -> dict[str, Any]:
    """Describe this host; `request` names the inputs, the save folder and the mark to leave there."""
    gpus = _gpus()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": {name: _version(name) for name in PACKAGES},
        "code": code_hash(ROOT),
        "gpus": gpus,
        "torch_gpus": _gpus_of_torch() if gpus else None,
        "inputs": {path: _fingerprint(Path(path)) for path in request["inputs"]},
        "save": _try_folder(Path(request["save_dir"]), request["mark"]) if request["save_dir"] else None,
        "time": time.time(),
    }


def look_for_marks(request: dict[str, Any]) -> dict[str, Any]:
    """Tell which marks are seen, and what keeps the master from being reached."""
    seen = []
    for path in request["marks"]:
        try:
            Path(path).read_bytes()
            seen.append(path)
        except OSError:
            continue
    problem = ""
    if request["master"]:
        address, port = request["master"]
        try:
            socket.create_connection((address, port), timeout=5).close()
        except OSError as error:
            problem = str(error)
    return {"seen": seen, "connection": problem}


def code_hash(root: Path) -> str:
    """Hash the package and the script that trains, names and contents."""
    digest = hashlib.sha256()
    files = [root / "train.py", *(root / "colossal_llama2").rglob("*.py")]
    for path in sorted(path for path in files if path.is_file()):
        digest.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def listen(port: int) -> None:
    """Accept connections on a port (0 for a free one) until standard input ends."""
    try:
        listener = socket.create_server(("", port), backlog=64)
    except OSError as error:
        print(json.dumps({"problem": error.strerror or str(error)}), flush=True)
        return
    with listener:
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
        sys.stdin.read()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> list[str]:
    """Name the GPUs and their memory in MiB, by the driver."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, check=False, timeout=20)
    except subprocess.TimeoutExpired:
        return []
    return [line.strip() for line in listed.stdout.splitlines() if line.strip()] if listed.returncode == 0 else []


def _gpus_of_torch() -> int | str:
    """Count the GPUs that torch can use, in a process of its own: only where there are any, for it takes seconds."""
    count = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    try:
        done = subprocess.run(count, capture_output=True, text=True, check=False, timeout=60)
        return int(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return "torch does not answer"


def _fingerprint(path: Path) -> dict[str, Any]:
    """Tell whether an input can be read, and hash its small files: they differ when the rest does."""
    if not path.exists():
        return {"problem": "does not exist"}
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        return {"problem": "cannot be read"}
    digest = hashlib.sha256()
    for name in _SMALL_FILES:
        if (path / name).is_file():
            digest.update(name.encode() + (path / name).read_bytes())
    weights = sum(file.stat().st_size for file in path.glob("*.safetensors"))
    return {"problem": "", "hash": digest.hexdigest()[:12], "weights": weights}


def _try_folder(folder: Path, mark: str) -> dict[str, Any]:
    """Leave a mark in a folder, or in the nearest one above it that is there; nothing is made."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return {"folder": str(there), "problem": "is not a folder"}
    try:
        (there / mark).write_text(mark, encoding="utf-8")
    except OSError as error:
        return {"folder": str(there), "problem": error.strerror or str(error)}
    return {"folder": str(there), "problem": "", "free": shutil.disk_usage(there).free}


def main() -> int:
    """Answer one request."""
    request = json.loads(sys.stdin.readline())
    if "look" in request:
        print(json.dumps({"answer": look(request["look"])}), flush=True)
    elif "marks" in request:
        print(json.dumps({"answer": look_for_marks(request["marks"])}), flush=True)
    elif "remove" in request:
        Path(request["remove"]).unlink(missing_ok=True)
        print(json.dumps({"answer": {}}), flush=True)
    else:
        listen(int(request["listen"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
