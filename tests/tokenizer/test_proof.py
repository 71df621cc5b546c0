"""A proof finds an encoder that is wrong, and its verdict is remembered where that is possible."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from colossal_llama2.tokenizer.encoder import EncodedTexts, Encoder, Spans
from colossal_llama2.tokenizer.loading import load_encoder
from colossal_llama2.tokenizer.proof import CACHE_VARIABLE, Verdict, proof_key, prove, recall, remember
from colossal_llama2.tokenizer.seams import TokenWidths

TEXTS = [*(f"the quick fox {number}" for number in range(9000)), "今天"]


class Wrong(Encoder):
    """An encoder with a mistake in the text that holds a certain word."""

    kind = "wrong"

    def __init__(self, reference: Encoder, word: str, mistake: str) -> None:
        super().__init__(reference.vocabulary, reference.again)
        self.reference, self.word, self.mistake = reference, word, mistake

    def _encode(self, texts: Sequence[str]) -> EncodedTexts:
        encoded = self.reference.encode(texts)
        for index, text in enumerate(texts):
            if self.word in text and self.mistake == "id":
                encoded.ids[encoded.offsets[index + 1] - 1] += 1
            elif self.word in text and self.mistake == "length":
                encoded.offsets[index + 1 :] -= 1
                return EncodedTexts(encoded.ids[:-1], encoded.offsets)
            elif self.word in text and self.mistake == "panic":
                raise BaseException("index out of bounds")
        return encoded

    _widths: TokenWidths | None = None

    def _spans(self, text: str) -> Spans:
        return []


@pytest.mark.parametrize(("mistake", "compared"), [("id", 8765), ("length", 8765), ("panic", 8192)])
def test_one_wrong_text_in_thousands_is_found(mistake: str, compared: int, llama_tokenizer_dir: Path) -> None:
    reference = load_encoder(llama_tokenizer_dir)
    assert prove(reference, [Wrong(reference, "never", mistake)], TEXTS) == Verdict(9001, None)
    verdict = prove(reference, [reference, Wrong(reference, "8765", mistake)], TEXTS)
    assert verdict.texts == compared
    assert verdict.difference is not None
    assert ("index out of bounds" if mistake == "panic" else "'the quick fox 8765' is [") in verdict.difference


def test_keys_follow_what_is_compared_and_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        proof_key(parts, packages) for parts in ([b"a", b"b"], [b"ab"], [b"b", b"a"]) for packages in ([], ["numpy"])
    }
    assert len(keys) == 6
    before = proof_key([b"a"], ["numpy"])
    assert before in {*keys, before}
    monkeypatch.setattr("colossal_llama2.tokenizer.proof.version", lambda name: "99")
    assert proof_key([b"a"], ["numpy"]) != before


@pytest.mark.parametrize("verdict", [Verdict(3, None), Verdict(2, "'\\ud800\n今' is [1] and [2]")])
def test_verdicts_are_remembered(verdict: Verdict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "deep" / "cache"))
    assert recall("k") is None
    remember("k", verdict)
    assert recall("k") == verdict
    assert [path.name for path in (tmp_path / "deep" / "cache" / "proofs").iterdir()] == ["k.json"]


@pytest.mark.parametrize(
    "content",
    [
        "", "{", "[]", "3", "[" * 100_000, '{"texts": 1}', '{"texts": "x", "difference": null}',
        '{"texts": Infinity, "difference": null}', "\xff",
    ],
)  # fmt: skip
def test_a_damaged_verdict_is_none(content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    (tmp_path / "proofs").mkdir()
    (tmp_path / "proofs" / "k.json").write_bytes(content.encode("latin-1"))
    assert recall("k") is None


def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    remember("k", Verdict(1, None))
    assert recall("k") is None
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    remember("k", Verdict(1, None))
    assert (tmp_path / "xdg" / "colossal_llama2" / "proofs" / "k.json").is_file()
