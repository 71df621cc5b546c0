"""The picture of a corpus: what is counted for it, and that it is drawn whatever the corpus is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from colossal_llama2.dataset.corpus import PreparedCorpus
from colossal_llama2.dataset.inspect_dataset import InspectSettings, main
from colossal_llama2.dataset.inspect_report import largest_and_others, measure_shape, rows_by_fill
from colossal_llama2.errors import InputError

RECORDS = [
    {"target": "the fox", "category": "a"},
    {"source": "the lazy dog", "target": " jumps", "category": "_b $x$"},
    {"target": "fox " * 40, "category": "中文"},
]
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def prepared(tmp_path: Path, prepare: Callable[..., Any]) -> Any:
    return prepare(tmp_path, RECORDS, max_length=32, holdout="0")


def test_rows_and_pieces_are_counted_by_length(prepared: Any, llama_tokenizer_dir: Path) -> None:
    tokenizer = prepared.manifest["tokenizer"]
    bos, eos = tokenizer["bos_token_id"], tokenizer["eos_token_id"]
    corpus = PreparedCorpus.open([prepared.settings.data_arrow_output_dir])
    shape = measure_shape(corpus, bos, eos)
    rows = [row for bucket in prepared.rows() for row in bucket]
    pieces = [ids for ids, _ in prepared.pieces()]
    whole = [len(ids) for ids in pieces if ids[0] == bos and ids[-1] == eos]
    assert len(whole) == 2 < len(pieces), "the long one is cut"
    assert shape.max_length == 32
    assert np.array_equal(shape.rows, np.bincount([len(row["input_ids"]) for row in rows], minlength=33))
    assert np.array_equal(shape.whole, np.bincount(whole, minlength=33))
    assert np.array_equal(shape.whole + shape.cut, np.bincount([len(ids) for ids in pieces], minlength=33))
    unmarked = measure_shape(corpus, None, None)
    assert unmarked.cut.sum() == 0, "without markers nothing tells a piece from a document"


def test_a_full_row_is_not_among_the_nearly_full() -> None:
    rows = np.zeros(2001, dtype=np.int64)
    rows[[0, 999, 1000, 1799, 1979, 1980, 1997, 1998, 1999, 2000]] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]
    assert list(rows_by_fill(rows).values()) == [3, 4 + 8, 16, 32 + 64, 128 + 256, 512]


def test_the_largest_categories_are_kept_and_the_rest_added_up() -> None:
    tokens = {"small": [1, 0], "large": [5, 6], "middle": [3, 3], "tiny": [0, 1]}
    kept = [(name, list(values)) for name, values in largest_and_others(tokens, 2)]
    assert kept == [("large", [5, 6]), ("middle", [3, 3]), ("2 others", [1, 1])]
    assert [name for name, _ in largest_and_others(tokens, 4)] == ["large", "middle", "small", "tiny"]


@pytest.mark.parametrize(("bins", "categories"), [(1, 1), (3, 12), (70, 2)])
def test_it_is_drawn(bins: int, categories: int, tmp_path: Path, prepare: Callable[..., Any]) -> None:
    name = "a category with a very long name, number"
    records = [{"target": f"the fox {n}", "category": f"{name} {n % categories}"} for n in range(max(bins, categories))]
    prepare(tmp_path, records, num_spliced_dataset_bins=bins)
    main(InspectSettings(tmp_path / "arrow", report=tmp_path / "new" / "report.png"))
    assert (tmp_path / "new" / "report.png").read_bytes().startswith(PNG)


@pytest.mark.filterwarnings("error")
def test_odd_names_of_categories_are_drawn_or_complained_of_in_one_line(
    prepared: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(InspectSettings(prepared.settings.data_arrow_output_dir, report=tmp_path / "report.png"))
    assert (tmp_path / "report.png").read_bytes().startswith(PNG)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == captured.err.count("no font of this machine") <= 1


@pytest.mark.parametrize("part", ["part-00000", "holdout"])
def test_what_is_left_out_is_said(
    part: str, tmp_path: Path, prepare: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path, RECORDS * 3, max_length=32, holdout="50%")
    capsys.readouterr()
    main(InspectSettings(tmp_path / "arrow" / part, report=tmp_path / "report.png"))
    assert (tmp_path / "report.png").read_bytes().startswith(PNG)
    assert "categories per bucket are left out: " in capsys.readouterr().out


def test_a_folder_is_not_replaced(prepared: Any, tmp_path: Path) -> None:
    settings = InspectSettings(prepared.settings.data_arrow_output_dir)
    with pytest.raises(InputError, match="is a folder"):
        main(replace(settings, report=tmp_path))
