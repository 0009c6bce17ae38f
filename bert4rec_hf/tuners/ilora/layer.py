"""A frozen linear layer under low-rank experts."""

from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor, nn

from .config import ILoraConfig
from .forward_gates import ForwardGates
from .history_gates import ILoraLayer


class ILoraLinear(nn.Module, ILoraLayer):
    """Frozen linear layer plus a mixture of low-rank experts (Kong et al., 2024).

    The r channels of one LoRA pair are dealt out to the experts in equal runs. Scaling each run by
    its gate weight is the same sum as running the experts apart, at the cost of plain LoRA:

        W x + (alpha / expert_rank) * B diag(gate weights, each repeated expert_rank times) A x

    Args:
        base_layer: The frozen one.
        name: That of the layer in the model, for messages.
        current: Where the gate weights of a forward pass are found.
    """

    adapter_layer_names = ("ilora_A", "ilora_B")
    other_param_names = ("ilora_dropout", "scaling")

    def __init__(self, base_layer: nn.Linear, name: str, current: ForwardGates):
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = base_layer.in_features, base_layer.out_features
        self.name = name
        self.current = current
        self.ilora_A = nn.ModuleDict()
        self.ilora_B = nn.ModuleDict()
        self.ilora_dropout = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.merged_adapters = []

    def update_layer(
        self, adapter_name: str, r: int, lora_alpha: float, config: ILoraConfig
    ) -> None:
        """Make the pair of an adapter; it changes nothing as long as its second half is zero."""
        self.ilora_A[adapter_name] = nn.Linear(self.in_features, r, bias=False)
        self.ilora_B[adapter_name] = nn.Linear(r, self.out_features, bias=False)
        self.ilora_dropout[adapter_name] = (
            nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        )
        self.scaling[adapter_name] = lora_alpha * config.num_experts / r
        if config.init_weights:
            nn.init.zeros_(self.ilora_B[adapter_name].weight)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        output = self.base_layer(hidden, *args, **kwargs)
        if self.disable_adapters:
            return output
        for adapter in self.active_adapters:
            if adapter in self.ilora_A:
                output = (output + self._mix_experts(adapter, hidden)).to(output.dtype)
        return output

    def _mix_experts(self, adapter: str, hidden: Tensor) -> Tensor:
        down, up = self.ilora_A[adapter], self.ilora_B[adapter]
        hidden = self._cast_input_dtype(hidden, down.weight.dtype)
        channels = down(self.ilora_dropout[adapter](hidden))  # (…, r)
        gate = self.current.find(adapter, hidden.shape[:-1], self.name) * self.scaling[adapter]
        gate = gate.to(channels.dtype).unsqueeze(-1)
        experts = channels.unflatten(-1, (gate.shape[-2], -1))  # (…, experts, expert_rank)
        return up((experts * gate).flatten(-2))

    def get_delta_weight(self, adapter: str, gate_weights: Tensor) -> Tensor:
        """What an adapter adds to the weight under a fixed gate.

        Args:
            adapter: Its name.
            gate_weights: (experts,)

        Returns:
            (out_features, in_features), those of the base layer, at least float32.
        """
        down, up = (pair[adapter].weight for pair in (self.ilora_A, self.ilora_B))
        dtype = torch.promote_types(down.dtype, torch.float32)
        gate = gate_weights.to(down.device, dtype) * self.scaling[adapter]
        channels = gate.repeat_interleave(len(down) // len(gate))
        return (up.to(dtype) * channels) @ down.to(dtype)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the base weight, under the gate that ILoraModel holds for it."""
        for adapter in check_adapters_to_merge(self, adapter_names):
            if adapter not in self.ilora_A:
                continue
            weight = self.base_layer.weight
            (gate_weights,) = self.current.gates[adapter]
            merged = weight + self.get_delta_weight(adapter, gate_weights)
            if safe_merge and not merged.isfinite().all():
                raise ValueError(
                    f"adapter {adapter!r} has weights that are not finite in {self.name}; "
                    "it cannot be merged"
                )
            weight.copy_(merged)
            self.merged_adapters.append(adapter)
