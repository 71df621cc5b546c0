from __future__ import annotations

def liger_is_usable() -> bool:
    return False
