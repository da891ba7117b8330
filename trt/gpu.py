"""The NVIDIA GPU of this machine, asked of the driver itself: no library of CUDA's need be installed for it."""

from __future__ import annotations

import ctypes
import re

from trt.engine import EngineError

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR


def parse_capability(text: str) -> str:
    """A compute capability as SM80, from SM80, sm_80, 80 or 8.0. Raises `EngineError` for other text."""
    found = re.fullmatch(r"(?:sm_?)?([1-9][0-9]?)\.?([0-9])", text.strip(), re.IGNORECASE)
    if found is None:
        raise EngineError(f"{text!r} is no compute capability; write it as SM86 or 8.6")
    return f"SM{found[1]}{found[2]}"


def capability() -> str:
    """Compute capability of the first GPU that this process may use, as SM86.

    Starts CUDA's driver in this process. Raises `EngineError` where there is no driver or no GPU.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise EngineError("no NVIDIA driver on this machine") from error
    device, values = ctypes.c_int(), (ctypes.c_int(), ctypes.c_int())
    calls = (
        ("cuInit", (0,)),
        ("cuDeviceGet", (ctypes.byref(device), 0)),
        ("cuDeviceGetAttribute", (ctypes.byref(values[0]), MAJOR, device)),
        ("cuDeviceGetAttribute", (ctypes.byref(values[1]), MINOR, device)),
    )
    for name, arguments in calls:
        code = getattr(driver, name)(*arguments)
        if code != 0:
            raise EngineError(f"the NVIDIA driver finds no GPU here ({name}: error {code}; see nvidia-smi)")
    return f"SM{values[0].value}{values[1].value}"
