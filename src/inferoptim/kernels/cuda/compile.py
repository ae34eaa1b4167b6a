"""CUDA C++ to a loaded kernel: compiled by NVRTC, which comes with CUDA builds of torch, and kept on disk.

A compiled file appears under its name only once whole. Where the folder cannot be written, every process compiles for
itself (about 0.3 s a kernel).
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from inferoptim.errors import UnsupportedError
from inferoptim.kernels.cpu.build import cache_folder
from inferoptim.kernels.triton import launch as triton_launch

_log = logging.getLogger(__name__)


def unsupported(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why these kernels cannot run on a device with a model's type, in a few words; None when they can."""
    capability = triton_launch.capability(device)
    if capability is None:
        return f"the model is on {device.type}"
    if dtype != torch.bfloat16:
        return f"{dtype} is not bfloat16"
    if capability < (9, 0):
        return "the card has no clusters of blocks (compute capability under 9.0)"
    return _compiler_fails(f"sm_{capability[0]}{capability[1]}")


@cache
def _compiler_fails(arch: str) -> str | None:
    """Why nothing can be compiled for an architecture, said once; found by compiling an empty kernel."""
    try:
        compile_source(b'extern "C" __global__ void probe() {}', "probe", (f"-arch={arch}",), {})
    except (ImportError, OSError, RuntimeError, UnsupportedError) as error:
        _log.warning("kernels in CUDA C++ are not used: %s; Triton's and cuBLAS serve instead", error)
        return str(error)
    return None


@cache
def multiprocessors(device: torch.device) -> int:
    """How many blocks that fill one each run at once."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def load(
    source: Path, name: str, defines: dict[str, int], device: torch.device, *, shared_bytes: int = 0,
    own_architecture: bool = False,
) -> Any:  # fmt: skip
    """A kernel of `source` for `device`'s compute capability, as a `CUfunction` of its primary context.

    On "meta" (kernels compiled ahead, see `kernels/triton/precompile.py`) it is noted as a job, and None.

    Args:
        shared_bytes: most shared memory that a launch will ask for.
        own_architecture: compiled for what no later card has, too.

    Raises:
        UnsupportedError: it does not compile or cannot be loaded; says what the compiler or the driver said.
    """
    capability = triton_launch.capability(device)
    assert capability is not None
    arch = f"sm_{capability[0]}{capability[1]}{'a' if own_architecture else ''}"
    if device.type == "meta":
        assert triton_launch.note_job is not None
        triton_launch.note_job(f"{source.name} {name}", lambda: _keep(source, defines, arch))
        return None
    from cuda.bindings import driver

    with torch.cuda.device(device):
        torch.cuda.current_stream().synchronize()  # the primary context is there and current
        module = _checked(driver.cuModuleLoadData(_cubin(source, defines, arch)), "cuModuleLoadData")
        function = _checked(driver.cuModuleGetFunction(module, name.encode()), "cuModuleGetFunction")
        if shared_bytes:
            most = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(driver.cuFuncSetAttribute(function, most, shared_bytes), "cuFuncSetAttribute")
        return function


def _keep(source: Path, defines: dict[str, int], arch: str) -> None:
    _cubin(source, defines, arch)


def launch(
    function: Any, grid: tuple[int, int, int], threads: int, arguments: ctypes.Structure, device: torch.device, *,
    shared_bytes: int = 0, cluster: int = 1,
) -> None:  # fmt: skip
    """Put a kernel whose only parameter is a structure on the current stream; it may start before its predecessor ends.

    Args:
        cluster: blocks of threads of a cluster, along x.

    Raises:
        RuntimeError: the driver refuses.
    """
    if function is None:  # compiled ahead, on no device
        return
    from cuda.bindings import driver

    config = driver.CUlaunchConfig()
    config.gridDimX, config.gridDimY, config.gridDimZ = grid
    config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
    config.sharedMemBytes = shared_bytes
    config.hStream = driver.CUstream(torch.cuda.current_stream(device).cuda_stream)
    early, shape = driver.CUlaunchAttribute(), driver.CUlaunchAttribute()
    early.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
    early.value.programmaticStreamSerializationAllowed = 1
    shape.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    shape.value.clusterDim.x, shape.value.clusterDim.y, shape.value.clusterDim.z = cluster, 1, 1
    config.attrs, config.numAttrs = [early, shape], 2
    pointers = (ctypes.c_void_p * 1)(ctypes.addressof(arguments))
    (status,) = driver.cuLaunchKernelEx(config, function, ctypes.addressof(pointers), 0)
    if int(status) != 0:
        raise RuntimeError(f"kernel of {grid} x {threads} threads: {status.name}")


def _cubin(source: Path, defines: dict[str, int], arch: str) -> bytes:
    from cuda.bindings import nvrtc

    text = source.read_bytes()
    headers = {path.name: path.read_bytes() for path in sorted(source.parent.glob("*.cuh"))}
    options = (
        f"-arch={arch}",
        "-std=c++17",
        *(f"-D{name}={value}" for name, value in sorted(defines.items())),
    )
    _, *version = nvrtc.nvrtcVersion()
    digest = hashlib.sha256(
        b"\0".join((text, *headers.values(), " ".join(options).encode(), str(version).encode()))
    )
    path = cache_folder() / f"{source.stem}-{arch}-{digest.hexdigest()[:16]}.cubin"
    try:
        return path.read_bytes()
    except OSError:
        pass  # not there yet
    cubin = compile_source(text, source.name, options, headers)
    _keep_file(path, cubin)
    return cubin


def _keep_file(path: Path, cubin: bytes) -> None:
    """Under its name once whole, or not at all."""
    aside = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_bytes(cubin)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("compiled kernel not kept: %s: %s", path, error.strerror)


def compile_source(text: bytes, name: str, options: tuple[str, ...], headers: dict[str, bytes]) -> bytes:
    """The machine code of a source.

    Raises:
        UnsupportedError: with the compiler's message.
    """
    from cuda.bindings import nvrtc

    program = _checked(
        nvrtc.nvrtcCreateProgram(
            text, name.encode(), len(headers), list(headers.values()), [name.encode() for name in headers]
        ),
        "nvrtcCreateProgram",
    )
    try:
        arguments = [option.encode() for option in options]
        (status,) = nvrtc.nvrtcCompileProgram(program, len(arguments), arguments)
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program), "nvrtcGetProgramLogSize")
            nvrtc.nvrtcGetProgramLog(program, log)
            raise UnsupportedError(
                f"{name} does not compile for {options[0]}: {log.decode(errors='replace').strip()}"
            )
        cubin: bytes = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program), "nvrtcGetCUBINSize")
        _checked(nvrtc.nvrtcGetCUBIN(program, cubin), "nvrtcGetCUBIN")
        return cubin
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _checked(returned: tuple[Any, ...], call: str) -> Any:
    """The value of a call of cuda-bindings, whose first element says whether it went well."""
    status, *values = returned
    if int(status) != 0:
        raise UnsupportedError(f"{call}: {status.name}")
    return values[0] if values else None
