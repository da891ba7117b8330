"""What is said of a machine's GPU or the lack of one, by a driver that says what it is told to.

The driver is a shared library with the four calls' names, compiled here: a GPU's own cannot be made to fail at will.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from trt import torch_engine
from trt.engine import EngineError
from trt.gpu import WHY, capability_elsewhere
from trt.torch_engine import require_cuda

DRIVER = """
#include <stdlib.h>
static int code(const char *call) {
  const char *text = getenv(call);
  return text ? atoi(text) : 0;
}
int cuInit(unsigned flags) { if (code("DRIVER_DIES")) abort(); return code("cuInit"); }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return code("cuDeviceGet"); }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  *value = attribute == 75 ? 8 : attribute == 76 ? 9 : -1;
  return code("cuDeviceGetAttribute");
}
"""


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no C compiler: apt-get install gcc")
        pytest.skip("no C compiler here")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.c").write_text(DRIVER)
    command = [compiler, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "driver.c"]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def told(driver: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(driver))
    return monkeypatch


def test_a_card_is_named_by_its_capability(told: pytest.MonkeyPatch) -> None:
    assert capability_elsewhere() == "SM89"


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGet", "cuDeviceGetAttribute"])
@pytest.mark.parametrize("code", [*WHY, 1])
def test_a_driver_that_refuses_is_told_with_the_way_out(told: pytest.MonkeyPatch, call: str, code: int) -> None:
    told.setenv(call, str(code))
    with pytest.raises(EngineError) as caught:
        capability_elsewhere()
    said = str(caught.value)
    assert f"{call}: error {code}: {WHY.get(code, 'see nvidia-smi')}" in said
    assert said.endswith("choose backend openvino, which needs no GPU")


def test_a_driver_that_dies_takes_nobody_with_it(told: pytest.MonkeyPatch) -> None:
    told.setenv("DRIVER_DIES", "1")
    with pytest.raises(EngineError, match="ended the process that asked for the GPU; see nvidia-smi"):
        capability_elsewhere()


def test_a_library_that_is_no_driver_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "libcuda.so.1").write_text("no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"no NVIDIA driver on this machine; choose backend openvino"):
        capability_elsewhere()


# --- what torch makes of it, which is built without CUDA where these tests run ---------------------------------------


@pytest.fixture
def with_cuda(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch_engine, "capability", lambda: "SM89")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA L4")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_80", "sm_90"])
    return monkeypatch


def test_a_card_that_torch_has_code_for_is_taken(with_cuda: pytest.MonkeyPatch) -> None:
    require_cuda()


def test_a_driver_too_old_for_torch_is_told(with_cuda: pytest.MonkeyPatch) -> None:
    with_cuda.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EngineError, match=r"needs a driver for CUDA 13\.0, .*too old or broken: update it.*openvino"):
        require_cuda()


def test_a_card_that_torch_has_no_code_for_is_named_with_the_way_out(with_cuda: pytest.MonkeyPatch) -> None:
    with_cuda.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90", "sm_100"])
    with pytest.raises(EngineError, match=r"NVIDIA L4 \(SM89\): .*only for sm_90, sm_100; choose backend tensorrt"):
        require_cuda()


def test_a_driver_that_refuses_is_told_by_torchs_backend_too(with_cuda: pytest.MonkeyPatch) -> None:
    def refuses() -> str:
        raise EngineError("the NVIDIA driver finds no GPU here (cuInit: error 803)")

    with_cuda.setattr(torch_engine, "capability", refuses)
    with pytest.raises(EngineError, match=r"error 803\); choose backend openvino"):
        require_cuda()
