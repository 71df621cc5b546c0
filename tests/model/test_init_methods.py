"""The command's other ways to start rows: what each leaves as it was, what it repeats, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs
from colossal_llama2.model.distilled_rows import DistillOptions
from colossal_llama2.model.init_model import Settings, main
from colossal_llama2.tokenizer.extension import read_extension
from colossal_llama2.tokenizer.loading import load_encoder

EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def means(base: torch.Tensor, base_dir: Path, target_dir: Path) -> torch.Tensor:
    """Average the rows of each new token's cut, in float64."""
    cuts = read_extension(base_dir, target_dir).base_tokens
    matrix, bounds = base.double().numpy(), zip(cuts.offsets[:-1], cuts.offsets[1:], strict=True)
    return torch.from_numpy(np.array([matrix[cuts.ids[begin:end]].mean(0) for begin, end in bounds]))


def write_text(folder: Path) -> Path:
    path = folder / "text.jsonl"
    texts = ["x今天天气很好 fox", "the fox jumps. 今天 天气", "今天 the 天气 is 天气", "天气很好，天气很好 今天"]
    lines = (json.dumps({"source": "", "target": text}) + "\n" for text in texts)
    path.write_text("".join(lines), encoding="utf-8")
    return path


def distill_options(folder: Path, **changes: Any) -> DistillOptions:
    return DistillOptions(
        **{
            "distill_corpus": (write_text(folder),),
            "distill_steps": 4,
            "distill_batch_size": 2,
            "distill_length": 40,
            **changes,
        }
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("method", ["weighted", "random", "distilled"])
def test_every_method_leaves_the_rest_as_it_was(
    method: Any, tied: bool, make_model: Callable[..., Path], expanded_tokenizer_dir: Path
) -> None:
    source = make_model(tie_word_embeddings=tied, dtype=torch.bfloat16, spare_rows=3)
    options = distill_options(source.parent) if method == "distilled" else DistillOptions()
    before = all_tensors(source)
    written = []
    for name, seed in (("one", 7), ("again", 7), ("other", 8)):
        target = source.parent / name
        main(Settings(source, expanded_tokenizer_dir, target, init=method, distill=options, seed=seed))
        written.append(all_tensors(target))
        check_belongs(target)
    after = written[0]
    num_old, num_new = (load_encoder(folder).num_tokens for folder in (source, expanded_tokenizer_dir))
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, written[1][name])  # the same seed, the same bytes
        if name not in EMBEDDINGS:
            assert torch.equal(tensor, before[name])
            continue
        assert torch.equal(tensor[:num_old], before[name][:num_old])
        new = tensor[num_old:num_new]
        assert len(torch.unique(new, dim=0)) == num_new - num_old
        mean = means(before[name], source, expanded_tokenizer_dir)
        is_mean = (new.double() - mean).abs().max() < 1e-3
        assert is_mean == (method == "weighted" and name == "lm_head.weight")
        assert torch.equal(tensor, written[2][name]) == (method == "weighted")


def test_output_rows_may_start_otherwise(make_model: Callable[..., Path], expanded_tokenizer_dir: Path) -> None:
    source = make_model()
    options = distill_options(source.parent)
    tensors = {}
    for init, output_init in (("mean", "auto"), ("weighted", "weighted"), ("weighted", "auto"), ("mean", "weighted")):
        target = source.parent / f"{init}-{output_init}"
        main(Settings(source, expanded_tokenizer_dir, target, init=init, output_init=output_init))  # type: ignore[arg-type]
        tensors[init, output_init] = all_tensors(target)
    inputs, output = EMBEDDINGS
    mean, weighted = tensors["mean", "auto"], tensors["weighted", "weighted"]
    assert not torch.equal(mean[inputs], weighted[inputs])
    assert not torch.equal(mean[output], weighted[output])
    assert torch.equal(tensors["weighted", "auto"][inputs], weighted[inputs])
    assert torch.equal(tensors["weighted", "auto"][output], mean[output])
    assert torch.equal(tensors["mean", "weighted"][inputs], mean[inputs])
    assert torch.equal(tensors["mean", "weighted"][output], weighted[output])

    main(Settings(source, expanded_tokenizer_dir, source.parent / "a", output_init="distilled", distill=options))
    main(Settings(source, expanded_tokenizer_dir, source.parent / "b", "distilled", "mean", options))
    only_output, only_input = all_tensors(source.parent / "a"), all_tensors(source.parent / "b")
    assert torch.equal(only_output[inputs], mean[inputs])
    assert not torch.equal(only_output[output], mean[output])
    assert not torch.equal(only_input[inputs], mean[inputs])
    assert torch.equal(only_input[output], mean[output])

    tied = make_model("tied", tie_word_embeddings=True)
    with pytest.raises(InputError, match="are one matrix; leave it out"):
        main(Settings(tied, expanded_tokenizer_dir, source.parent / "c", output_init="mean"))
    assert not (source.parent / "c").exists()


def test_distilling_mistakes_leave_nothing_behind(
    make_model: Callable[..., Path], expanded_tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_model()
    target = source.parent / "out" / "target"

    def refused(match: str, method: Any = "distilled", **options: Any) -> None:
        changed = distill_options(source.parent, **options)
        with pytest.raises(InputError, match=match):
            main(Settings(source, expanded_tokenizer_dir, target, method, distill=changed))
        assert not target.parent.exists()

    refused("without --init distilled; leave one out", method="mean")
    refused("--init distilled without --distill_corpus", distill_corpus=())
    refused("no such file", distill_corpus=(source.parent / "absent.jsonl",))
    refused("--distill_steps is 0; give 1 or more", distill_steps=0)
    refused("must be above 0", distill_lr=0.0)
    refused("must be above 0", distill_minutes=0.0)
    refused("unknown device", distill_device="abacus")

    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("colossal_llama2.model.distilling.Distillation._step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(Settings(source, expanded_tokenizer_dir, target, "distilled", distill=distill_options(source.parent)))
    assert not target.parent.exists()
    assert not list(source.parent.glob(".*"))


def test_pieces_of_the_same_bytes_are_told_apart_and_counted(
    make_model: Callable[..., Path], llama_tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from colossal_llama2.tokenizer.init_tokenizer import Settings as TokenizerSettings
    from colossal_llama2.tokenizer.init_tokenizer import main as init_tokenizer

    orders = [bytes([0xE5, one, two]).decode() for one, two in ((0x90, 0xA7), (0xA7, 0x90), (0x88, 0x99))]
    assert orders[:2] == ["吧", "姐"]
    (tmp_path / "pieces.jsonl").write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in orders))
    init_tokenizer(TokenizerSettings(llama_tokenizer_dir, tmp_path / "tokenizer", tmp_path / "pieces.jsonl"))
    capsys.readouterr()
    source = make_model(dtype=torch.bfloat16)
    main(Settings(source, tmp_path / "tokenizer", tmp_path / "target"))
    assert "told apart   2 new tokens with the parts of another one" in capsys.readouterr().out
    num_old = load_encoder(source).num_tokens
    before, after = all_tensors(source), all_tensors(tmp_path / "target")
    for name in EMBEDDINGS:
        rows = after[name][num_old : num_old + 3]
        assert len(torch.unique(rows, dim=0)) == 3
        mean = means(before[name], source, tmp_path / "target")
        assert torch.equal(rows[2], mean[2].to(torch.bfloat16))
        assert (rows[:2].double() - mean[:2]).abs().max() < 0.1 * before[name].double().abs().max()
