"""What a plugin cannot do is refused with a sentence."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from torch import nn

from colossal_llama2.engine.plugins import PluginName, PluginSettings, check_plugin, chunk_sizes
from colossal_llama2.errors import InputError


@pytest.mark.parametrize("flag", ["tp", "pp", "sp"])
def test_model_parallelism_is_refused_where_every_layer_is_whole(flag: str) -> None:
    with pytest.raises(InputError, match=f"--{flag} 2 with --plugin zero2"):
        check_plugin(replace(PluginSettings(), **{flag: 2}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"precision": "fp32"},
            "--zero 1 inside 3d works in fp16 or bf16 alone.*pass --zero 0, --mixed_precision bf16",
        ),
        ({"zero": 3}, "give 0, 1 or 2; --plugin gemini is ZeRO-3"),
        ({"zero": 2, "pp": 2}, "pass --zero 1 or 0"),
        ({"pp_chunks": 2}, "--pp_chunks 2 without a pipeline"),
        ({"tp": 0}, "--tp is 0; give 1 or more"),
        ({"tp": 2, "sp": 4, "sp_mode": "split_gather"}, "--sp 4 is not --tp 2; pass --sp 2, or --sp_mode all_to_all"),
    ],
)
def test_what_3d_cannot_do_is_refused_with_what_works(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        check_plugin(replace(PluginSettings(plugin="3d", precision="bf16"), **changes))
    check_plugin(PluginSettings(plugin="3d", precision="fp32", zero=0, tp=2, pp=2))


@pytest.mark.parametrize(("flag", "value"), [("zero", 2), ("sp_mode", "split_gather")])
def test_what_a_plugin_would_ignore_is_refused(flag: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"--{flag} {value} with --plugin zero2, which leaves no choice of it"):
        check_plugin(replace(PluginSettings(), **{flag: value}))


def test_negative_clipping_is_refused() -> None:
    with pytest.raises(InputError, match="gradient_clipping"):
        check_plugin(PluginSettings(gradient_clipping=-1.0))


@pytest.mark.parametrize("plugin", ["gemini", "gemini_auto"])
def test_gemini_in_fp32_is_refused_with_what_works(plugin: PluginName) -> None:
    with pytest.raises(InputError, match="bf16, or --plugin zero2"):
        check_plugin(PluginSettings(plugin=plugin, precision="fp32"))


@pytest.mark.parametrize("numel", [1_000, 300_000, 7_000_000_000])
def test_every_model_is_cut_into_chunks_smaller_than_itself(numel: int) -> None:
    """What stays in one chunk is not sharded, and is counted wrongly under accumulation."""
    model = nn.Linear(numel, 1, bias=False, device="meta")
    model.config = SimpleNamespace(hidden_size=64)  # type: ignore[assignment]
    sizes = chunk_sizes(model)
    assert 0 < sizes["min_chunk_size_m"] * 2**20 <= numel / 8
    assert sizes["min_chunk_size_m"] <= 32
    assert sizes["hidden_dim"] == 64


@pytest.mark.parametrize("plugin", ["gemini", "gemini_auto", "zero2", "zero2_cpu", "3d", "ddp"])
def test_every_plugin_is_accepted_as_it_comes(plugin: PluginName) -> None:
    check_plugin(PluginSettings(plugin=plugin))
    assert plugin in get_args(PluginName)
