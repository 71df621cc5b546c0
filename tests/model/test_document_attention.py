"""Document attention against the dense masked form, forward and backward, and through whole models."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from colossal_llama2.errors import InputError
from colossal_llama2.model import document_attention as da


def dense(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bounds: list[int], window: int | None) -> torch.Tensor:
    """The same in one float64 matrix over B * S positions: allowed = same document, not later, within the window."""
    batch, heads, length, depth = q.shape
    document = torch.zeros(batch * length, dtype=torch.long)
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
        document[start:end] = number
    position = torch.arange(batch * length)
    distance = position[:, None] - position[None, :]
    allowed = (document[:, None] == document[None, :]) & (distance >= 0)
    if window is not None:
        allowed &= distance < window
    q, k, v = (t.double().transpose(1, 2).reshape(batch * length, -1, depth).transpose(0, 1) for t in (q, k, v))
    k, v = (t.repeat_interleave(heads // len(t), dim=0) for t in (k, v))
    scores = (q @ k.transpose(1, 2)) * 0.3
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1)
    return (weights @ v).transpose(0, 1).reshape(batch, length, heads, depth)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_equals_the_dense_masked_form(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 24), label="row length")
    rows = data.draw(st.integers(1, 3), label="rows")
    kv_heads, groups = data.draw(st.sampled_from([(1, 1), (1, 4), (2, 2)]), label="heads")
    window = data.draw(st.none() | st.integers(1, 8), label="window")
    bounds = [0]
    for row in range(rows):
        cuts = data.draw(st.sets(st.integers(1, length)), label="cuts") | {length}
        bounds += [row * length + cut for cut in sorted(cuts)]
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    q = torch.randn(rows, kv_heads * groups, length, 8, requires_grad=True)
    k, v = (torch.randn(rows, kv_heads, length, 8, requires_grad=True) for _ in range(2))
    kwargs: dict[str, Any] = {"cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32), "scaling": 0.3}
    ours, weights = da.document_attention(nn.Module(), q, k, v, None, sliding_window=window, **kwargs)
    theirs = dense(q, k, v, bounds, window)
    assert weights is None
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-5)
    upstream = torch.randn_like(ours)
    ours_gradients = torch.autograd.grad((ours * upstream).sum(), (q, k, v))
    their_gradients = torch.autograd.grad((theirs * upstream.double()).sum(), (q, k, v))
    for a, b in zip(ours_gradients, their_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def tiny_model(kind: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    da.register()
    torch.manual_seed(0)
    extra = {"sliding_window": 6} if kind == "mistral" else {}
    config = AutoConfig.for_model(
        kind,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        **extra,
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation=da.NAME).eval()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_spliced_row_gives_every_document_the_logits_it_has_alone(kind: str) -> None:
    model = tiny_model(kind)
    generator = torch.Generator().manual_seed(1)
    lengths = [9, 1, 14]
    documents = [torch.randint(0, 64, (1, n), generator=generator) for n in lengths]

    def logits(ids: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
        positions = torch.cat([torch.arange(n) for n in lengths])[None]
        with torch.no_grad():
            return model(ids, position_ids=positions, cu_seq_lens_q=bounds, use_cache=False).logits

    together = logits(torch.cat(documents, dim=1), lengths).split(lengths, dim=1)
    for document, spliced in zip(documents, together, strict=True):
        torch.testing.assert_close(spliced, logits(document, [document.shape[1]]), rtol=1e-4, atol=1e-5)
        model.set_attn_implementation("eager")
        with torch.no_grad():
            plain = model(document, use_cache=False).logits
        model.set_attn_implementation(da.NAME)
        torch.testing.assert_close(spliced, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("has_grouping", [False, True])
def test_the_flash_kernel_is_called_as_every_torch_takes_it(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, window: int | None, has_grouping: bool
) -> None:
    """A stand-in for the CUDA kernel, with the signature of torch 2.11, which later ones only add to."""
    from torch.nn.attention import varlen

    def kernel(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        assert query.dtype == key.dtype == value.dtype == torch.bfloat16
        assert (query.shape == key.shape) is not enable_gqa
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert max_q == max_k == int(cu_seq_q.diff().max())
        left, right = window_size
        assert right == 0
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (query, key, value))
        plain, _ = da.document_attention(
            nn.Module(), q, k, v, None, cu_seq_lens_q=cu_seq_q, scaling=scale, sliding_window=left + 1 or None
        )
        return plain[0]

    def without_grouping(q: Any, k: Any, v: Any, *bounds: Any, scale: Any, window_size: Any) -> torch.Tensor:
        return kernel(q, k, v, *bounds, scale=scale, window_size=window_size)

    monkeypatch.setattr(varlen, "varlen_attn", kernel if has_grouping else without_grouping)
    torch.manual_seed(0)
    bounds = torch.tensor([0, 10, 11, 24, 48], dtype=torch.int32)
    q, k = torch.randn(2, 8, 24, 16, dtype=dtype), torch.randn(2, 2, 24, 16, dtype=dtype)
    v = torch.randn(2, 2, 24, 16, dtype=torch.bfloat16)  # under autocast the values alone are in half precision
    kwargs = {"cu_seq_lens_q": bounds, "max_length_q": 24, "scaling": 0.25, "sliding_window": window}
    fast, _ = da.document_flash_attention(nn.Module(), q, k, v, None, **kwargs)
    plain, _ = da.document_attention(nn.Module(), q.float(), k.float(), v.float(), None, **kwargs)
    torch.testing.assert_close(fast.float(), plain, rtol=3e-2, atol=3e-2)


@pytest.mark.parametrize("function", [da.document_attention, da.document_flash_attention])
@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_what_is_not_computed_is_refused(function: Any, name: str) -> None:
    q = torch.randn(1, 2, 4, 8)
    bounds = torch.tensor([0, 4], dtype=torch.int32)
    with pytest.raises(InputError, match=name):
        function(nn.Module(), q, q, q, None, cu_seq_lens_q=bounds, max_length_q=4, **{name: 50.0})
    with pytest.raises(InputError, match="leave out --use_flash_attn"):
        da.document_flash_attention(nn.Module(), q, q, q, None, cu_seq_lens_q=bounds, max_length_q=4, dropout=0.1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the kernel exists on CUDA only")
def test_the_flash_kernel_equals_the_plain_one() -> None:
    torch.manual_seed(0)
    bounds = torch.tensor([0, 100, 101, 256, 512], dtype=torch.int32)
    q = torch.randn(2, 8, 256, 64, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(2, 2, 256, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for window in (None, 50):
        kwargs = {"cu_seq_lens_q": bounds, "max_length_q": 256, "scaling": 0.125, "sliding_window": window}
        fast, _ = da.document_flash_attention(nn.Module(), q, k, v, None, **kwargs)
        plain, _ = da.document_attention(nn.Module(), q, k, v, None, **kwargs)
        torch.testing.assert_close(fast, plain, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("kv_heads", "groups"), [(4, 1), (2, 2), (1, 4)])
def test_bf16_is_as_near_as_its_eight_bits_let_it(kv_heads: int, groups: int, window: int | None) -> None:
    torch.manual_seed(0)
    bounds = [0, 3, 20, 21, 48, 96]
    shapes = [(2, heads, 48, 16) for heads in (kv_heads * groups, kv_heads, kv_heads)]
    q, k, v = (torch.randn(shape).to(torch.bfloat16).requires_grad_() for shape in shapes)
    cut = torch.tensor(bounds, dtype=torch.int32)
    documents = da.Documents.of(cut, cut)
    ours, _ = da.document_attention(nn.Module(), q, k, v, None, documents=documents, scaling=0.3, sliding_window=window)
    theirs = dense(q, k, v, bounds, window)
    torch.testing.assert_close(ours.double(), theirs, rtol=2e-2, atol=2e-2)
    upstream = torch.randn_like(theirs)
    ours_gradients = torch.autograd.grad((ours.double() * upstream).sum(), (q, k, v))
    their_gradients = torch.autograd.grad((theirs * upstream).sum(), (q, k, v))
    for a, b in zip(ours_gradients, their_gradients, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=5e-2, atol=5e-2)


def test_lengths_are_read_once_a_batch() -> None:
    """What layers are given holds everything they need; bounds that lie on a device would be waited for."""
    bounds = torch.tensor([0, 5, 6, 24, 48], dtype=torch.int32)
    documents = da.Documents.of(bounds, bounds)
    assert documents.lengths == (5, 1, 18, 24)
    assert documents.longest == 24
    q = torch.randn(2, 4, 24, 8)
    unread = da.Documents(documents.lengths, bounds.to("meta"), 24)  # cannot be read
    by_lengths, _ = da.document_attention(nn.Module(), q, q, q, None, documents=unread)
    by_bounds, _ = da.document_attention(nn.Module(), q, q, q, None, cu_seq_lens_q=bounds)
    torch.testing.assert_close(by_lengths, by_bounds)


@pytest.mark.parametrize("window", [None, 4])
def test_rows_of_one_document_are_what_they_are_one_by_one(window: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, heads, 9, 8, generator=draw) for heads in (4, 2, 2))

    def attend(rows: slice, bounds: list[int]) -> torch.Tensor:
        parts = [tensor[rows] for tensor in (query, key, value)]
        bound = {"cu_seq_lens_q": torch.tensor(bounds, dtype=torch.int32), "sliding_window": window}
        return da.document_attention(torch.nn.Identity(), *parts, None, **bound)[0]

    together = attend(slice(0, 2), [0, 9, 18])
    assert together.shape == (2, 9, 4, 8)
    for row in (0, 1):  # cut in two documents that are its beginning and its end: the beginning is the same
        torch.testing.assert_close(together[row : row + 1], attend(slice(row, row + 1), [0, 9]))
        torch.testing.assert_close(together[row, :5], attend(slice(row, row + 1), [0, 5, 9])[0, :5])
