"""The whole expansion of byte-level tokenizers, against a second implementation in plain Python."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer.byte_level_expander import ByteLevelExpander
from colossal_llama2.tokenizer.extension import read_extension
from colossal_llama2.tokenizer.folder import read_folder
from colossal_llama2.tokenizer.init_tokenizer import Settings, main
from colossal_llama2.tokenizer.loading import load_encoder, load_tokenizer
from colossal_llama2.tokenizer.piece_list import WantedPiece

FAMILIES = ("gpt2", "llama3", "qwen")
PIECES = [
    "今天", "天气", "▁今天", "今天天气很好", "越来越", "意大利", "。。。", "”、“", "模型", "语", "言", "語", "言語学",
    "▁wizardry", "towns", "foxdog", "ﷺ", "😀", "👍🏽", "ünï", "是什么样的", "什么", "么样的", "哈哈哈哈",
]  # fmt: skip
OLD = "The quick brown fox’s café — naïve “wizards” vex  bold\njourneys; def f(x):\n    return x * 37\t# 1234567 é ½ 😀"


@pytest.fixture(scope="module")
def expanded(
    make_byte_level: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[Path, Path]]:
    """Give a function that expands one family's tokenizer, each once: the base's folder and the new one."""
    known: dict[str, tuple[Path, Path]] = {}

    def made(family: str) -> tuple[Path, Path]:
        if family not in known:
            work = tmp_path_factory.mktemp(f"expanded_{family}")
            pieces = _list(work, PIECES)
            main(Settings(make_byte_level(family), work / "target", pieces, sample_file=_file(work, "今天天气很好")))
            known[family] = make_byte_level(family), work / "target"
        return known[family]

    return made


def _list(folder: Path, pieces: list[str]) -> Path:
    path = folder / "pieces.jsonl"
    path.write_text("".join(json.dumps({"piece": piece}) + "\n" for piece in pieces), encoding="utf-8")
    return path


def _file(folder: Path, text: str) -> Path:
    path = folder / "text.txt"
    path.write_text(text, encoding="utf-8")
    return path


def _account(folder: Path) -> Any:
    return json.loads((folder / "expansion.json").read_text(encoding="utf-8"))


def _tokens(folder: Path) -> dict[str, int]:
    return dict(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab(with_added_tokens=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_new_tokens_come_behind_everything(family: str, expanded: Callable[[str], tuple[Path, Path]]) -> None:
    source, target = expanded(family)
    before, after, account = _tokens(source), _tokens(target), _account(target)
    assert all(after[token] == index for token, index in before.items())
    assert sorted(after.values()) == list(range(len(after)))
    assert account["base_tokens"] == len(before)
    assert account["num_tokens"] == len(after) > len(before) + 15
    auto = AutoTokenizer.from_pretrained(target)
    assert len(auto) == auto.vocab_size == len(after)
    merges = [json.loads((path / "tokenizer.json").read_text())["model"]["merges"] for path in (source, target)]
    assert merges[1][: len(merges[0])] == merges[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_piece_kept_is_one_token(family: str, expanded: Callable[[str], tuple[Path, Path]]) -> None:
    source, target = expanded(family)
    size, account = len(_tokens(source)), _account(target)
    refused = {item["piece"] for item in account["refused"]} | set(account["existing"])
    kept = [piece for piece in PIECES if piece not in refused]
    assert len(kept) > 15
    encoder, auto = load_encoder(target), AutoTokenizer.from_pretrained(target)
    for piece in kept:
        text = piece.replace("▁", " ")
        (index,) = encoder.encode([text]).ids.tolist()
        assert index >= size
        assert auto(text, add_special_tokens=False)["input_ids"] == [index]
        assert auto.decode([index]) == text
        inside = encoder.encode([f"\n{text}\n"]).ids.tolist()
        assert index in inside
    # "天气很好" is no piece, so this one needed something in between
    assert account["counts"]["intermediates"] > 0


def _texts() -> st.SearchStrategy[str]:
    # Characters that this Python knows, so that both sides mean the same by a letter.
    anything = st.characters(exclude_categories=["Cs", "Cn", "Co"])
    part = st.one_of(
        st.text(anything, max_size=4),
        st.text(st.sampled_from("今天气很好语言越来意大利。”、“是什么样的哈 \n12a"), max_size=8),
        st.sampled_from([piece.replace("▁", " ") for piece in PIECES]),
        st.sampled_from(
            ["<|endoftext|>", "<|eot|>", "<tool_call>", "e\u0301", "'s", "'ll", "  ", "\r\n", " the", "123"]
        ),
    )
    return st.lists(part, max_size=6).map("".join)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_readers_agree_with_plain_python(
    family: str, expanded: Callable[[str], tuple[Path, Path]], plain_byte_level: Callable[[Path], Any]
) -> None:
    source, target = expanded(family)
    plain, before, encoder = plain_byte_level(target), plain_byte_level(source), load_encoder(target)
    fast, auto = Tokenizer.from_file(str(target / "tokenizer.json")), AutoTokenizer.from_pretrained(target)
    old, loaded = load_encoder(source), load_tokenizer(target)

    @given(_texts())
    @settings(deadline=None, max_examples=150)
    def agree(text: str) -> None:
        ids = plain.encode(text)
        assert encoder.encode([text]).ids.tolist() == ids
        assert old.encode([text]).ids.tolist() == before.encode(text)
        assert len(ids) <= len(before.encode(text))
        expected = unicodedata.normalize("NFC", text) if family == "qwen" else text
        assert fast.decode(ids, skip_special_tokens=False) == expected
        if "<|" not in text:  # called by hand these make a special token of its text, as everywhere
            assert auto(text, add_special_tokens=False)["input_ids"] == ids
        assert auto(text)["input_ids"] == loaded(text)["input_ids"] == fast.encode(text).ids

    agree()


@pytest.mark.parametrize("family", FAMILIES)
def test_settings_special_tokens_and_templates_stay(
    family: str, expanded: Callable[[str], tuple[Path, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = expanded(family)
    before, after = load_tokenizer(source), AutoTokenizer.from_pretrained(target)
    assert after.special_tokens_map == before.special_tokens_map
    assert {str(token): index for index, token in after.added_tokens_decoder.items()} == {
        str(token): index for index, token in before.added_tokens_decoder.items()
    }
    assert after.model_max_length == 512
    assert after.chat_template == before.chat_template
    assert "token_type_ids" not in after("x")
    assert after("hi <|im_end|> <tool_call>")["input_ids"] == before("hi <|im_end|> <tool_call>")["input_ids"]
    assert not (target / "vocab.json").exists()
    assert not (target / "merges.txt").exists()


def test_files_left_behind_are_said(
    make_byte_level: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(Settings(make_byte_level("gpt2"), tmp_path / "target", _list(tmp_path, ["今天"])))
    assert "not written  vocab.json, merges.txt" in capsys.readouterr().out


def test_a_class_that_builds_its_own_tokenizer_builds_the_same(
    expanded: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    """Beside the config.json of a Qwen2 model transformers takes Qwen2Tokenizer whatever the folder says."""
    _, target = expanded("qwen")
    model = Path(shutil.copytree(target, tmp_path / "model"))
    (model / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    auto = AutoTokenizer.from_pretrained(model)
    encoder = load_encoder(target)
    for text in ("今天天气很好 wizardry", "e\u0301 12", OLD):
        assert auto(text)["input_ids"] == encoder.encode([text]).ids.tolist()
    assert auto.convert_tokens_to_ids("<|im_end|>") == _tokens(target)["<|im_end|>"]


@pytest.mark.parametrize("family", FAMILIES)
def test_expanding_twice_is_expanding(
    family: str, expanded: Callable[[str], tuple[Path, Path]], tmp_path: Path
) -> None:
    source, target = expanded(family)
    main(Settings(target, tmp_path / "twice", _list(tmp_path, ["今天", "学习", "言语", "新闻"])))
    account = _account(tmp_path / "twice")
    assert account["existing"] == ["今天"]
    assert account["base_tokens"] == len(_tokens(target))
    extension = read_extension(source, tmp_path / "twice")
    assert extension.num_tokens == account["num_tokens"]


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_cut_as_the_base_reads_the_bytes(family: str, expanded: Callable[[str], tuple[Path, Path]]) -> None:
    source, target = expanded(family)
    extension = read_extension(source, target)
    size, tokens = len(_tokens(source)), sorted(_tokens(target).items(), key=lambda item: item[1])
    assert (extension.num_base, extension.num_tokens) == (size, len(tokens))
    ids, offsets = extension.base_tokens.ids.tolist(), extension.base_tokens.offsets.tolist()
    for place, (token, _) in enumerate(tokens[size:]):
        cut = ids[offsets[place] : offsets[place + 1]]
        assert "".join(tokens[index][0] for index in cut) == token
        assert all(index < size for index in cut)


@pytest.mark.parametrize("family", FAMILIES)
def test_old_text_is_kept_where_that_is_asked(
    family: str, make_byte_level: Callable[[str], Path], tmp_path: Path
) -> None:
    source, sample = make_byte_level(family), _file(tmp_path, OLD)
    pieces = _list(tmp_path, ["今天", "天气", "foxdog", "fé", "ünï", "”、“", "—", "越来越", "😁"])
    asked = Settings(source, tmp_path / "target", pieces, keep_identical=(sample,))
    main(asked)
    before, after = load_encoder(source), load_encoder(tmp_path / "target")
    assert after.encode([OLD]).ids.tolist() == before.encode([OLD]).ids.tolist()
    account = _account(tmp_path / "target")
    left = {item["piece"] for item in account["left_out"]}
    # 😁 shares three bytes with 😀, and no list can have a token of two or three bytes without touching that one
    assert left == {"foxdog", "fé", "—", "😁"}

    @given(st.text(st.sampled_from(sorted(set(OLD))), max_size=40))
    @settings(deadline=None)
    def any_text_of_these_characters_too(text: str) -> None:
        assert after.encode([text]).ids.tolist() == before.encode([text]).ids.tolist()

    any_text_of_these_characters_too()


def test_what_to_do_about_pieces_that_change_old_text(make_byte_level: Callable[[str], Path], tmp_path: Path) -> None:
    source, sample = make_byte_level("llama3"), _file(tmp_path, OLD)
    pieces = _list(tmp_path, ["今天", "foxdog", "—"])
    asked = Settings(source, tmp_path / "target", pieces, keep_identical=(sample,))
    with pytest.raises(InputError, match="would change old text"):
        main(replace(asked, on_change="error"))
    assert not (tmp_path / "target").exists()
    main(replace(asked, on_change="allow"))
    account = _account(tmp_path / "target")
    assert account["counts"]["added"] == 3
    assert account["old_text"]["changed"] > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_any_list_is_reached_or_named(family: str, make_byte_level: Callable[[str], Path]) -> None:
    expander = ByteLevelExpander(read_folder(make_byte_level(family)))
    han = st.text(st.sampled_from("今天气很好学语言越来利的。、“你"), min_size=1, max_size=5)
    other = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
    word = st.text(st.sampled_from("▁thequickn"), min_size=2, max_size=6)

    @given(st.lists(st.one_of(han, han, other, word), min_size=1, max_size=12), st.booleans())
    @settings(deadline=None, max_examples=40)
    def reached(pieces: list[str], close: bool) -> None:
        found = expander.sort([WantedPiece(piece, line) for line, piece in enumerate(pieces, 1)])
        assert len(found.new) + len(found.existing) + len(found.repeated) + len(found.refused) == len(pieces)
        ordered, _ = expander.in_order(found.new, "auto")
        attempt = expander.build(ordered, "close" if close else "drop", lambda _: True)
        assert {*attempt.added, *(item.piece for item in attempt.left_out)} == set(found.new)
        assert not close or not attempt.left_out
        assert close or not attempt.intermediates
        ids = range(expander.num_base, expander.num_base + len(attempt.new_pieces))
        assert len(set(attempt.new_pieces)) == len(ids)
        for piece, index in zip(attempt.added, ids, strict=False):
            assert attempt.encoder.encode([expander.as_text(piece)]).ids.tolist() == [index]
        for text in ("".join(pieces), "的".join(pieces), OLD):
            assert len(attempt.encoder.encode([text]).ids) <= len(expander.before.encode([text]).ids)

    reached()


def test_a_prefixed_space_is_the_bases_own_affair(make_byte_level: Callable[[str], Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(make_byte_level("gpt2"), tmp_path / "source"))
    content = json.loads((source / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (source / "tokenizer.json").write_text(json.dumps(content))
    main(Settings(source, tmp_path / "target", _list(tmp_path, ["今天", "▁今天", "foxdog"])))
    fast = Tokenizer.from_file(str(tmp_path / "target" / "tokenizer.json"))
    assert fast.encode("今天 今天 (foxdog", add_special_tokens=False).tokens[:2] == ["Ġä»Ĭå¤©"] * 2
    assert fast.encode("(foxdog", add_special_tokens=False).tokens[-1] == "foxdog"


def test_tokens_that_only_the_settings_name_keep_their_ids(
    make_byte_level: Callable[[str], Path], tmp_path: Path
) -> None:
    source = Path(shutil.copytree(make_byte_level("qwen"), tmp_path / "source"))
    config = json.loads((source / "tokenizer_config.json").read_text())
    size = len(_tokens(source))
    config["added_tokens_decoder"][str(size)] = {"content": "<tool>", "special": False}
    (source / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "<pad>"}))
    main(Settings(source, tmp_path / "target", _list(tmp_path, ["今天"])))
    before, after = load_tokenizer(source), AutoTokenizer.from_pretrained(tmp_path / "target")
    for token, index in (("<tool>", size), ("<pad>", size + 1)):
        assert before.convert_tokens_to_ids(token) == after.convert_tokens_to_ids(token) == index
    assert after.pad_token_id == size + 1
    assert after("x <tool>")["input_ids"] == before("x <tool>")["input_ids"]
    assert after("今天")["input_ids"] == [size + 2]
    assert read_extension(source, tmp_path / "target").num_base == size + 2
    config["added_tokens_decoder"][str(size + 5)] = {"content": "<far>", "special": False}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"'<far>' the id {size + 5}, tokenizer.json gives it {size + 1}"):
        main(Settings(source, tmp_path / "other", _list(tmp_path, ["今天"])))


def test_truncation_in_the_file_stays_there(make_byte_level: Callable[[str], Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(make_byte_level("llama3"), tmp_path / "source"))
    fast = Tokenizer.from_file(str(source / "tokenizer.json"))
    fast.enable_truncation(4)
    fast.save(str(source / "tokenizer.json"))
    main(Settings(source, tmp_path / "target", _list(tmp_path, ["今天天气"])))
    written = Tokenizer.from_file(str(tmp_path / "target" / "tokenizer.json"))
    assert written.truncation == fast.truncation


def test_a_special_token_that_text_would_give_is_refused(
    make_byte_level: Callable[[str], Path], tmp_path: Path
) -> None:
    """`PAD` is a word like any other: once it has to stand in the vocabulary, ``ignore_merges`` would find it there."""
    source = Path(shutil.copytree(make_byte_level("llama3"), tmp_path / "source"))
    fast = Tokenizer.from_file(str(source / "tokenizer.json"))
    fast.add_special_tokens(["PAD"])
    fast.save(str(source / "tokenizer.json"))
    with pytest.raises(InputError, match="'PAD' is written like a word"):
        main(Settings(source, tmp_path / "target", _list(tmp_path, ["今天"])))
    assert not (tmp_path / "target").exists()


def test_what_to_do_about_pieces_that_cannot_be_joined(make_byte_level: Callable[[str], Path], tmp_path: Path) -> None:
    asked = Settings(make_byte_level("llama3"), tmp_path / "drop", _list(tmp_path, ["ab", "abq", "qxq"]))
    main(replace(asked, unreachable="drop"))
    account = _account(tmp_path / "drop")
    assert [item["piece"] for item in account["left_out"]] == ["qxq"]
    assert account["left_out"][0]["reason"] == "no two tokens join to it; its text gives q x q"
    assert account["counts"]["intermediates"] == 0
    with pytest.raises(InputError, match="1 pieces cannot be built by merging: 'qxq'"):
        main(replace(asked, target_tokenizer_dir=tmp_path / "error", unreachable="error"))
    assert not (tmp_path / "error").exists()


def test_a_mined_list_is_merged_as_it_stands(make_byte_level: Callable[[str], Path], tmp_path: Path) -> None:
    source = make_byte_level("llama3")
    for pieces, order in ((["今", "天", "气", "天气", "今天", "今天气"], "list"), (["今天气", "今"], "length")):
        folder = tmp_path / order
        folder.mkdir()
        main(Settings(source, folder / "target", _list(folder, pieces)))
        assert _account(folder / "target")["merge_order"] == order
    tokens = Tokenizer.from_file(str(tmp_path / "list" / "target" / "tokenizer.json"))
    assert tokens.decode([tokens.encode("今天气候", add_special_tokens=False).ids[0]]) == "今天气"


def test_mistakes_leave_nothing_behind(make_byte_level: Callable[[str], Path], tmp_path: Path) -> None:
    source = Path(shutil.copytree(make_byte_level("llama3"), tmp_path / "source"))
    target, pieces = tmp_path / "out" / "target", _list(tmp_path, ["今天", "1234"])

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(InputError, match=match):
            main(replace(Settings(source, target, pieces), **changes))
        assert not (tmp_path / "out").exists()

    refused("would replace the source", target_tokenizer_dir=source, overwrite=True)
    (tmp_path / "none").mkdir()
    refused("no piece that could be added", expand_tokens_file=_list(tmp_path / "none", ["1234", "the", ""]))
    content = json.loads((source / "tokenizer.json").read_text())
    content["decoder"] = None
    (source / "tokenizer.json").write_text(json.dumps(content))
    refused("decoder does not go by bytes")
    (source / "tokenizer.json").write_text("{}")
    refused("not a tokenizer")
