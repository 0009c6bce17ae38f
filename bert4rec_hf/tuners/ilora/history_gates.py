"""Gate weights from the inputs of the encoder to the layers inside it, once per forward pass."""

import inspect
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from .config import ILoraConfig
from .forward_gates import ForwardGates, GatedCheckpoint, current_thread
from .gate import GATES, spread, summarize_prefixes
from .prefixes import Prefixes, end_at_prefixes, end_at_themselves, find_histories


class ILoraLayer(BaseTunerLayer):
    """What PEFT switches, freezes, casts, deletes and saves together."""


class HistoryGates(nn.Module, ILoraLayer):
    """The gates of all adapters of an encoder: one each, for all its layers.

    It is a child of the encoder and hooked to it, because that is the only way that all calls take:
    a PEFT model, its base model, and a method of either. Being a tuner layer there, it is saved and
    looked after by PEFT as the others are.

    Args:
        encoder: Takes `input_ids` or `inputs_embeds`, and optionally `attention_mask`, or
            `cu_seq_lens_q` (and `prefix_ids` and `is_query`) where histories are packed, and
            `keep`. It is causal if any of its modules says so by `is_causal`, as those of
            transformers do.
    """

    NAME = "history_gates"
    """Its name in the encoder; without the prefix of the tuner, which PEFT takes for a weight's."""

    adapter_layer_names = ("ilora_gate",)
    other_param_names = ()

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.ilora_gate = nn.ModuleDict()
        self.merged_adapters = []
        self.current = ForwardGates()
        # Lists, as modules of their own these would be found twice.
        self._encoder = [encoder]
        self._checkpointing = [
            module for module in encoder.modules() if hasattr(module, "gradient_checkpointing")
        ]
        self._is_causal = any(getattr(module, "is_causal", False) for module in encoder.modules())
        self._arguments = list(inspect.signature(encoder.forward).parameters)
        self._postponed: dict[int, Tensor] = {}
        self._hooks = [
            encoder.register_forward_pre_hook(self._enter, with_kwargs=True),
            encoder.register_forward_hook(self._leave, always_call=True),
        ]
        encoder.add_module(self.NAME, self)

    @property
    def in_features(self) -> int:
        """Hidden size, as PEFT asks of every layer."""
        return self.get_base_layer().weight.shape[1]

    def get_base_layer(self) -> nn.Module:
        """The item table: where it is and in which precision, the gates are."""
        return self._encoder[0].get_input_embeddings()

    def update_layer(self, adapter_name: str, config: ILoraConfig) -> None:
        """Make the gate of an adapter."""
        hidden = self.get_base_layer().weight.shape[1]
        self.ilora_gate[adapter_name] = GATES[config.gate](hidden, config.num_experts)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def detach(self) -> None:
        """Leave the encoder as it was before."""
        for hook in self._hooks:
            hook.remove()
        for module in self._checkpointing:
            if isinstance(getattr(module, "_gradient_checkpointing_func", None), GatedCheckpoint):
                module._gradient_checkpointing_func = module._gradient_checkpointing_func.checkpoint
        delattr(self._encoder[0], self.NAME)

    def weigh(self, summary: Tensor) -> dict[str, Tensor]:
        """Weigh the experts of each active adapter for each prefix of a history.

        Args:
            summary: (prefixes, hidden)

        Returns:
            From adapters to (prefixes, experts), at least float32, which sum to one.
        """
        weights = {}
        for name in self.active_adapters:
            if name in self.ilora_gate:
                logits = self.ilora_gate[name](summary)
                exact = torch.promote_types(logits.dtype, torch.float32)
                # Left exact: their gradient is a sum over all items of a history and all layers.
                weights[name] = logits.softmax(dim=-1, dtype=exact)
        return weights

    @torch.no_grad()
    def read(self, inputs: dict[str, Any]) -> tuple[Tensor, Prefixes]:
        """Find the items in the inputs of the encoder, and the histories they belong to.

        Args:
            inputs: By name.

        Returns:
            (batch, length, hidden) or (1, tokens, hidden) item embeddings, and one run per history.

        Raises:
            ValueError: There are none, or they are masked in another way.
        """
        embeddings, ids = inputs.get("inputs_embeds"), inputs.get("input_ids")
        if embeddings is None and ids is None:
            raise ValueError(
                "the gate of iLoRA reads input_ids or inputs_embeds, and the encoder was called "
                f"with {', '.join(inputs) or 'nothing'}"
            )
        if embeddings is None:
            embeddings = self.get_base_layer()(ids)
        cu_seq_lens = inputs.get("cu_seq_lens_q")
        mask = inputs.get("attention_mask")
        if cu_seq_lens is None and mask is None:
            mask = self._find_items(ids, embeddings)
        if cu_seq_lens is None and mask.dim() != 2:
            raise ValueError(
                "the gate of iLoRA needs an attention_mask of (batch, length), got one of shape "
                f"{tuple(mask.shape)}"
            )
        return embeddings, find_histories(*embeddings.shape[:2], mask, cu_seq_lens)

    def find_prefixes(self, histories: Prefixes, inputs: dict[str, Any]) -> Prefixes:
        """Find what each position may read, which is what the encoder's attention lets it see.

        A gate that read more would tell a position what it is asked for.
        """
        if self._is_causal:
            return end_at_themselves(histories)
        if inputs.get("prefix_ids") is None:
            return histories
        return end_at_prefixes(histories, inputs["prefix_ids"], inputs["is_query"])

    def _find_items(self, ids: Tensor | None, embeddings: Tensor) -> Tensor:
        """(batch, length) False where ids are padding; all True where that is not known."""
        padding = getattr(getattr(self._encoder[0], "config", None), "pad_token_id", None)
        if ids is None or padding is None:
            return embeddings.new_ones(embeddings.shape[:2], dtype=torch.bool)
        return ids != padding

    def _enter(
        self, encoder: nn.Module, args: tuple, kwargs: dict[str, Any]
    ) -> tuple[tuple, dict[str, Any]] | None:
        """Before the encoder runs: weigh, and lay the weights out for its layers."""
        if self.disable_adapters or not self.active_adapters:
            return None
        inputs = dict(zip(self._arguments, args, strict=False)) | kwargs
        embeddings, histories = self.read(inputs)
        prefixes = self.find_prefixes(histories, inputs)
        weights = self.weigh(summarize_prefixes(embeddings, prefixes))
        batch, length = embeddings.shape[:2]
        keep = inputs.get("keep")
        if keep is not None and (batch, length) == (1, len(keep)):
            # As many are kept as there are, in whatever order: layers that see all positions and
            # those that see the kept ones could not be told apart. So all are computed, at the same
            # cost, and picked afterwards.
            self._postponed[current_thread()], keep = keep, None
            args, kwargs = (), inputs | {"keep": None}
        self.current.gates = {
            name: spread(each, prefixes, batch, keep) for name, each in weights.items()
        }
        if not torch.compiler.is_compiling():
            self._guard_checkpoints()
        return args, kwargs

    def _leave(self, encoder: nn.Module, args: tuple, output: Any) -> None:
        """After the encoder ran, or failed: forget the weights."""
        keep = self._postponed.pop(current_thread(), None)
        self.current.gates = {}
        if keep is not None and output is not None:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden.flatten(0, 1)[keep].unsqueeze(0)

    def _guard_checkpoints(self) -> None:
        """Take checkpoints over that were switched on since the last forward pass."""
        for module in self._checkpointing:
            checkpoint = getattr(module, "_gradient_checkpointing_func", None)
            if checkpoint is not None and not isinstance(checkpoint, GatedCheckpoint):
                module._gradient_checkpointing_func = GatedCheckpoint(checkpoint, self.current)
