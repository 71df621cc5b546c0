"""Remarks that nobody can act on are kept away; everything else is let through."""

from __future__ import annotations

import logging

import pytest

from colossal_llama2.quiet import hush_libraries


def test_only_the_known_remarks_are_hushed(caplog: pytest.LogCaptureFixture) -> None:
    hush_libraries()
    torchao = logging.getLogger("torchao")
    torchao.warning("Failed to load %s: %s", "a.so", "no such symbol")
    torchao.warning("the scale is zero")
    logging.getLogger("torch.utils._pytree").warning("%s is an Enum subclass and is now natively supported by", int)
    assert caplog.messages == ["the scale is zero"]
    torchao.filters.clear()
    logging.getLogger("torch.utils._pytree").filters.clear()
