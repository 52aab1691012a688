"""One thread for the tiny tensors of most tests: handing work to a second one costs more than the work."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when kernels are imported


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """A folder for what the evaluation keeps, shared by all tests."""
    return tmp_path_factory.mktemp("cache")
