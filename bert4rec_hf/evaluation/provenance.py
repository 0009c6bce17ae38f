"""Where a number comes from: the commit, the device and the versions it was measured with."""

import configparser
import platform
import subprocess
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

NAME = "bert4rec_hf"
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "polars")


def provenance(accelerator: Accelerator) -> dict[str, Any]:
    """Describe what runs, for a results file."""
    return {
        "commit": current_commit(),
        "device": describe_device(accelerator.device),
        "num_processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "dynamo_backend": accelerator.state.dynamo_plugin.backend.value.lower(),
        "versions": {NAME: package_version(), "python": platform.python_version()}
        | {package: version(package) for package in PACKAGES if find_spec(package)},
    }


def current_commit() -> str:
    """Commit of the checkout that this file belongs to, `-dirty` if it was changed; or `unknown`.

    A package that was installed into a folder of somebody's repository is not part of it.
    """
    path = Path(__file__)
    commands = (
        ["git", "ls-files", "--error-unmatch", path.name],
        ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
    )
    try:
        for command in commands:
            done = subprocess.run(
                command, cwd=path.parent, capture_output=True, text=True, check=True
            )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def package_version() -> str:
    """Version of the package that runs: as its checkout names it, or else as it was installed."""
    checkout = configparser.ConfigParser()
    checkout.read(Path(__file__).parents[2] / "setup.cfg")
    if checkout.get("metadata", "name", fallback=None) == NAME:
        return checkout["metadata"]["version"]
    return version(NAME)


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
