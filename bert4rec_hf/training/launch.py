"""What a launcher started, beside what was asked for and what the machine has."""

import os

import psutil
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import (
    DistributedType,
    FullyShardedDataParallelPlugin,
    parse_flag_from_env,
)
from torch.distributed.fsdp import CPUOffloadPolicy

from bert4rec_hf.training.interruption import find_launcher


def check_flags() -> None:
    """Refuse the sharding that accelerate does by default, before it looks for GPUs to do it on.

    Raises:
        ValueError: FSDP was asked for, and not its second version.
    """
    version = os.environ.get("FSDP_VERSION", "1")
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and version != "2":
        raise ValueError(
            f"fsdp_version is {version}, which is accelerate's default, and must be 2: write "
            "--use_fsdp --fsdp_version 2, or take configs/accelerate/fsdp.yaml"
        )


def check_launch(accelerator: Accelerator) -> None:
    """Refuse to run otherwise than was asked for, which accelerate does silently.

    Raises:
        ValueError: FSDP or several processes were asked for, and there is nothing of it; or there
            is a kind of sharding that training does not know.
    """
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        found = accelerator.distributed_type
        if found != DistributedType.FSDP:
            raise ValueError(
                f"FSDP was asked for, and accelerate runs {found.value} on "
                f"{accelerator.device.type}, as it shards over GPUs only; leave --use_fsdp out"
            )
        check_sharding(accelerator.state.fsdp_plugin)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > accelerator.num_processes:
        raise ValueError(
            f"{world} processes were started, and accelerate takes each for the only one, as it "
            "does where there are no GPUs; set ACCELERATE_USE_CPU=true, or start one process"
        )
    asked = count_asked_processes()
    if accelerator.num_processes == 1 and asked > 1:
        raise ValueError(
            f"--num_processes {asked} was asked for, and accelerate started one, as it does "
            "with --cpu and where there are no GPUs; write ACCELERATE_USE_CPU=true accelerate "
            f"launch --multi_gpu --num_processes {asked} …"
        )


def count_asked_processes() -> int:
    """Processes that the command line of accelerate asks for, or its config file; 1 if neither."""
    launcher = psutil.Process().parent()
    words = [part for word in launcher.cmdline() for part in word.split("=", 1)] if launcher else []
    if not any("accelerate" in word for word in words):
        return 1
    if "--num_processes" in words[:-1]:
        return int(words[words.index("--num_processes") + 1])
    if "--config_file" in words[:-1]:
        return load_config_from_file(words[words.index("--config_file") + 1]).num_processes
    return 1


def check_sharding(plugin: FullyShardedDataParallelPlugin) -> None:
    """Refuse what training could not do, or would do otherwise.

    Raises:
        ValueError: There is such a setting.
    """
    advice = "; or take configs/accelerate/fsdp.yaml"
    if plugin.activation_checkpointing:
        raise ValueError(
            "fsdp_activation_checkpointing is true, and it is the experiment that decides so: set "
            f"training.gradient_checkpointing to true and leave it out{advice}"
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise ValueError(
            "fsdp_offload_params is true, and optimizer and checkpoints expect all weights on the "
            f"device: leave it out{advice}"
        )


def share_cores(accelerator: Accelerator) -> None:
    """Give each process on CPU its share of the cores, where the launcher left it a single one.

    Launchers do so of their own accord. What the user says by `OMP_NUM_THREADS`, or by
    `--num_cpu_threads_per_process`, is obeyed.
    """
    if accelerator.device.type == "cpu" and has_single_core_from_launcher():
        # Those this process may run on; taskset and containers can leave fewer than there are.
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count()
        torch.set_num_threads(max(1, cores // accelerator.num_processes))


def has_single_core_from_launcher() -> bool:
    """Whether `OMP_NUM_THREADS` is 1, and a launcher made it so that had not been told to."""
    if os.environ.get("OMP_NUM_THREADS") != "1" or not find_launcher():
        return False
    launcher = psutil.Process(find_launcher())
    try:
        was_told = "OMP_NUM_THREADS" in launcher.environ() or any(
            word.startswith("--num_cpu_threads_per_process") for word in launcher.cmdline()
        )
    except psutil.Error:  # nobody may know; then what is set is taken for the user's word
        return False
    return not was_told
