"""The command: old text gets the logits it had, new rows are means, and nothing else changes by a byte."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentencepiece import SentencePieceProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer

from colossal_llama2.errors import InputError
from colossal_llama2.model.belonging import check_belongs
from colossal_llama2.model.init_model import Settings, main
from colossal_llama2.tokenizer.loading import load_encoder, tokenizer_fingerprint

ROOT = Path(__file__).resolve().parents[2]
EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
OLD_TEXT = "the quick brown fox jumps over 37 lazy dogs\n今 天"


def all_tensors(folder: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(path))
    return tensors


def logits_of(folder: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits: torch.Tensor = model(torch.tensor([ids])).logits[0]
    return logits


def expected_rows(base: torch.Tensor, base_dir: Path, target_dir: Path) -> np.ndarray:
    """Compute the new rows again, in float64, from SentencePiece's own pieces."""
    old = SentencePieceProcessor(model_file=str(base_dir / "tokenizer.model"))
    new = SentencePieceProcessor(model_file=str(target_dir / "tokenizer.model"))
    matrix = base.to(torch.float64).numpy()
    rows = []
    for index in range(len(old), len(new)):
        # a character in front, cut off again, keeps the dummy prefix away from the piece
        head = old.encode("龘", out_type=str)
        cut = old.encode("龘" + new.id_to_piece(index).replace("▁", " "))[len(head) :]
        assert cut
        rows.append(np.mean([matrix[token] for token in cut], axis=0))
    return np.array(rows)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_and_logits(
    tied: bool, sharded: bool, dtype: torch.dtype, make_model: Callable[..., Path], expanded_tokenizer_dir: Path
) -> None:
    source = make_model(tie_word_embeddings=tied, dtype=dtype, max_shard_size="20KB" if sharded else "1GB")
    target = source.parent / "target"
    main(Settings(source, expanded_tokenizer_dir, target))

    before, after = all_tensors(source), all_tensors(target)
    assert after.keys() == before.keys()
    assert ("lm_head.weight" in after) is not tied
    assert len(list(target.glob("*.safetensors"))) == len(list(source.glob("*.safetensors")))
    num_old, num_new = (load_encoder(folder).num_tokens for folder in (source, expanded_tokenizer_dir))
    tolerance = torch.finfo(dtype).eps
    compared = 0
    for name, tensor in after.items():
        assert tensor.dtype == before[name].dtype == dtype
        if name not in EMBEDDINGS:
            assert torch.equal(tensor, before[name])
            continue
        compared += 1
        assert torch.equal(tensor[:num_old], before[name])
        assert len(tensor) % 64 == 0
        assert len(tensor) >= num_new
        expected = expected_rows(before[name], source, expanded_tokenizer_dir)
        assert len(expected) == num_new - num_old
        actual = tensor[num_old:num_new].to(torch.float64).numpy()
        assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()
    assert compared == (1 if tied else 2)

    config = json.loads((target / "config.json").read_text())
    assert config["vocab_size"] == len(after["model.embed_tokens.weight"])
    assert config["tokenizer_fingerprint"] == tokenizer_fingerprint(expanded_tokenizer_dir)
    check_belongs(target)
    ids = AutoTokenizer.from_pretrained(target)(OLD_TEXT)["input_ids"]
    assert ids == AutoTokenizer.from_pretrained(expanded_tokenizer_dir)(OLD_TEXT)["input_ids"]
    assert max(ids) < num_old
    assert torch.equal(logits_of(target, ids)[:, :num_old], logits_of(source, ids))


def test_index_lists_what_is_there(make_model: Callable[..., Path], expanded_tokenizer_dir: Path) -> None:
    source = make_model(max_shard_size="20KB")
    target = source.parent / "target"
    main(Settings(source, expanded_tokenizer_dir, target))
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == json.loads((source / "model.safetensors.index.json").read_text())["weight_map"]
    tensors = all_tensors(target)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["metadata"].get("total_parameters") in (None, sum(tensor.numel() for tensor in tensors.values()))


def test_spare_rows_of_the_base_are_used_and_never_dropped(
    make_model: Callable[..., Path], expanded_tokenizer_dir: Path
) -> None:
    source = make_model(spare_rows=100)
    target = source.parent / "target"
    main(Settings(source, expanded_tokenizer_dir, target, pad_to_multiple_of=1))
    before, after = all_tensors(source), all_tensors(target)
    num_old, num_new = (load_encoder(folder).num_tokens for folder in (source, expanded_tokenizer_dir))
    for name in EMBEDDINGS:
        assert len(after[name]) == num_old + 100
        assert torch.equal(after[name][:num_old], before[name][:num_old])
        assert torch.equal(after[name][num_new:], before[name][num_new:])
        expected = expected_rows(before[name], source, expanded_tokenizer_dir)
        assert np.allclose(after[name][num_old:num_new].double().numpy(), expected, atol=1e-7)


@pytest.mark.parametrize("sharded", [False, True])
def test_pytorch_files_become_safetensors(
    sharded: bool, make_model: Callable[..., Path], expanded_tokenizer_dir: Path
) -> None:
    source = make_model()
    reference = source.parent / "reference"
    main(Settings(source, expanded_tokenizer_dir, reference))
    tensors = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    if sharded:
        names = sorted(tensors)
        halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
        for file, part in halves.items():
            torch.save({name: tensors[name] for name in part}, source / file)
        weight_map = {name: file for file, part in halves.items() for name in part}
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        torch.save(tensors, source / "pytorch_model.bin")
    target = source.parent / "target"
    main(Settings(source, expanded_tokenizer_dir, target))
    assert not list(target.glob("*.bin*"))
    assert len(list(target.glob("model*.safetensors"))) == (2 if sharded else 1)
    expected, actual = all_tensors(reference), all_tensors(target)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    ids = load_encoder(target).encode([OLD_TEXT]).ids.tolist()
    assert torch.equal(logits_of(target, ids), logits_of(reference, ids))


def test_source_and_target_may_be_one(make_model: Callable[..., Path], expanded_tokenizer_dir: Path) -> None:
    source, other = make_model(), make_model("other")
    (source / "README.md").write_text("kept")
    (source / "extra").mkdir()
    (source / "extra" / "note.txt").write_text("kept too")
    with pytest.raises(InputError, match="pass --overwrite"):
        main(Settings(source, expanded_tokenizer_dir, source))
    main(Settings(source, expanded_tokenizer_dir, source, overwrite=True))
    main(Settings(other, expanded_tokenizer_dir, other.parent / "target"))
    assert (source / "README.md").read_text() == "kept"
    assert (source / "extra" / "note.txt").read_text() == "kept too"
    assert (source / "generation_config.json").is_file()
    expected = all_tensors(other.parent / "target")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in all_tensors(source).items())
    check_belongs(source)
    main(Settings(source, source, source, overwrite=True))  # nothing left to add: the same again
    assert all(torch.equal(tensor, expected[name]) for name, tensor in all_tensors(source).items())


def test_target_may_be_the_tokenizers_folder(make_model: Callable[..., Path], expanded_tokenizer_dir: Path) -> None:
    source = make_model()
    target = Path(shutil.copytree(expanded_tokenizer_dir, source.parent / "both"))
    main(Settings(source, target, target))
    check_belongs(target)
    assert (target / "expansion.json").read_bytes() == (expanded_tokenizer_dir / "expansion.json").read_bytes()
    with pytest.raises(InputError, match="pass --overwrite"):
        main(Settings(source, target, target))  # now there is a model in it


def test_other_files_come_along_and_stale_ones_do_not(
    make_model: Callable[..., Path], expanded_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_model()
    (source / "LICENSE").write_text("terms")
    (source / "pytorch_model.bin").write_bytes(b"old rows")
    (source / "original").mkdir()
    (source / "added_tokens.json").write_text("{}")
    target = source.parent / "target"
    main(Settings(source, expanded_tokenizer_dir, target))
    names = {path.name for path in target.iterdir()}
    assert {"LICENSE", "generation_config.json", "settings.yaml", "tokenizer.model", "tokenizer.json"} <= names
    assert {"pytorch_model.bin", "original", "added_tokens.json"}.isdisjoint(names)
    assert "left behind  original, pytorch_model.bin" in capsys.readouterr().out


def test_mistakes_leave_nothing_behind(
    make_model: Callable[..., Path], expanded_tokenizer_dir: Path, byte_level_tokenizer_dir: Path, tmp_path: Path
) -> None:
    source = make_model()
    target = tmp_path / "out" / "target"

    def refused(match: str, **changes: Any) -> None:
        settings = {
            "source_model_and_tokenizer_path": source,
            "target_tokenizer_path": expanded_tokenizer_dir,
            "target_model_path": target,
        }
        with pytest.raises(InputError, match=match):
            main(Settings(**{**settings, **changes}))
        assert not (tmp_path / "out").exists()

    refused("no such folder", source_model_and_tokenizer_path=tmp_path / "absent")
    refused("no such folder", target_tokenizer_path=tmp_path / "absent")
    refused("give 1 or more", pad_to_multiple_of=0)
    refused("would replace", target_model_path=source.parent, overwrite=True)
    refused("cannot be compared", target_tokenizer_path=byte_level_tokenizer_dir)
    smaller = Path(shutil.copytree(source, tmp_path / "smaller"))
    raw = (expanded_tokenizer_dir / "tokenizer.model").read_bytes()
    (smaller / "tokenizer.model").write_bytes(raw.replace("▁quick".encode(), "▁quack".encode()))
    refused("not an extension", target_tokenizer_path=smaller)
    (source / "model.safetensors").write_bytes(b"junk")
    refused("not a whole safetensors file")


def test_quantised_embeddings_are_refused(make_model: Callable[..., Path], expanded_tokenizer_dir: Path) -> None:
    source = make_model()
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"] = tensors["lm_head.weight"].to(torch.int8)
    save_file(tensors, source / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="quantised"):
        main(Settings(source, expanded_tokenizer_dir, source.parent / "target"))
    assert not (source.parent / "target").exists()
    assert not list(source.parent.glob(".*"))


def test_byte_level_models_are_expanded_too(byte_level_tokenizer_dir: Path, tmp_path: Path) -> None:
    from tokenizers import pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel

    source, tokenizer, target = tmp_path / "source", tmp_path / "tokenizer", tmp_path / "target"
    num_old = load_encoder(byte_level_tokenizer_dir).num_tokens
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=num_old, n_embd=8, n_layer=1, n_head=1)).save_pretrained(source)
    for folder in (source, tokenizer):
        shutil.copytree(byte_level_tokenizer_dir, folder, dirs_exist_ok=True)
    content = json.loads((tokenizer / "tokenizer.json").read_text())
    (letters, _), *_ = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str("龘")
    content["model"]["vocab"].update({letters[:2]: num_old, letters: num_old + 1})
    content["model"]["merges"] += [[letters[0], letters[1]], [letters[:2], letters[2]]]
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    main(Settings(source, tokenizer, target, pad_to_multiple_of=1))
    before, after = (all_tensors(folder)["transformer.wte.weight"] for folder in (source, target))
    vocab = content["model"]["vocab"]
    for row, cut in ((num_old, letters[:2]), (num_old + 1, letters)):
        expected = before[[vocab[letter] for letter in cut]].double().mean(0)
        assert torch.allclose(after[row].double(), expected, atol=1e-7)
    assert load_encoder(target).encode(["龘"]).ids.tolist() == [num_old + 1]


@pytest.mark.parametrize("script", ["colossal_llama2/model/init_model.py", "tools/init_model.py"])
def test_run_by_path(script: str, make_model: Callable[..., Path], expanded_tokenizer_dir: Path) -> None:
    source = make_model()
    command = [sys.executable, str(ROOT / script), "--source_model_and_tokenizer_path", source.name]
    command += ["--target_tokenizer_path", str(expanded_tokenizer_dir), "--target_model_path", "target"]
    for code in (0, 2):
        done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        assert done.stderr.count("\n") == (0 if code == 0 else 1)
    assert "rows " in done.stdout or done.stderr.startswith("error: ")
