"""Calibration rows: full, of the seed's choosing, and never of the text that is measured on."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from colossal_llama2.errors import InputError
from colossal_llama2.report.calibration import calibration_rows, read_documents, refuse_shared
from colossal_llama2.report.evaluation import Text
from colossal_llama2.tokenizer.loading import load_encoder

TEXTS = [Text(f"the quick brown fox jumps over {number} lazy dogs" * 3) for number in range(20)]


def test_rows_hold_whole_documents_one_after_the_other(llama_tokenizer_dir: Path) -> None:
    encoder = load_encoder(llama_tokenizer_dir)
    rows = calibration_rows(TEXTS, encoder, 1, 4, 32, seed=7)
    assert rows.shape == (4, 32)
    flat = rows.reshape(-1).tolist()
    known = {tuple(encoder.encode([text.target]).ids.tolist()) for text in TEXTS}
    begins = [index for index, token in enumerate(flat) if token == 1]
    assert begins[0] == 0
    whole = [tuple(flat[a + 1 : b]) for a, b in itertools.pairwise(begins)]
    assert len(whole) >= 2
    assert set(whole) <= known
    assert calibration_rows(TEXTS, encoder, 1, 4, 32, seed=7).tolist() == rows.tolist()
    assert calibration_rows(TEXTS, encoder, 1, 4, 32, seed=8).tolist() != rows.tolist()


def test_a_short_text_gives_fewer_rows_aloud_and_too_short_a_one_none(
    llama_tokenizer_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = load_encoder(llama_tokenizer_dir)
    rows = calibration_rows(TEXTS[:2], encoder, 1, 100, 16, seed=1)
    assert 1 <= len(rows) < 100
    assert f"fills {len(rows)} rows of 16 tokens, not 100" in capsys.readouterr().err
    with pytest.raises(InputError, match="smaller --calibration_length"):
        calibration_rows(TEXTS[:1], encoder, 1, 1, 4096, seed=1)


def test_records_and_plain_text_are_read(tmp_path: Path) -> None:
    records = tmp_path / "a.jsonl"
    records.write_text(json.dumps({"source": "a", "target": "b", "category": "c"}) + "\n", encoding="utf-8")
    assert read_documents(records) == [Text("b", "a")]
    plain = tmp_path / "a.txt"
    plain.write_bytes("\ufeffone\r\nline\r\n\r\n\r\n今天\n\n".encode())
    assert read_documents(plain) == [Text("one\nline"), Text("今天")]
    for content in (b"", b" \n\n ", b"\xff\xfe\x00"):
        plain.write_bytes(content)
        with pytest.raises(InputError):
            read_documents(plain)
    with pytest.raises(InputError, match="cannot be read"):
        read_documents(tmp_path / "absent.txt")


def test_text_that_is_measured_on_is_kept_out(tmp_path: Path) -> None:
    refuse_shared(TEXTS[:10], TEXTS[10:], tmp_path)
    with pytest.raises(InputError, match="1 of 11 documents are in the calibration text as well"):
        refuse_shared(TEXTS[:10], TEXTS[9:], tmp_path)
