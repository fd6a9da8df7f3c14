"""Whether `torch.compile` can work here, so that a run without a compiler says why and trains on uncompiled."""

import importlib.util
import os
import shutil

import torch


def why_not_compile(device: torch.device) -> str | None:
    """The reason why models can't be compiled for `device`; None when they can."""
    if device.type == "cuda":
        return None if importlib.util.find_spec("triton") else "triton is not installed"
    if any(name and shutil.which(name) for name in (os.environ.get("CXX"), "g++", "clang++")):
        return None
    return "there is no C++ compiler (g++ or clang++)"
