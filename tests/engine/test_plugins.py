"""What a plugin cannot do is refused with a sentence."""

from __future__ import annotations

import pytest

from colossal_llama2.engine.plugins import PluginSettings, check_plugin
from colossal_llama2.errors import InputError


@pytest.mark.parametrize("flag", ["tp", "pp", "sp"])
def test_model_parallelism_is_refused_where_every_layer_is_whole(flag: str) -> None:
    with pytest.raises(InputError, match=f"--{flag} 2 with --plugin zero2"):
        check_plugin(PluginSettings(**{flag: 2}))


def test_negative_clipping_is_refused() -> None:
    with pytest.raises(InputError, match="gradient_clipping"):
        check_plugin(PluginSettings(gradient_clipping=-1.0))


def test_the_defaults_are_accepted() -> None:
    assert check_plugin(PluginSettings()) is None
