"""The command: every layout, every type, and a recount of its rows by other means."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from colossal_llama2 import cli
from colossal_llama2.dataset import conversation_ledger, prepare_dataset
from colossal_llama2.dataset.conversation_encoding import SetType
from colossal_llama2.dataset.conversation_files import split_files
from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.ledger import UnbalancedError
from colossal_llama2.dataset.prepare_dataset import PrepareSetSettings, main
from colossal_llama2.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["the fox", "你好 世界", "</s> jumps", "quick\n\nbrown", "a", "seven 今天 wizards 😀"]


def write(path: Path, records: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


def messages(*said: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]}


def chats(count: int) -> list[dict[str, Any]]:
    return [
        messages(*(f"{WORDS[(n + turn) % len(WORDS)]} {n}" for turn in range(2 + 2 * (n % 3)))) for n in range(count)
    ]


def rows(folder: Path) -> list[dict[str, Any]]:
    """Read the rows with pyarrow alone."""
    found = []
    for part in sorted(folder.glob("part-*")):
        found += pa.ipc.open_stream((part / "data-00000-of-00001.arrow").read_bytes()).read_all().to_pylist()
    return found


def sequences(folder: Path) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(ids, labels) of every conversation."""
    found = []
    for row in rows(folder):
        ends = np.cumsum(row["seq_lens"]).tolist()
        assert ends[-1] == len(row["input_ids"]) == len(row["labels"])
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            found.append((tuple(row["input_ids"][begin:end]), tuple(row["labels"][begin:end])))
    return found


def outputs(folder: Path) -> dict[str, bytes]:
    """Every file but the settings, which name places."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "settings.yaml"
    }


@pytest.fixture
def settings(tmp_path: Path, llama_tokenizer_dir: Path) -> PrepareSetSettings:
    return PrepareSetSettings(
        type="sft",
        data_input_dirs=str(tmp_path / "in"),
        tokenizer_dir=llama_tokenizer_dir,
        data_arrow_output_dir=tmp_path / "out",
        chat_template="llama2",
        max_length=128,
        num_workers=1,
    )


@pytest.fixture(scope="module")
def processor(llama_tokenizer_dir: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(llama_tokenizer_dir / "tokenizer.model"))


def ledger(settings: PrepareSetSettings) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((settings.data_arrow_output_dir / "manifest.json").read_text())
    return found


def llama2_by_hand(
    processor: SentencePieceProcessor, said: Sequence[str], last_only: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A conversation in Llama-2's format, by SentencePiece alone: <s> [INST] question [/INST] answer </s>."""
    ids: list[int] = []
    labels: list[int] = []
    for number in range(0, len(said), 2):
        asked = f"[INST] {said[number].strip()} [/INST]"
        own = processor.encode(f"{asked} {said[number + 1].strip()} ")
        spans = processor.encode(f"{asked} {said[number + 1].strip()} ", out_type="offset_mapping")["offsets"]
        learned = [max(end, begin + 1) > len(asked) for begin, end in spans]
        if last_only and number + 2 < len(said):
            learned = [False] * len(learned)
        ends = 2 if not last_only or number + 2 == len(said) else -100
        ids += [1, *own, 2]
        labels += [-100, *(i if keep else -100 for i, keep in zip(own, learned, strict=True)), ends]
    return tuple(ids), tuple(labels)


def test_rows_hold_every_conversation_once_learned_where_the_assistant_speaks(
    tmp_path: Path, settings: PrepareSetSettings, processor: SentencePieceProcessor
) -> None:
    import datasets

    records = chats(60)
    write(tmp_path / "in" / "a.jsonl", records)
    main(replace(settings, num_spliced_dataset_bins=2))
    said = [[message["content"] for message in record["messages"]] for record in records]
    expected = Counter(llama2_by_hand(processor, contents) for contents in said)
    found = sequences(settings.data_arrow_output_dir)
    assert Counter(found) == expected
    assert len(found) == 60
    manifest = ledger(settings)
    total = manifest["totals"]
    assert total["tokens_in_rows"] == total["tokens"] == sum(len(ids) for ids, _ in found)
    assert total["learned_tokens_in_rows"] == sum(label != -100 for _, labels in found for label in labels) > 500
    assert total["turns"] == total["turns_kept"] == sum(map(len, said))
    assert total["with_marker_text"] == sum("</s>" in text for text in map(str, said)) > 10
    assert total["fill"] > 0.8
    assert max(len(row["input_ids"]) for row in rows(settings.data_arrow_output_dir)) <= 128
    corpus = PreparedCorpus.open([settings.data_arrow_output_dir])
    assert corpus.num_rows == total["rows"] == sum(bucket["rows"] for bucket in manifest["buckets"])
    read = datasets.load_from_disk(str(settings.data_arrow_output_dir / "part-00001"))
    assert read.column_names == ["input_ids", "labels", "seq_lens"]
    assert (settings.data_arrow_output_dir / "chat_template.jinja").read_text() == manifest["chat_template"]["text"]
    written = cli.parse(PrepareSetSettings, ["--config", str(settings.data_arrow_output_dir / "settings.yaml")])
    assert written == replace(settings, num_spliced_dataset_bins=2)


def test_every_layout_gives_the_same_rows(tmp_path: Path, settings: PrepareSetSettings) -> None:
    ask, good, bad = "the fox", "你好", "no"
    records = {
        "instruction": {"instruction": ask, "input": "", "output": good},
        "completion": {"prompt": ask, "completion": good},
        "messages": messages(ask, good),
        "from": {"conversations": [{"from": "human", "value": ask}, {"from": "gpt", "value": good}]},
        "human_assistant": {"human": ask, "assistant": good},
        "preference": {"prompt": ask, "chosen": good, "rejected": bad},
        "deepspeed": {
            "prompt": f"\n\nHuman: {ask}\n\nAssistant:",
            "response": "x",
            "chosen": f" {good}",
            "rejected": bad,
        },
        "transcript": {
            "chosen": f"\n\nHuman: {ask}\n\nAssistant: {good}",
            "rejected": f"\n\nHuman: {ask}\n\nAssistant: {bad}",
        },
        "responses": {"prompt": ask, "responses": [bad, good], "scores": [0.1, 0.9]},
    }
    for name, record in records.items():
        write(tmp_path / "in" / f"{name}.jsonl", [record])
    main(replace(settings, packing=False))
    found = sequences(settings.data_arrow_output_dir)
    assert len(found) == len(records) == len(rows(settings.data_arrow_output_dir))
    assert len(set(found)) == 1
    entries = {entry["file"]: entry for entry in ledger(settings)["files"]}
    assert {entry["layout"] for entry in entries.values()} == {*records} - {"from", "deepspeed"}
    assert entries["in/deepspeed.jsonl"]["fields_passed_over"] == {"response": 1}
    assert entries["in/responses.jsonl"]["answers_not_used"] == 1
    # The same file read as prompts: what stands before the answer.
    main(replace(settings, type="prompt", data_arrow_output_dir=tmp_path / "prompts"))
    prompts = rows(tmp_path / "prompts")
    assert {tuple(row["prompt_ids"]) for row in prompts} == {found[0][0][: len(prompts[0]["prompt_ids"])]}
    assert {row["text"] for row in prompts} == {f"<s>[INST] {ask} [/INST]"}
    assert sorted(row["record"] for row in prompts) == sorted(
        json.dumps(record, ensure_ascii=False) for record in records.values()
    )


def test_bytes_depend_on_neither_workers_nor_chunks_nor_place(
    tmp_path: Path, settings: PrepareSetSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write(tmp_path / "in" / f"{name}.jsonl", chats(40))
    options = replace(settings, num_spliced_dataset_bins=3, holdout="10%", weights="a=1.5,b=0.5")
    main(options)
    monkeypatch.setattr(prepare_dataset, "split_files", partial(split_files, chunk_bytes=300))
    main(replace(options, data_arrow_output_dir=tmp_path / "deeper" / "two", num_workers=2))
    expected = outputs(settings.data_arrow_output_dir)
    assert len(expected) == 4 * 3 + 3
    assert outputs(tmp_path / "deeper" / "two") == expected
    main(replace(options, seed=7, overwrite=True))
    again = outputs(settings.data_arrow_output_dir)
    assert again.keys() == expected.keys()
    assert again["part-00000/data-00000-of-00001.arrow"] != expected["part-00000/data-00000-of-00001.arrow"]


def test_long_conversations_are_cut_at_a_turn(
    tmp_path: Path, settings: PrepareSetSettings, processor: SentencePieceProcessor
) -> None:
    long = [f"the quick brown fox {n}" for n in range(20)]
    first_too_long = ["the fox " * 80, "yes", "and", "no"]
    write(tmp_path / "in" / "a.jsonl", [messages(*long), messages(*first_too_long), messages("a", "b", "unanswered")])
    main(settings)
    found = sequences(settings.data_arrow_output_dir)
    fitting = [length for length in range(2, 21, 2) if len(llama2_by_hand(processor, long[:length])[0]) <= 128]
    kept = llama2_by_hand(processor, long[: fitting[-1]])
    assert 2 < fitting[-1] < 20
    assert Counter(found) == Counter([kept, llama2_by_hand(processor, ["a", "b"])])
    entry = ledger(settings)["files"][0]
    assert (entry["conversations_cut"], entry["turns_cut"]) == (1, 20 - fitting[-1])
    assert (entry["turns_unanswered"], entry["turns_left_out"], entry["used"]) == (1, 4, 2)
    assert entry["left_out"] == {"longer than --max_length in its first exchange": 1}
    assert ledger(settings)["left_out_records"] == [
        {"file": "in/a.jsonl", "line": 2, "reason": "longer than --max_length in its first exchange"}
    ]


def test_a_preference_is_a_row_of_its_answers(
    tmp_path: Path, settings: PrepareSetSettings, processor: SentencePieceProcessor
) -> None:
    before = "\n\nHuman: q\n\nAssistant: old\n\nHuman: r\n\nAssistant:"
    records = [
        {"prompt": before, "chosen": " good", "rejected": " bad one"},
        {"prompt": "q", "chosen": "same", "rejected": "same"},
        {"prompt": "q", "chosen": "a", "rejected": "the fox " * 90},
        {"prompt": "three", "chosen": "a", "rejected": ["b", "c"]},
    ]
    write(tmp_path / "in" / "pairs.jsonl", records)
    several = {"prompt": "q", "responses": ["worst", "best", "middle"], "ranks": [3, 1, 2]}
    write(tmp_path / "in" / "several.jsonl", [several])
    kto = [{"prompt": "q", "completion": "ok", "label": True}, {"prompt": "q", "completion": "bad", "label": False}]
    write(tmp_path / "in" / "kto.jsonl", kto)
    main(replace(settings, type="preference"))
    found = Counter(
        (tuple(row["ranks"]), tuple(row["seq_lens"]), tuple(row["input_ids"]), tuple(row["labels"]))
        for row in rows(settings.data_arrow_output_dir)
    )

    def expected(ranks: Sequence[int], before: Sequence[str], *answers: str) -> Any:
        parts = [llama2_by_hand(processor, [*before, answer], last_only=True) for answer in answers]
        ids, labels = (tuple(value for part in parts for value in part[side]) for side in (0, 1))
        return tuple(ranks), tuple(len(part[0]) for part in parts), ids, labels

    assert found == Counter(
        [
            expected([0, 1], ["q", "old", "r"], "good", "bad one"),
            expected([0, 1, 1], ["three"], "a", "b", "c"),
            expected([2, 0, 1], ["q"], "worst", "best", "middle"),
            expected([0], ["q"], "ok"),
            expected([1], ["q"], "bad"),
        ]
    )
    manifest = ledger(settings)
    assert manifest["totals"]["left_out"] == {
        "an answer with its prompt is longer than --max_length": 1,
        "its answers are all the same": 1,
    }
    assert manifest["totals"]["pairs_in_rows"] == 1 + 2 + 3
    assert manifest["totals"]["turns_kept"] == (3 + 2) + (1 + 3) + (1 + 3) + 2 + 2
    # For SFT only good answers count.
    main(replace(settings, data_arrow_output_dir=tmp_path / "sft", data_input_dirs=str(tmp_path / "in" / "kto.jsonl")))
    assert sequences(tmp_path / "sft") == [llama2_by_hand(processor, ["q", "ok"])]
    assert ledger(replace(settings, data_arrow_output_dir=tmp_path / "sft"))["totals"]["left_out"] == {
        "its only answer is called a bad one": 1
    }


def test_long_prompts_are_left_out_or_keep_their_end(
    tmp_path: Path, settings: PrepareSetSettings, processor: SentencePieceProcessor
) -> None:
    long = "the fox " * 60
    write(tmp_path / "in" / "a.jsonl", [{"prompt": "short", "answer": 4}, {"prompt": long}])
    whole = [1, *processor.encode(f"[INST] {long.strip()} [/INST]")]
    main(replace(settings, type="prompt"))
    assert [json.loads(row["record"]) for row in rows(settings.data_arrow_output_dir)] == [
        {"prompt": "short", "answer": 4}
    ]
    assert ledger(settings)["totals"]["left_out"] == {"longer than --max_length": 1}
    main(replace(settings, type="prompt", long_prompts="keep_end", overwrite=True))
    found = sorted(rows(settings.data_arrow_output_dir), key=lambda row: len(row["text"]))
    assert found[1]["prompt_ids"] == whole[-128:]
    assert found[1]["text"] == f"<s>[INST] {long.strip()} [/INST]"
    total = ledger(settings)["totals"]
    assert (total["prompts_cut"], total["prompt_tokens_cut"], total["tokens"]) == (
        1,
        len(whole) - 128,
        128 + len(found[0]["prompt_ids"]),
    )


def test_stages_share_a_source_without_a_prompt_in_two(tmp_path: Path, settings: PrepareSetSettings) -> None:
    records = [{"prompt": f"question {n % 90}", "chosen": "yes", "rejected": f"no {n}"} for n in range(100)]
    write(tmp_path / "in" / "a.jsonl", records)
    seen: dict[str, set[tuple[int, ...]]] = {}
    counts = {}
    types: tuple[SetType, ...] = ("sft", "preference", "prompt")
    for number, name in enumerate(types):
        one = replace(settings, type=name, data_split="2,4,4", seed=number, data_arrow_output_dir=tmp_path / name)
        main(one)
        entry = ledger(one)["files"][0]
        counts[name] = entry["used"]
        assert entry["used"] + entry["of_other_stages"] == 100
    prompts = {tuple(row["prompt_ids"]) for row in rows(tmp_path / "prompt")}
    size = {len(ids) for ids in prompts}
    for name in ("sft", "preference"):
        seen[name] = {tuple(row["input_ids"][:length]) for row in rows(tmp_path / name) for length in size}
        assert not seen[name] & prompts
    assert sum(counts.values()) == 100
    assert counts["sft"] < counts["preference"]
    assert min(counts.values()) > 5


def test_weights_repeat_and_thin_and_the_holdout_is_apart(tmp_path: Path, settings: PrepareSetSettings) -> None:
    write(tmp_path / "in" / "much.jsonl", [messages(f"much {n}", "yes") for n in range(40)])
    write(tmp_path / "in" / "little.jsonl", [messages(f"little {n}", "no") for n in range(40)])
    main(replace(settings, weights="much=2,little=0.5", holdout="10%"))
    held = Counter(sequences(settings.data_arrow_output_dir / "holdout"))
    train = Counter(sequences(settings.data_arrow_output_dir))
    assert sum(held.values()) == 8
    assert not held.keys() & train.keys()
    assert sorted(train.values()) == [1] * 18 + [2] * 36
    entries = {entry["file"]: entry for entry in ledger(settings)["files"]}
    little, much = entries["in/little.jsonl"], entries["in/much.jsonl"]
    assert [little[name] for name in ("used", "held_out", "thinned_away", "in_rows", "copies")] == [40, 4, 18, 18, 18]
    assert [much[name] for name in ("used", "held_out", "thinned_away", "in_rows", "copies")] == [40, 4, 0, 36, 72]
    evaluation = PreparedCorpus.open([settings.data_arrow_output_dir / "holdout"])
    assert evaluation.num_rows == len(rows(settings.data_arrow_output_dir / "holdout")) > 0


def test_bad_records_stop_or_are_listed(tmp_path: Path, settings: PrepareSetSettings) -> None:
    path = tmp_path / "in" / "a.jsonl"
    path.parent.mkdir()
    lines = [
        json.dumps(messages("q", "a")),
        "",
        "{",
        '{"prompt": "q", "completion": "a"}',
        json.dumps({"messages": [{"role": "assistant", "content": "first"}]}),
        json.dumps(messages("q")),
        '["x"]',
        json.dumps(messages("q", "a\\ud800")).replace("\\\\", "\\"),
    ]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    with pytest.raises(InputError, match=r"a\.jsonl:3: not JSON.*or pass --bad_records skip"):
        main(settings)
    assert not [path for path in tmp_path.iterdir() if path.name != "in"]
    main(replace(settings, bad_records="skip"))
    manifest = ledger(settings)
    assert [(entry["line"], entry["reason"].split(" (")[0]) for entry in manifest["refused_records"]] == [
        (3, "not JSON"),
        (4, "is no messages record"),
        (5, "the chat template refuses it"),
        (6, "holds nothing that an assistant says"),
        (7, "holds a JSON list, not an object"),
        (8, "half a surrogate pair"),
    ]
    assert manifest["totals"]["records"] == 7
    assert len(sequences(settings.data_arrow_output_dir)) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_length": 1}, "--max_length is 1"),
        ({"num_spliced_dataset_bins": 0}, "--num_spliced_dataset_bins is 0"),
        ({"num_spliced_dataset_bins": 9}, "3 records cannot fill 9 parts"),
        ({"seed": -1}, "cannot be negative"),
        ({"data_input_dirs": " , "}, "names nothing"),
        ({"data_input_dirs": "/no/such/folder"}, "does not exist"),
        ({"long_prompts": "keep_end"}, "--long_prompts is for --type prompt"),
        ({"type": "prompt", "packing": False}, "--no_packing is for --type sft"),
        ({"type": "preference"}, "holds messages records, which have no two answers"),
        ({"layout": "prompt"}, "holds prompt records, which have no answers"),
        ({"layout": "completion"}, "is no completion record"),
        ({"chat_template": "no_such"}, "cannot be read"),
        ({"chat_template": "chatml"}, "which is no token of the tokenizer"),
        ({"data_split": "1"}, "--data_split is '1'"),
        ({"holdout": "x"}, "--holdout is 'x'"),
        ({"weights": "zz=1"}, "no input"),
        ({"weights": "a=0"}, "nothing is left to learn from"),
        ({"max_length": 5}, "holds no record that can be used"),
    ],
)
def test_mistakes_are_said_and_leave_nothing(
    tmp_path: Path, settings: PrepareSetSettings, options: dict[str, Any], reason: str
) -> None:
    write(tmp_path / "in" / "a.jsonl", chats(3))
    with pytest.raises(InputError) as caught:
        main(replace(settings, **options))
    assert reason in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_outputs_are_not_overwritten_unasked_nor_put_where_they_hurt(
    tmp_path: Path, settings: PrepareSetSettings
) -> None:
    write(tmp_path / "in" / "a.jsonl", chats(3))
    main(settings)
    before = outputs(settings.data_arrow_output_dir)
    with pytest.raises(InputError, match="exists already"):
        main(settings)
    with pytest.raises(InputError, match="cannot fill"):
        main(replace(settings, overwrite=True, num_spliced_dataset_bins=50))
    assert outputs(settings.data_arrow_output_dir) == before
    main(replace(settings, overwrite=True))
    assert outputs(settings.data_arrow_output_dir) == before
    with pytest.raises(InputError, match="lies in the input"):
        main(replace(settings, data_arrow_output_dir=tmp_path / "in" / "out"))
    with pytest.raises(InputError, match="lies in this output"):
        main(replace(settings, data_arrow_output_dir=tmp_path, overwrite=True))
    found = replace(settings, data_input_dirs=str(tmp_path / "i*" / "*.jsonl"), overwrite=True)
    with pytest.raises(InputError, match=r"in/a.jsonl lies in this output"):
        main(replace(found, data_arrow_output_dir=tmp_path / "in"))


def test_a_system_turn_can_be_given(tmp_path: Path, settings: PrepareSetSettings, processor: Any) -> None:
    own = {"messages": [{"role": "system", "content": "mine"}, *messages("q", "a")["messages"]]}
    write(tmp_path / "in" / "a.jsonl", [own, messages("q", "a")])
    main(replace(settings, system="be kind\n"))
    shown = sorted(processor.decode([i for i in ids if i > 2]) for ids, _ in sequences(settings.data_arrow_output_dir))
    assert [text.split("\n")[1] for text in shown] == ["be kind", "mine"]
    assert ledger(settings)["totals"]["system_turns_added"] == 1


def test_a_tokenizer_that_cuts_parts_otherwise_is_refused(tmp_path: Path, settings: PrepareSetSettings) -> None:
    """One that puts its prefix before the first word alone, as some conversions of Llama-2 do."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    characters = ["▁", *"abcdefghijklmnopqrstuvwxyz[]/INSTQ0123456789:\n <>|_.,'"]
    tokenizer = Tokenizer(BPE({c: n for n, c in enumerate(dict.fromkeys(characters))}, [], unk_token="▁"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    write(tmp_path / "in" / "a.jsonl", [messages("q", "a")])
    with pytest.raises(InputError, match=r"other tokens of a chat than of its parts \(in/a\.jsonl:1\)"):
        main(replace(settings, tokenizer_dir=folder))


def test_a_ledger_that_does_not_balance_fails_the_command(
    tmp_path: Path, settings: PrepareSetSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "in" / "a.jsonl", chats(3))
    true_entries = conversation_ledger.file_entries

    def one_more(field: str, *arguments: Any) -> list[dict[str, Any]]:
        entries = true_entries(*arguments)
        entries[0][field] += 1
        return entries

    for field in ("records", "turns_cut", "tokens", "learned_tokens", "sequences", "used"):
        monkeypatch.setattr(conversation_ledger, "file_entries", partial(one_more, field))
        with pytest.raises(UnbalancedError, match=r"of in/a\.jsonl"):
            main(settings)
    assert not settings.data_arrow_output_dir.exists()


def test_the_command_line(tmp_path: Path, settings: PrepareSetSettings) -> None:
    write(tmp_path / "in" / "a.jsonl", chats(3))
    command = [sys.executable, "tools/prepare_dataset.py", "--type", "sft", "--data_input_dirs", str(tmp_path / "in")]
    command += ["--tokenizer_dir", str(settings.tokenizer_dir), "--data_arrow_output_dir", str(tmp_path / "out")]
    command += ["--chat_template", "llama2", "--num_workers", "1"]
    run = subprocess.run([*command, "--no_packing"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
    assert "in/a.jsonl: messages, 3 of 3 used" in run.stdout
    assert len(rows(tmp_path / "out")) == 3
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
