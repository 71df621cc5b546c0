"""What a plugin cannot do is refused with a sentence."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest

from colossal_llama2.engine.plugins import PluginName, PluginSettings, check_plugin
from colossal_llama2.errors import InputError


@pytest.mark.parametrize("flag", ["tp", "pp", "sp"])
def test_model_parallelism_is_refused_where_every_layer_is_whole(flag: str) -> None:
    with pytest.raises(InputError, match=f"--{flag} 2 with --plugin zero2"):
        check_plugin(replace(PluginSettings(), **{flag: 2}))  # type: ignore[arg-type]


def test_negative_clipping_is_refused() -> None:
    with pytest.raises(InputError, match="gradient_clipping"):
        check_plugin(PluginSettings(gradient_clipping=-1.0))


@pytest.mark.parametrize("plugin", ["zero2", "zero2_cpu", "ddp"])
def test_every_plugin_is_accepted_as_it_comes(plugin: PluginName) -> None:
    check_plugin(PluginSettings(plugin=plugin))
    assert plugin in get_args(PluginName)
