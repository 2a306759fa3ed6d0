"""Refused devices, and errors that mean that memory ran out."""

import pytest
import torch

from stagemeter.core.errors import StagemeterError
from stagemeter.profiling.target import choose_device, is_out_of_memory, require_dtype, require_memory, true_dtype


@pytest.mark.parametrize("name", ["hpu", "privateuseone", "xpu", "ipu", "meta", "cuda:99", "gpu", "cpu:x"])
def test_devices_that_are_not_here(name):
    with pytest.raises(StagemeterError, match=r"device"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cpu", "cpu:0", "cpu:5"])
def test_there_is_one_processor(name):
    assert choose_device(name) == "cpu"


def test_memory_that_is_not_there():
    with pytest.raises(StagemeterError, match=r"device: the lot need at least 1\.00 EB, and 'cpu' has"):
        require_memory("cpu", 10**18, "the lot")


@pytest.mark.parametrize("index", [0, 1])
def test_bfloat16_is_asked_of_the_device_that_is_meant(monkeypatch, index):
    current = [0]

    class Device:
        def __init__(self, device):
            self.index = torch.device(device).index

        def __enter__(self):
            self.before, current[0] = current[0], self.index

        def __exit__(self, *error):
            current[0] = self.before

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current[0] == 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {torch.device(device).index}")
    # What comes after the question needs a GPU.
    expected = "GPU 1 has no bfloat16" if index == 1 else "cannot compute|CUDA|NVIDIA|compiled"
    with pytest.raises((StagemeterError, AssertionError, RuntimeError), match=expected):
        require_dtype(f"cuda:{index}", "bfloat16")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_mean_memory(error, expected):
    assert is_out_of_memory(error) == expected


def test_float32_is_not_done_in_tf32():
    def settings() -> tuple[bool, bool]:
        return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32

    before = settings()
    with true_dtype("float32"):
        assert settings() == (False, False)
    assert settings() == before
    with true_dtype("bfloat16"):
        assert settings() == before
