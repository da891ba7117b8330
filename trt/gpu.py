"""The NVIDIA GPU of this machine, asked of the driver itself: no library of CUDA's need be installed for it."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys

from trt.engine import EngineError

MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
REFUSED = 3  # exit status of this module run by itself, with the reason written out

# What CUresult says, where it says what to do.
WHY = {
    34: "libcuda.so.1 is the stub for linking, not the driver's own",
    100: "no GPU is given to this process; see CUDA_VISIBLE_DEVICES, or the container's runtime",
    802: "the GPUs are not ready yet; see nvidia-fabricmanager",
    803: "the driver's library and kernel module are of different versions; restart the machine",
    804: "the driver is too old for the compatibility library installed with it; update the driver",
    999: "the driver failed; restart the machine",
}


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
            why = WHY.get(code, "see nvidia-smi")
            raise EngineError(f"the NVIDIA driver finds no GPU here ({name}: error {code}: {why})")
    return f"SM{values[0].value}{values[1].value}"


def capability_elsewhere() -> str:
    """As `capability`, asked in a process of its own: this one stays free of CUDA's driver, and may fork later."""
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return done.stdout.strip()
    if done.returncode == REFUSED:
        raise EngineError(f"{done.stdout.strip()}; choose backend openvino, which needs no GPU")
    raise EngineError("the NVIDIA driver ended the process that asked for the GPU; see nvidia-smi")


def _main() -> int:
    try:
        sys.stdout.write(capability())
    except EngineError as error:
        sys.stdout.write(str(error))
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(_main())
