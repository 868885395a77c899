"""Which device a library is for, known before it is opened; and what is said where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from llm_build.core.errors import UserError
from llm_build.runtime.device import HostBuffer, device_of, kind_of
from llm_build.targets import cuda, cuda_runtime


def library(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.so"
    path.write_bytes(b"\x7fELF" + bytes(9000) + f'{{"target": {{"arch": [], "kind": "{kind}"}}}}'.encode())
    return path


def test_the_kind_is_in_the_metadata(tmp_path: Path):
    for kind in ("cuda", "webgpu", "metal", "opencl"):
        assert kind_of(library(tmp_path, kind)) == kind
    assert kind_of(library(tmp_path, "anything else")) == "cpu"


def test_a_phone_s_library_is_refused_by_name(tmp_path: Path):
    with pytest.raises(UserError, match=r"opencl.so was built for opencl; llm-build runs libraries for cpu and cuda"):
        device_of(library(tmp_path, "opencl"))


def test_a_machine_without_a_gpu_says_what_it_lacks(tmp_path: Path):
    if cuda.runs_here():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match=r"no libcuda.so.1|no GPU that CUDA sees"):
        device_of(library(tmp_path, "cuda"))


def test_tensors_of_the_cpu_are_the_same_memory(tmp_path: Path):
    device = device_of(library(tmp_path, "none"))
    tensor = device.put(np.arange(3, dtype=np.int32))
    assert device.put_all([tensor])[0] is tensor
    slot = device.token_slot()
    for token in (7, 8):
        slot.write(token)
        assert np.from_dlpack(slot.tensor()).tolist() == [token]
    sink, floats = device.logits_sink(), device.put(np.ones((1, 1, 6), np.float32))
    sink.request(floats, (2, 3))
    found = sink.wait()
    assert found.shape == (2, 3)
    assert np.shares_memory(found, np.from_dlpack(floats))


def test_what_has_no_room_lands_elsewhere(tmp_path: Path):
    device = device_of(library(tmp_path, "none"))
    buffer = HostBuffer(device, device.put(np.zeros(4, np.float32)))
    for shape, shared in (((4,), True), ((2, 3), False), ((4,), True), ((3, 1), True)):
        numbers = np.arange(np.prod(shape), dtype=np.float32)
        buffer.request(device.put(numbers), shape)
        found, reused = buffer.wait()
        assert found.tolist() == numbers.reshape(shape).tolist()
        assert reused == shared


def test_a_stand_in_has_the_functions_that_tvm_is_linked_to():
    """Read from the wheel's own library, so that a new version cannot ask for more unseen."""
    from tvm.libinfo import package_lib_paths

    content = next(
        (path / "libtvm_runtime_cuda.so").read_bytes()
        for path in package_lib_paths()
        if (path / "libtvm_runtime_cuda.so").exists()
    )
    names = {name.decode() for name in content.split(b"\0") if name.startswith((b"cuda", b"cu")) and name.isalnum()}
    known = {*cuda_runtime.DRIVER_FUNCTIONS, *(f"cuda{name}" for name in cuda_runtime.RUNTIME_FUNCTIONS)}
    assert known <= names
    assert {name for name in names if name[2:3].isupper() or name[4:5].isupper()} == known
