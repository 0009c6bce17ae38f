"""Where a number comes from: the commit, the device and the versions it was measured with."""

import platform
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "polars")


def provenance(accelerator: Accelerator) -> dict[str, Any]:
    """Describe what runs, for a results file."""
    return {
        "commit": current_commit(),
        "device": describe_device(accelerator.device),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "dynamo_backend": accelerator.state.dynamo_plugin.backend.value.lower(),
        "versions": {"python": platform.python_version()}
        | {package: version(package) for package in PACKAGES if find_spec(package)},
    }


def current_commit() -> str:
    """Commit of the checkout this file lies in, `-dirty` if it was changed; or `unknown`."""
    command = ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def describe_device(device: torch.device) -> dict[str, Any]:
    """Name of the device and what of its abilities decides speed."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {
            "type": "cuda",
            "name": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "has_bf16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    return {
        "type": device.type,
        "name": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _cpu_name() -> str:
    """The processor's name as Linux tells it, or its architecture elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
