"""What changes bits is pinned: the number of threads, and kernels that are not deterministic."""

import pytest
import torch

from elaswave.numerics import pin_threads


@pytest.fixture(autouse=True)
def _as_before():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.mark.parametrize("num_threads", [1, 2])
def test_threads_are_pinned_and_only_deterministic_kernels_run(num_threads):
    pin_threads(num_threads)
    assert torch.get_num_threads() == num_threads
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
