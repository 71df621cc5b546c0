"""The command, from the list to a folder that SentencePiece and transformers read alike."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor
from transformers import AutoTokenizer

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.init_tokenizer import Settings, main
from colossal_llama2.tokenizer.loading import load_encoder, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
PIECES = ["今天", "天气", "▁今天", "天气很好", "foxdog", "▁the", "今天", "", "a b", "<s>", "今龘"]


@pytest.fixture
def pieces_file(tmp_path: Path) -> Path:
    path = tmp_path / "pieces.jsonl"
    path.write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in PIECES), encoding="utf-8")
    return path


@pytest.fixture
def source(tmp_path: Path, llama_tokenizer_dir: Path) -> Path:
    folder = Path(shutil.copytree(llama_tokenizer_dir, tmp_path / "source"))
    size = load_encoder(folder).num_tokens
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {str(size): {"content": "<pad>", "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<pad>"}))
    return folder


def test_the_whole_command(source: Path, pieces_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, sample = tmp_path / "new" / "target", tmp_path / "sample.txt"
    sample.write_text("今天天气很好", encoding="utf-8")
    main(Settings(source, target, pieces_file, sample))

    account = json.loads((target / "expansion.json").read_text())
    assert account["counts"] == {
        "listed": 11, "added": 6, "existing": 1, "repeated": 1, "refused": 3, "left_out": 0, "intermediates": 4,
        "ascii_only": 1,
    }  # fmt: skip
    assert len(account["intermediates"]) == 4
    assert account["intermediates"][0] == "龘"
    assert [(item["line"], item["piece"]) for item in account["refused"]] == [(8, ""), (9, "a b"), (10, "<s>")]
    assert account["sample"]["after"]["tokens"] < account["sample"]["before"]["tokens"]
    assert "expand_tokens_file" in (target / "settings.yaml").read_text()
    printed = capsys.readouterr().out
    assert "added        6" in printed
    assert "in between   4" in printed
    assert "1 added pieces of ASCII alone stands in it ('foxdog'); --keep_identical FILE" in printed

    base_size = load_encoder(source).num_tokens
    processor = SentencePieceProcessor(model_file=str(target / "tokenizer.model"))
    auto = AutoTokenizer.from_pretrained(target)
    assert processor.id_to_piece(base_size - 1) == "<pad>"
    assert auto.pad_token_id == load_tokenizer(target).pad_token_id == base_size - 1
    assert len(auto) == len(processor) == account["num_tokens"] == base_size + 10
    for text in ("今天天气很好", " leading space", "  two", "a  b", "the fox\n今天\t", "😀 x"):
        expected = [1, *processor.encode(text)]
        assert auto(text)["input_ids"] == expected
        assert load_tokenizer(target)(text)["input_ids"] == expected
    assert auto.chat_template == load_tokenizer(source).chat_template
    assert auto.model_max_length == 512
    assert "token_type_ids" not in auto("x")


def test_model_file_alone_is_enough_and_can_be_expanded_again(source: Path, pieces_file: Path, tmp_path: Path) -> None:
    (source / "tokenizer_config.json").unlink()
    main(Settings(source, tmp_path / "one", pieces_file))
    pieces_file.write_text('{"piece": "模型"}\n{"piece": "今天"}\n', encoding="utf-8")
    main(Settings(tmp_path / "one", tmp_path / "two", pieces_file))
    account = json.loads((tmp_path / "two" / "expansion.json").read_text())
    assert (account["counts"]["added"], account["counts"]["existing"]) == (1, 1)
    processor = SentencePieceProcessor(model_file=str(tmp_path / "two" / "tokenizer.model"))
    assert processor.id_to_piece(len(processor) - 1) == "模型"


def english(tmp_path: Path) -> Path:
    folder = tmp_path / "english"
    folder.mkdir()
    lines = [
        "the quick brown foxdog jumps\n",
        "over many old towns " * 40 + "\n",
        "seven café\n",
        "it says 今天天气很好\n",
        "over 37 lazy dogs\n",
    ]
    (folder / "a.txt").write_text("".join(lines), encoding="utf-8")
    (folder / "b.jsonl").write_text(json.dumps({"source": "old ", "target": "towns"}) + "\n")
    return folder


def encoded(folder: Path, texts: list[str]) -> list[list[int]]:
    processor = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    return [processor.encode(text) for text in texts]


def test_old_text_keeps_its_tokens(
    source: Path, pieces_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keep = (english(tmp_path),)
    main(Settings(source, tmp_path / "target", pieces_file, keep_identical=keep))
    account = json.loads((tmp_path / "target" / "expansion.json").read_text())
    assert account["policy"] == {"unreachable": "close", "merge_order": "auto", "on_change": "drop"}
    assert [(item["line"], item["piece"]) for item in account["left_out"]] == [(5, "foxdog")]
    assert (account["counts"]["added"], account["counts"]["left_out"], account["counts"]["ascii_only"]) == (5, 1, 0)
    old = account["old_text"]
    assert (old["documents"], old["changed"], old["longer"]) == (5, 0, 0)
    assert (old["mixed_documents"], old["mixed_changed"], old["new_scripts"]) == (1, 1, ["CJK"])
    printed = capsys.readouterr().out
    assert "5 of 5 documents as before; 0 got more tokens" in printed
    texts = ["the quick foxdog", "café  jumps\n", "seven 37 ~ old"]
    assert encoded(tmp_path / "target", texts) == encoded(source, texts)
    assert len(encoded(tmp_path / "target", ["今天天气很好"])[0]) < len(encoded(source, ["今天天气很好"])[0])

    main(Settings(source, tmp_path / "allowed", pieces_file, keep_identical=keep, on_change="allow"))
    account = json.loads((tmp_path / "allowed" / "expansion.json").read_text())
    assert (account["counts"]["added"], account["old_text"]["changed"]) == (6, 1)
    assert [item["piece"] for item in account["old_text"]["changing"]] == ["foxdog", "dog"]

    with pytest.raises(InputError, match=r"1 pieces would change old text: .foxdog.; .*--on_change drop"):
        main(Settings(source, tmp_path / "error", pieces_file, keep_identical=keep, on_change="error"))
    assert not (tmp_path / "error").exists()


def test_what_cannot_be_built_is_closed_dropped_or_refused(source: Path, pieces_file: Path, tmp_path: Path) -> None:
    main(Settings(source, tmp_path / "drop", pieces_file, unreachable="drop"))
    account = json.loads((tmp_path / "drop" / "expansion.json").read_text())
    assert account["intermediates"] == []
    assert [item["line"] for item in account["left_out"]] == [4, 5, 11]
    assert [item["piece"] for item in account["left_out"]] == ["天气很好", "foxdog", "今龘"]
    with pytest.raises(InputError, match=r"3 pieces cannot be built by merging: .*天气很好.*--unreachable close"):
        main(Settings(source, tmp_path / "error", pieces_file, unreachable="error"))
    assert not (tmp_path / "error").exists()
    pieces_file.write_text('{"piece": "天气很好"}\n', encoding="utf-8")
    with pytest.raises(InputError, match="no piece that could be added"):
        main(Settings(source, tmp_path / "error", pieces_file, unreachable="drop"))


def test_wanted_ids_do_not_depend_on_closing(source: Path, pieces_file: Path, tmp_path: Path) -> None:
    main(Settings(source, tmp_path / "one", pieces_file))
    account = json.loads((tmp_path / "one" / "expansion.json").read_text())
    processor = SentencePieceProcessor(model_file=str(tmp_path / "one" / "tokenizer.model"))
    size = account["base_tokens"]
    names = [processor.id_to_piece(index) for index in range(size, account["num_tokens"])]
    assert names[:6] == ["今天", "天气", "今龘", "▁今天", "天气很好", "foxdog"]  # shorter first, then as listed
    assert names[6:] == account["intermediates"]


def test_a_merge_list_is_merged_in_its_order(source: Path, pieces_file: Path, tmp_path: Path) -> None:
    def order(pieces: list[str], **changes: Any) -> tuple[str, list[str]]:
        pieces_file.write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in pieces), encoding="utf-8")
        main(Settings(source, tmp_path / "target", pieces_file, overwrite=True, **changes))
        processor = SentencePieceProcessor(model_file=str(tmp_path / "target" / "tokenizer.model"))
        account = json.loads((tmp_path / "target" / "expansion.json").read_text())
        return account["merge_order"], processor.encode("9今天气", out_type=str)[-2:]

    mined = ["天气", "今天气", "今天"]
    assert order(mined) == ("list", ["9", "今天气"])
    assert order(mined, merge_order="length")[0] == "length"
    assert order(["今天天气", "今天", "天气"])[0] == "length"  # its first piece has no halves yet
    assert order(["今天天气", "今天", "天气"], merge_order="list")[0] == "list"


def test_a_template_in_its_own_file_is_kept(source: Path, pieces_file: Path, tmp_path: Path) -> None:
    (source / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    main(Settings(source, tmp_path / "target", pieces_file))
    chat = AutoTokenizer.from_pretrained(tmp_path / "target").apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    assert chat == "hi!"


def test_mistakes_leave_nothing_behind(source: Path, pieces_file: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "target"

    def refused(match: str, **changes: Any) -> None:
        settings = {"source_tokenizer_dir": source, "target_tokenizer_dir": target, "expand_tokens_file": pieces_file}
        with pytest.raises(InputError, match=match):
            main(Settings(**{**settings, **changes}))
        assert not (tmp_path / "out").exists()

    refused("no such folder", source_tokenizer_dir=tmp_path / "absent")
    refused("cannot be read", expand_tokens_file=tmp_path / "absent.jsonl")
    refused("cannot be read", sample_file=tmp_path / "absent.txt")
    refused("no such file", keep_identical=(tmp_path / "absent",))
    chinese = tmp_path / "chinese.txt"
    chinese.write_text("今天", encoding="utf-8")
    refused("letters of the new language|would change|no piece", keep_identical=(chinese,), on_change="error")
    refused("would replace the source", target_tokenizer_dir=source, overwrite=True)
    refused("would replace the source", target_tokenizer_dir=source.parent, overwrite=True)
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    refused("holds a model", target_tokenizer_dir=model, overwrite=True)
    assert (model / "config.json").exists()
    refused("exists already", target_tokenizer_dir=pieces_file)
    nothing_new = tmp_path / "nothing.jsonl"
    nothing_new.write_text('{"piece": "▁the"}\n{"piece": ""}\n', encoding="utf-8")
    refused("no piece that could be added", expand_tokens_file=nothing_new)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["added_tokens_decoder"] = {"5000": {"content": "<far>", "special": True}}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    refused("without a gap")


@pytest.mark.parametrize("options", [{"model_type": "unigram"}, {"normalization_rule_name": "nmt_nfkc"}])
def test_other_models_are_refused(
    options: dict[str, Any], piece_model_bytes: Any, pieces_file: Path, tmp_path: Path
) -> None:
    source = tmp_path / "other"
    source.mkdir()
    (source / "tokenizer.model").write_bytes(piece_model_bytes(**options))
    with pytest.raises(InputError):
        main(Settings(source, tmp_path / "target", pieces_file))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "pieces.jsonl"]


def test_byte_level_sources_are_refused(byte_level_tokenizer_dir: Path, pieces_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only SentencePiece BPE"):
        main(Settings(byte_level_tokenizer_dir, tmp_path / "target", pieces_file))


@pytest.mark.parametrize("script", ["colossal_llama2/tokenizer/init_tokenizer.py", "tools/init_tokenizer.py"])
def test_run_by_path_from_elsewhere(script: str, source: Path, pieces_file: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / script), *arguments]
        return subprocess.run(command, cwd=tmp_path, env={**os.environ}, capture_output=True, text=True, check=False)

    flags = ["--source_tokenizer_dir", str(source), "--expand_tokens_file", str(pieces_file)]
    done = run(*flags, "--target_tokenizer_dir", "target")
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "target" / "tokenizer.json").is_file()
    again = run(*flags, "--target_tokenizer_dir", "target")
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1


def test_run_by_path_finds_the_package_without_it_being_installed(tmp_path: Path) -> None:
    """The editable install is taken off the search path, as if it had never been made."""
    prologue = f"""
import importlib.util, runpy, sys
sys.argv = sys.argv[1:]
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
sys.path = [sys.argv[0].rsplit("/", 1)[0], *(path for path in sys.path[1:] if path != {str(ROOT)!r})]
assert importlib.util.find_spec("colossal_llama2") is None
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    for script in ("colossal_llama2/tokenizer/init_tokenizer.py", "colossal_llama2/model/init_model.py"):
        command = [sys.executable, "-c", prologue, str(ROOT / script), "--help"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "--target_tokenizer" in done.stdout
