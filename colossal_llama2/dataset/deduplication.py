from __future__ import annotations

from typing import Any, Literal

Deduplicate = Literal["none", "exact", "minhash"]


def text_hashes(texts: Any, deduplicate: Any) -> Any: ...
def hash_of_chunks(chunks: Any, deduplicate: Any) -> Any: ...
def find_duplicates(hashes: Any, deduplicate: Any, threshold: Any) -> Any: ...
