"""Shared fixtures. Frameworks are imported once, here in one process; what needs a fresh one starts it itself."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two processes share two cores

import pytest

from tests.support import BACKENDS, KERNELS, ROOT


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(params=KERNELS)
def kernel(request):
    return request.param


@pytest.fixture(scope="session")
def minilm():
    """The folder of the real checkpoint's three conversions."""
    folder = ROOT / "build" / "minilm"
    assert (folder / "safetensors").is_dir(), "the real checkpoint is missing: run `make test`, which fetches it"
    return folder
