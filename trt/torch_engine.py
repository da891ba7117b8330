"""The engine of torch: for GPUs that TensorRT has no code for, and to compare it with.

On a GPU it calculates in float16 with channels last, or in float32 without TF32, and replays a CUDA graph. It runs on
torch's CPU device as well, for tests. It has not run on a GPU yet.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trt.device_engine import BatchEngine, translated
from trt.engine import EngineError
from trt.fixedbatch import FixedBatch
from trt.gpu import capability
from trt.manifest import Manifest, ManifestError, sha256

DTYPES = {"f32": torch.float32, "f16": torch.float16}


class TorchEngine(BatchEngine):
    """The model by torch on the first GPU, or on `device`, for one batch size.

    Raises
    ------
    EngineError
        There is no GPU, driver or torch for it; or the model holds an operator that `trt.network` does not know.
    OutOfMemory
        The device has too little memory for this batch.
    ManifestError
        The model is not the file that its manifest speaks of.
    """

    backend = "torch"

    def __init__(self, manifest: Manifest, batch: int, precision: str, device: str = "cuda") -> None:
        if precision not in DTYPES:
            raise EngineError(f"torch has no precision {precision!r}; choose one of: {', '.join(DTYPES)}")
        if torch.device(device).type == "cuda":
            require_cuda()
        network = _rebuilt(manifest)
        dtype = DTYPES[precision]
        layout = torch.channels_last if dtype == torch.float16 else torch.contiguous_format
        shape, what = (batch, manifest.channels, *manifest.patch), f"{manifest.name} on torch at a batch of {batch}"
        super().__init__(manifest, shape, device, what, torch.__version__, precision)
        with translated(what):
            network.to(self.device, dtype, memory_format=layout)
            _require_answer(network, self._batch, dtype, manifest)

            def launch(given: Tensor, answer: Tensor) -> None:
                answer.copy_(network(given.to(dtype, memory_format=layout)))

            self._batch.prepare(launch)


def require_cuda() -> None:
    """Tell why torch cannot run on the GPU here, as `EngineError`, where it cannot. Starts CUDA in this process."""
    way = "choose backend openvino, which needs no GPU"
    if torch.version.cuda is None:
        raise EngineError(f"torch {torch.__version__} is built without CUDA: install a build with it, or {way}")
    try:
        here = capability()
    except EngineError as error:
        raise EngineError(f"{error}; {way}") from error
    if not torch.cuda.is_available():
        raise EngineError(
            f"torch {torch.__version__} needs a driver for CUDA {torch.version.cuda}, and that of this machine is too "
            f"old or broken: update it, or {way}"
        )
    built = torch.cuda.get_arch_list()
    if not has_code(built, here):
        raise EngineError(
            f"{torch.cuda.get_device_name()} ({here}): torch {torch.__version__} has no code for it, only for "
            f"{', '.join(built)}; choose backend tensorrt if that knows it, else openvino"
        )


def has_code(built: list[str], here: str) -> bool:
    """Whether code for the architectures `built`, as sm_86 or compute_90, runs on the capability `here`, as SM89.

    Machine code runs on its own generation from its own minor number on, PTX on everything later.
    """
    major, minor = int(here[2:-1]), int(here[-1])
    for name in built:
        kind, _, number = name.partition("_")
        digits = "".join(filter(str.isdecimal, number))
        if not digits:
            continue
        found = int(digits[:-1] or 0), int(digits[-1])
        if number != digits:  # sm_90a, sm_100f: for that one alone
            if found == (major, minor):
                return True
        elif (kind == "sm" and found[0] == major and found[1] <= minor) or (
            kind == "compute" and found <= (major, minor)
        ):
            return True
    return False


def _rebuilt(manifest: Manifest) -> torch.nn.Module:
    if not manifest.path.is_file() or sha256(manifest.path) != manifest.digest:
        raise ManifestError(f"{manifest.path}: is not the file that its manifest speaks of; load the model again")
    try:
        from trt.network import TorchNetwork
    except ImportError as error:
        raise EngineError("onnx is not installed: `pip install 'pennode[gpu]'`") from error
    try:
        return TorchNetwork(manifest.path)
    except ValueError as error:
        raise EngineError(f"torch refuses the model: {error}; choose backend openvino") from error


def _require_answer(network: torch.nn.Module, batch: FixedBatch, dtype: torch.dtype, manifest: Manifest) -> None:
    with torch.no_grad():
        found = tuple(network(batch.given[:1].to(dtype)).shape[1:])
    wanted = tuple(batch.answer.shape[1:])
    if found != wanted:
        raise EngineError(f"{manifest.path}: answers {found}, the manifest promises {wanted}")
