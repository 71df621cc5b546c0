"""gigatoken is used where it is proved, once; otherwise the reference is, and a line says why."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.tokenizer import proof, proved_gigatoken
from colossal_llama2.tokenizer.loading import load_encoder
from colossal_llama2.tokenizer.piece_model import parse_piece_model

pytest.importorskip("gigatoken")

TEXTS = ["the quick  fox", "</s> 今天", ""]


@pytest.fixture(autouse=True)
def nothing_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without a verdict and without a line said."""
    monkeypatch.setenv(proof.CACHE_VARIABLE, str(tmp_path / "cache"))
    proved_gigatoken.say_fallback.cache_clear()


@pytest.fixture
def no_proof(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give a function after which no proof can be made."""

    def refuse(*_: Any) -> None:
        raise AssertionError("proved again")

    return lambda: monkeypatch.setattr(proved_gigatoken, "prove", refuse)


@pytest.fixture(params=["llama", "byte_level"])
def folder(request: pytest.FixtureRequest) -> Path:
    """Give a tokenizer folder of either kind."""
    found: Path = request.getfixturevalue(f"{request.param}_tokenizer_dir")
    return found


def test_proved_once_and_then_known(
    folder: Path, no_proof: Callable[[], None], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    reference, encoder = load_encoder(folder), load_encoder(folder, kind="auto")
    assert encoder.kind == "gigatoken"
    assert reference.kind != "gigatoken"
    assert reference.proof is None
    assert encoder.encode(TEXTS).ids.tolist() == reference.encode(TEXTS).ids.tolist()
    assert encoder.vocabulary == reference.vocabulary
    no_proof()
    assert load_encoder(folder, kind="gigatoken").kind == "gigatoken"
    assert capsys.readouterr().err == ""
    shutil.rmtree(tmp_path / "cache")
    assert load_encoder(folder, kind="auto", proof=encoder.proof).kind == "gigatoken"  # as a worker does
    with pytest.raises(AssertionError, match="proved again"):
        load_encoder(folder, kind="auto", proof="of another version")


def test_one_wrong_id_is_caught_named_and_remembered(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    no_proof: Callable[[], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    load = proved_gigatoken.GigatokenEncoder._run
    victim = load_encoder(folder).encode(["quick"]).ids.tolist()[-1]

    def wrong(self: Any, strings: Any) -> Any:
        encoded = load(self, strings)
        encoded.ids[encoded.ids == victim] = victim - 1
        return encoded

    monkeypatch.setattr(proved_gigatoken.GigatokenEncoder, "_run", wrong)
    for _ in range(2):
        encoder = load_encoder(folder, kind="auto")
        assert encoder.kind in ("sentencepiece", "tokenizers")
        no_proof()  # the second time the verdict is known
    said = capsys.readouterr().err
    assert said.count("warning:") == said.count("\n") == 1
    assert f"{folder}: encoding with {encoder.kind}, not with gigatoken: other ids for " in said
    assert str(victim) in said
    with pytest.raises(InputError, match="gigatoken cannot encode with this tokenizer: other ids for"):
        load_encoder(folder, kind="gigatoken")


def test_a_wrong_order_of_merges_is_caught(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = proved_gigatoken.GigatokenEncoder
    changed = []

    def exchanged(model: Any, *rest: Any) -> Any:
        content = json.loads(model.content)
        merges = content["model"]["merges"]
        first = next(i for i, (_, right) in enumerate(merges) if any(left == right for left, _ in merges[i + 1 :]))
        second = next(i for i in range(first + 1, len(merges)) if merges[i][0] == merges[first][1])
        merges[first], merges[second] = merges[second], merges[first]
        changed.append((first, second))
        return load(dataclasses.replace(model, content=json.dumps(content)), *rest)

    monkeypatch.setattr(proved_gigatoken, "GigatokenEncoder", exchanged)
    assert load_encoder(folder, kind="auto").kind != "gigatoken"
    assert changed


def test_without_gigatoken_there_is_a_line_and_the_reference(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(proved_gigatoken, "missing_package", lambda: "gigatoken")
    for _ in range(2):
        assert load_encoder(folder, kind="auto").kind != "gigatoken"
    assert capsys.readouterr().err.count("gigatoken is not installed") == 1
    with pytest.raises(InputError, match="not installed"):
        load_encoder(folder, kind="gigatoken")


def test_ties_fall_back_with_the_reason(
    tmp_path: Path, piece_model_bytes: Callable[..., bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    model = parse_piece_model(piece_model_bytes())
    for entry in model.pieces[-2:]:
        entry.piece, entry.score = entry.piece + "qq", -5000.0
    (tmp_path / "tokenizer.model").write_bytes(model.SerializeToString())
    encoder = load_encoder(tmp_path, kind="auto")
    assert encoder.kind == "sentencepiece"
    assert "scores that are not unique" in capsys.readouterr().err


def test_what_gigatoken_cannot_read_falls_back(
    tmp_path: Path, byte_level_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((byte_level_tokenizer_dir / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_encoder(tmp_path, kind="auto").kind == "tokenizers"
    assert "gigatoken cannot read it" in capsys.readouterr().err
