"""The demo's own arithmetic: steps from time, the table, the verdict that can go against it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from matplotlib import image

from examples import demo, demo_commands, demo_ingredients, demo_outcome
from examples.demo_outcome import Measured, Point


def measured(road: str, name: str, seconds: float, tokens: float, chinese: float, english: float) -> Measured:
    return Measured(
        Point(road, name, Path(name), seconds),
        {"chinese": tokens, "english": 0.3},
        {"chinese": chinese, "english": english},
    )


def outcome(chinese: float = 0.8, english: float = 0.5, tokens: float = 0.7) -> list[Measured]:
    return [
        measured("base", "base", 0, 3.0, 16.0, 0.5),
        measured("adapted", "expanded", 0, tokens, 3.0, 0.6),
        measured("adapted", "replay", 60, tokens, chinese, english),
        measured("control", "after 5 steps", 30, 3.0, 4.0, 0.7),
        measured("control", "after 10 steps", 60, 3.0, 2.0, 0.6),
    ]


@pytest.mark.parametrize(
    ("seconds", "each", "steps"), [(60.0, 0.5, 120), (60.0, 0.7, 86), (0.1, 0.5, 1), (0.0, 1.0, 1)]
)
def test_steps_that_fit_into_a_time(seconds: float, each: float, steps: int) -> None:
    assert demo.steps_in(seconds, each) == steps


def test_a_story_that_holds_has_no_shortfall() -> None:
    assert demo_outcome.judge(outcome()) == []
    assert demo_outcome.judge(outcome(chinese=1.6, english=0.525, tokens=1.5)) == []


@pytest.mark.parametrize(
    ("wrong", "word"),
    [({"chinese": 1.7}, "unadapted"), ({"english": 0.54}, "English"), ({"tokens": 1.6}, "tokens"),
     ({"chinese": float("nan")}, "unadapted"), ({"english": float("nan")}, "English")],
)  # fmt: skip
def test_a_story_that_does_not_hold_says_why(wrong: dict[str, float], word: str) -> None:
    (sentence,) = demo_outcome.judge(outcome(**wrong))
    assert word in sentence


def test_the_table_has_a_line_for_every_model() -> None:
    lines = demo_outcome.table(outcome()).splitlines()
    assert len(lines) == 6
    assert lines[3].split() == ["adapted", "replay", "60", "s", "0.700", "0.300", "0.800", "0.500"]
    assert len({len(line) for line in lines[1:]}) == 1
    assert "0.80 bits per byte of Chinese, the one with the old vocabulary 2.00" in demo_outcome.story(outcome())


def test_measures_are_read_from_the_evaluation(tmp_path: Path) -> None:
    scores = [
        {"model": model, "file": file, "tokens_per_character": tokens, "bits_per_byte": bits}
        for model, file, tokens, bits in [("a", "zh", 1.0, 2.0), ("a", "en", 3.0, 4.0), ("b", "zh", 5.0, 6.0)]
    ]
    (tmp_path / "results.json").write_text(json.dumps({"scores": scores}), encoding="utf-8")
    point = Point("base", "base", Path("a"), 0.0)
    (one,) = demo_outcome.read_measures([point], {"zh": "chinese", "en": "english"}, tmp_path / "results.json")
    assert one == Measured(point, {"chinese": 1.0, "english": 3.0}, {"chinese": 2.0, "english": 4.0})


def test_summary_and_picture_hold_every_model(tmp_path: Path) -> None:
    demo_outcome.write_summary(outcome(), {"adapted": {"问": "答"}}, ["a reason"], 61.5, tmp_path / "summary.json")
    content = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert [model["name"] for model in content["models"]] == [one.point.name for one in outcome()]
    assert content["models"][2]["bits_per_byte"]["chinese"] == 0.8
    assert (content["samples"], content["shortfalls"], content["seconds"]) == (
        {"adapted": {"问": "答"}},
        ["a reason"],
        61.5,
    )
    demo_outcome.draw_bits_per_byte(outcome(), tmp_path / "bits.png")
    assert image.imread(tmp_path / "bits.png").shape[1] > 800


def test_running_total() -> None:
    assert demo_outcome.running_total([1.0, 2.0, 0.5]) == [1.0, 3.0, 3.5]
    assert demo_outcome.running_total([]) == []


def test_a_command_is_shown_as_one_would_type_it() -> None:
    shown = demo_commands.shown([sys.executable, "train.py"], ["--lr", "0.1", "--prompt", "a b", "--freeze"])
    assert shown == "python train.py \\\n    --lr 0.1 \\\n    --prompt 'a b' \\\n    --freeze"


def test_a_command_that_fails_ends_the_demo(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys; print('out'); sys.exit(len(sys.argv) - 1)", encoding="utf-8")
    assert demo_commands.run_tool(str(script), keep_output=True) == "out\n"
    with pytest.raises(SystemExit) as left:
        demo_commands.run_tool(str(script), "--flag", "value")
    assert left.value.code == 1
    assert "exited with 2" in capfd.readouterr().err


def test_checkpoints_are_ordered_by_step() -> None:
    names = ["epoch-1_step-110", "epoch-0_step-55"]
    assert sorted(map(Path, names), key=demo.step_of) == [Path(names[1]), Path(names[0])]


def test_the_stages_are_those_the_issue_names() -> None:
    assert [stage.name for stage in demo.STAGES] == ["align", "inject", "replay"]
    assert "--freeze_non_embeds_params" in demo.STAGES[0].flags
    assert all(path.is_file() for path in map(demo.ROOT.joinpath, demo.HELD_OUT.values()))


def test_pieces_leave_what_the_base_vocabulary_spells(tmp_path: Path) -> None:
    """Only Chinese characters and punctuation are added, so that English keeps its tokens."""
    lines = demo_ingredients.texts(demo.ROOT / demo.CORPUS / "chinese.jsonl")
    demo_ingredients.learn_chinese_pieces(lines, tmp_path / "pieces.jsonl")
    pieces = [json.loads(line)["piece"] for line in (tmp_path / "pieces.jsonl").read_text("utf-8").splitlines()]
    assert len(pieces) == len(set(pieces)) > 1000
    assert not [piece for piece in pieces if len(piece) > 4 or any(c.isascii() or c == "\u2581" for c in piece)]
    covered = set("".join(pieces))
    assert not [c for line in lines for c in line if "\u4e00" <= c <= "\u9fff" and c not in covered]


def test_the_base_tokenizer_is_one_of_llamas_kind(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    demo_ingredients.make_base_tokenizer(demo_ingredients.texts(demo.ROOT / demo.HELD_OUT["english"]), tmp_path / "t")
    processor = SentencePieceProcessor(model_file=str(tmp_path / "t" / "tokenizer.model"))
    assert processor.vocab_size() == demo_ingredients.ENGLISH_PIECES
    assert [processor.id_to_piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "<0x00>"]
    for text in ("One  day in 1204", " leading", "长湖", "🙂"):
        assert processor.decode(processor.encode(text)) == text
    assert len(processor.encode("1204")) == 5
