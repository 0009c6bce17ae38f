"""What a launcher started, beside what was asked for and what the machine has."""

import os

import psutil
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env


def check_launch(accelerator: Accelerator) -> None:
    """Refuse to run otherwise than was asked for, which accelerate does without a word.

    Raises:
        ValueError: FSDP or several processes were asked for, and there is nothing of it.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        found = accelerator.distributed_type
        if found != DistributedType.FSDP:
            raise ValueError(
                f"FSDP was asked for, and accelerate runs {found.value} on "
                f"{accelerator.device.type}, as it shards over GPUs only; leave --use_fsdp out"
            )
    launcher = psutil.Process().parent()
    words = [part for word in launcher.cmdline() for part in word.split("=", 1)] if launcher else []
    if "--num_processes" in words[:-1]:
        asked = words[words.index("--num_processes") + 1]
        if accelerator.num_processes == 1 and asked != "1":
            raise ValueError(
                f"--num_processes {asked} was asked for, and accelerate started one, as it does "
                "with --cpu; write ACCELERATE_USE_CPU=true accelerate launch --multi_gpu "
                f"--num_processes {asked} …"
            )


def share_cores(accelerator: Accelerator) -> None:
    """Give each process on CPU its share of the cores, where the launcher left it a single one.

    `accelerate launch` does so unless `OMP_NUM_THREADS` or `--num_cpu_threads_per_process` says
    otherwise.
    """
    if accelerator.device.type == "cpu" and os.environ.get("OMP_NUM_THREADS") == "1":
        # Those this process may run on; taskset and containers can leave fewer than there are.
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
        torch.set_num_threads(max(1, cores // accelerator.num_processes))
