"""`mlpt doctor`: what is installed, what Ray sees, and what will not work here, with the reason."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from packaging.requirements import Requirement

from mlpt.storage.files import cache_directory
from mlpt.training.compiling import why_not_compile
from mlpt.training.group import default_device
from mlpt.training.speed import copied_bytes, matmul_flops

_ROOMY_BYTES = 5 << 30


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's report. `bad`: something will not work; `note`: something works less well."""

    subject: str
    state: Literal["ok", "note", "bad"]
    text: str


def examine() -> Iterator[Finding]:
    """All findings, quick ones first. Starts no Ray and leaves nothing behind."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield from _packages()
    yield from _devices()
    yield _speed()
    yield _compiler()
    yield from _disks()
    yield from _ray()
    yield _hub()


def _packages() -> Iterator[Finding]:
    try:
        required = importlib.metadata.requires("mlpt") or []
    except importlib.metadata.PackageNotFoundError:
        yield Finding("mlpt", "note", "not installed, running from its source; `pip install -e .` checks the versions")
        return
    for line in required:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(requirement.name, "bad", f"missing; mlpt needs {requirement}: `pip install -e .`")
            continue
        fits = requirement.specifier.contains(version, prereleases=True)
        text = version if fits else f"{version} is installed, mlpt needs {requirement.specifier}"
        yield Finding(requirement.name, "ok" if fits else "bad", text)


def _devices() -> Iterator[Finding]:
    cores = os.cpu_count() or 1
    if cores < 2:
        yield Finding("cpu", "note", "1 core: the meta-learner and the worker take turns on it")
    else:
        yield Finding("cpu", "ok", f"{cores} cores")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(index).total_memory / 2**30
            yield Finding("gpu", "ok", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB")
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        if not bf16:
            yield Finding("bf16", "note", "this GPU only emulates it: train.precision=fp16 is faster")
    else:
        built = torch.version.cuda is not None
        why = "torch sees none" if built else "this torch is a CPU build"
        yield Finding("gpu", "note", f"none ({why}); runtime.gpus_per_worker must stay 0")
        computes_bf16 = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))
        if computes_bf16:
            yield Finding("bf16", "ok", "this CPU computes in it: train.precision=bf16 is faster than float32")
        else:
            yield Finding("bf16", "note", "this CPU only emulates it: stay with train.precision=float32")


def _speed() -> Finding:
    """What MFU is measured against, here and now."""
    device, threads = default_device(), torch.get_num_threads()
    rates = [
        f"{name} {matmul_flops(device, dtype, threads) / 1e9:,.0f} GFLOP/s"
        for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16))
    ]
    where = f"{threads} threads" if device.type == "cpu" else device.type
    return Finding("speed", "ok", f"{', '.join(rates)} on {where}; copies {copied_bytes(device) / 1e9:.1f} GB/s")


def _compiler() -> Finding:
    reason = why_not_compile(default_device())
    if reason is not None:
        return Finding("compiler", "note", f"{reason}: train.compile=true has no effect")
    return Finding("compiler", "ok", "train.compile=true can be used")


def _disks() -> Iterator[Finding]:
    for subject, folder in (("cache", cache_directory()), ("working folder", Path.cwd())):
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free
        state: Literal["ok", "note", "bad"] = "ok" if free > _ROOMY_BYTES else "note"
        if not _writable(existing):
            yield Finding(subject, "bad", f"{folder} cannot be written; set XDG_CACHE_HOME or run elsewhere")
        else:
            yield Finding(subject, state, f"{folder}, {free / 2**30:.1f} GiB free")


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _ray() -> Iterator[Finding]:
    if importlib.util.find_spec("ray") is None:
        yield Finding("ray", "bad", "missing; runtime.num_workers=0 works without it, everything else needs it")
        return
    if importlib.util.find_spec("aiohttp_cors") is None:
        yield Finding(
            "dashboard", "bad", "ray[default] is missing: `mlpt tune` would leak the places of stopped trials"
        )
    address = os.environ.get("RAY_ADDRESS")
    if address:
        yield Finding("ray cluster", "ok", f"RAY_ADDRESS={address}; runtime.address=auto joins it")
    running = _ray_processes()
    if len(running) > 1 and not address:
        text = f"{len(running)} Ray instances run on this machine; set RAY_ADDRESS before runtime.address=auto"
        yield Finding("ray cluster", "note", text)
    elif running and not address:
        yield Finding("ray cluster", "ok", f"one runs here ({running[0]}); runtime.address=auto joins it")
    elif not address:
        yield Finding("ray cluster", "ok", "none runs here; runtime.address=local starts one for each run")
    temporary = os.environ.get("RAY_TMPDIR", "/tmp")
    if len(temporary) > 40:  # socket paths may have 107 bytes, and Ray adds about 65
        yield Finding("RAY_TMPDIR", "bad", f"{temporary} is too long for Ray's sockets; use a shorter path")
    yield _shared_memory()


def _ray_processes() -> list[str]:
    """Addresses of the Ray heads on this machine."""
    from ray._private.services import find_gcs_addresses  # `ray status` finds them the same way

    return sorted(find_gcs_addresses())


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("shared memory", "note", "/dev/shm is missing: Ray's object store falls back to slow files")
    free = shutil.disk_usage(folder).free
    if free < 1 << 30:
        return Finding("shared memory", "note", f"{free >> 20} MiB free in /dev/shm: large snapshots go through files")
    return Finding("shared memory", "ok", f"{free / 2**30:.1f} GiB free")


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE") == "1" or os.environ.get("TRANSFORMERS_OFFLINE") == "1":
        return Finding("model hub", "note", "switched off by the environment; hub: sources and models must be local")
    return Finding("model hub", "ok", "not needed; hub: sources and pretrained hub names use it")
