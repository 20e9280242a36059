"""Activations arrive as they were sent, and no header makes a receiver do anything but refuse it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elaswave.errors import ConfigError, ProtocolError
from elaswave.pipeline.message import (
    ALIGNMENT,
    DIMS_MAX,
    DTYPES,
    HEADER_WORDS,
    PAYLOAD_BYTES_MAX,
    TENSORS_MAX,
    describe,
    empty_like,
    pack,
    room_for,
)

BYTES_MAX = 1 << 20
"""No test makes room for more."""
WORDS = 3 + DIMS_MAX


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """Any tensor that a layer may give: of any dtype and shape, perhaps not contiguous."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=DIMS_MAX))
    seed = draw(st.integers(0, 99))
    x = torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    if dtype.is_floating_point:
        x.requires_grad_(draw(st.booleans()))
    return x.transpose(0, -1) if len(shape) > 1 and draw(st.booleans()) else x


messages = st.lists(tensors(), max_size=4)


def header_of(*rows: tuple[int, int, tuple[int, ...]], count: int | None = None) -> torch.Tensor:
    """A header of (kind, flag, shape) rows; shapes may have any number of dims."""
    words = [len(rows) if count is None else count]
    for kind, flag, shape in rows:
        words += [kind, flag, len(shape), *(*shape, *[0] * DIMS_MAX)[:DIMS_MAX]]
    return torch.tensor((words + [0] * HEADER_WORDS)[:HEADER_WORDS], dtype=torch.int64)


@given(messages)
def test_what_is_packed_arrives_with_its_kinds_shapes_and_flags(sent):
    header = describe(sent)
    assert (header.dtype, header.shape) == (torch.int64, (HEADER_WORDS,))
    payload, views, flags = empty_like(header)
    message = pack(sent)
    assert (message.dtype, message.shape) == (payload.dtype, payload.shape)
    payload.copy_(message)
    assert [(x.dtype, x.shape) for x in views] == [(x.dtype, x.shape) for x in sent]
    assert all(torch.equal(view, x) for view, x in zip(views, sent, strict=True))
    assert list(flags) == [x.requires_grad for x in sent]
    assert all(view.data_ptr() % ALIGNMENT == 0 for view in views if view.numel())


@given(messages)
def test_a_gradient_has_the_room_of_what_was_sent(sent):
    payload, views = room_for(sent)
    assert payload.shape == pack(sent).shape
    assert [(x.dtype, x.shape) for x in views] == [(x.dtype, x.shape) for x in sent]
    for view, x in zip(views, sent, strict=True):
        view.copy_(x.detach())
    assert torch.equal(pack(views), payload) or len(sent) > 1


def test_a_single_tensor_is_sent_from_where_it_lies():
    x = torch.arange(6.0).view(2, 3).requires_grad_()
    assert pack([x]).data_ptr() == x.data_ptr()
    assert not pack([x]).requires_grad
    assert pack([x.t()]).data_ptr() != x.data_ptr()


def test_as_many_tensors_and_dims_as_there_may_be():
    sent = [torch.ones([1] * DIMS_MAX)] * TENSORS_MAX
    payload, views, _ = empty_like(describe(sent))
    payload.copy_(pack(sent))
    assert all(torch.equal(view, x) for view, x in zip(views, sent, strict=True))


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ([torch.ones(1)] * (TENSORS_MAX + 1), f"a layer may give at most {TENSORS_MAX} to the next"),
        ([torch.ones([1] * (DIMS_MAX + 1))], f"torch.float32 of {DIMS_MAX + 1} dims.* cannot be of this kind"),
        ([torch.ones(1, dtype=torch.complex64)], "torch.complex64 of 1 dims.* cannot be of this kind"),
    ],
)
def test_what_cannot_travel_is_refused_where_it_is_made(tensors, reason):
    with pytest.raises(ConfigError, match=reason):
        describe(tensors)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (header_of(count=-1), "of -1 tensors"),
        (header_of(count=TENSORS_MAX + 1), f"of {TENSORS_MAX + 1} tensors"),
        (header_of((-1, 0, (2,))), "of kind -1"),
        (header_of((len(DTYPES), 0, (2,))), f"of kind {len(DTYPES)}"),
        (header_of((0, 0, (1,) * (DIMS_MAX + 1))), r"shape \[1, 1"),
        (header_of((0, 0, (-2, -2))), r"shape \[-2, -2"),
        (header_of((0, 2, (2,))), "that takes a gradient: 2"),
        (header_of((4, 1, (2,))), r"torch.int64 that takes a gradient: 1"),
        (header_of((0, 0, (PAYLOAD_BYTES_MAX // 4 + 1,))), "the bound is"),
        (header_of((0, 0, ((1 << 62), 4, 4))), "the bound is"),
        (header_of((0, 0, ((1 << 62), 4, 0))), "the bound is"),
        (header_of((8, 0, (PAYLOAD_BYTES_MAX,)), (8, 0, (1,))), "the bound is"),
    ],
)
def test_a_header_that_is_none_is_refused(header, reason):
    with pytest.raises(ProtocolError, match=reason):
        empty_like(header)


word = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-2, 12)


@settings(max_examples=200, deadline=None)
@given(messages, st.dictionaries(st.integers(0, 3 * WORDS), word, max_size=6))
def test_any_header_is_refused_or_described(sent, changes):
    """Whatever comes in: a refusal, or room for just what is announced."""
    words = describe(sent).tolist()
    for place, value in changes.items():
        words[place] = value
    announced = words[1 : 1 + max(0, words[0]) * WORDS]
    if any(size > 1 << 16 and size <= PAYLOAD_BYTES_MAX for size in announced):
        return  # within bounds, but more memory than a test needs
    try:
        payload, views, flags = empty_like(torch.tensor(words, dtype=torch.int64))
    except ProtocolError:
        return
    assert payload.numel() <= PAYLOAD_BYTES_MAX
    assert len(views) == len(flags) == words[0]
    for number, (view, flag) in enumerate(zip(views, flags, strict=True)):
        kind, told, dims, *shape = words[1 + number * WORDS : 1 + (number + 1) * WORDS]
        assert (view.dtype, tuple(view.shape), flag) == (DTYPES[kind], tuple(shape[:dims]), bool(told))
        view.requires_grad_(flag)
