"""iLoRA as PEFT knows it: what `get_peft_model` puts between a model and its adapters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraModel
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from .config import ILoraConfig
from .gate import summarize_prefixes
from .history_gates import HistoryGates, ILoraLayer
from .layer import ILoraLinear


class ILoraModel(BaseTuner):
    """A model whose encoder has adapters that are mixed anew for each history.

    The encoder is the `base_model` of a transformers model, or the model itself.
    """

    prefix = "ilora_"
    tuner_layer_cls = ILoraLayer
    target_module_mapping = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    # A table that embeds and scores is tied as for LoRA.
    _add_modules_to_save_to_tie = LoraModel._add_modules_to_save_to_tie

    @property
    def encoder(self) -> nn.Module:
        """What is called with the histories."""
        return getattr(self.model, "base_model", self.model)

    @torch.no_grad()
    def gate_weights(self, *, keep: Tensor | None = None, **inputs: Any) -> Tensor:
        """How much each expert of the active adapter counts for each history.

        Args:
            keep: (kept,) positions, counted through the rows of the batch, whose weights are
                wanted: what each may see of its history decides. None for whole histories.
            inputs: A batch, padded or packed; what the gate does not read is left alone.

        Returns:
            (histories, experts) or (kept, experts), which sum to one.

        Raises:
            ValueError: Not just one adapter is active.
        """
        if len(self.active_adapters) != 1:
            raise ValueError(
                "gate_weights are those of one adapter, and the active ones are "
                f"{self.active_adapters}; choose one by set_adapter"
            )
        gates = self.encoder.history_gates
        embeddings, prefixes = gates.read(inputs)
        if keep is not None:
            prefixes = gates.find_prefixes(prefixes, inputs)
        weights = gates.weigh(summarize_prefixes(embeddings, prefixes))[self.active_adapters[0]]
        return weights if keep is None else weights[prefixes.of_positions[keep]]

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        gate_weights: Tensor | None = None,
    ) -> nn.Module:
        """Fold an adapter into the base weights, as it is under a fixed gate, the same for all.

        Args:
            progressbar: Show progress.
            safe_merge: Refuse weights that are not finite.
            adapter_names: The one adapter to merge; the active one when None.
            gate_weights: (experts,) such as the mean of `gate_weights` over some histories.

        Returns:
            The base model, without adapters.

        Raises:
            NotImplementedError: No gate is given.
            ValueError: Not just one adapter, or not one number per expert.
        """
        names = self.active_adapters if adapter_names is None else adapter_names
        held = {}
        if gate_weights is not None:
            self._check_fixed_gate(names, gate_weights)
            held = {names[0]: (gate_weights,)}
        with self.encoder.history_gates.current.holding(held):
            return super().merge_and_unload(progressbar, safe_merge, adapter_names)

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refuse what LoRA can: adapters whose experts are mixed by gates have no weighted sum.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "add_weighted_adapter sums weights, but iLoRA mixes its experts for each history; "
            "let several adapters add up by base_model.set_adapter([…]), or merge each under one "
            "gate for all, merge_and_unload(gate_weights=…)"
        )

    def _check_fixed_gate(self, adapter_names: list[str], gate_weights: Tensor) -> None:
        if len(adapter_names) != 1:
            raise ValueError(
                f"gate_weights are for one adapter, got {adapter_names}; merge one at a time"
            )
        num_experts = self.peft_config[adapter_names[0]].num_experts
        if gate_weights.shape != (num_experts,):
            raise ValueError(
                f"gate_weights must be ({num_experts},), one per expert of {adapter_names[0]!r}, "
                f"got {tuple(gate_weights.shape)}"
            )

    def _check_merge_allowed(self) -> None:
        super()._check_merge_allowed()
        if not self.encoder.history_gates.current.gates:
            raise NotImplementedError(
                "iLoRA mixes its experts for each history, so no single weight does what it "
                "does; keep the adapter, remove it by unload(), or merge what it does under one "
                "gate for all, merge_and_unload(gate_weights=…)"
            )

    def _prepare_model(self, peft_config: ILoraConfig, model: nn.Module) -> None:
        if not hasattr(self.encoder, "get_input_embeddings"):
            raise TypeError(
                "the gate of iLoRA reads item embeddings, and "
                f"{type(self.encoder).__name__} has no get_input_embeddings(); give it one"
            )

    def _create_and_replace(  # noqa: PLR0913 - the signature is PEFT's
        self,
        peft_config: ILoraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        # Not before: PEFT takes a model that has a tuner layer for one whose base is frozen.
        if not hasattr(self.encoder, HistoryGates.NAME):
            HistoryGates(self.encoder)._active_adapter = adapter_name
        gates = self.encoder.history_gates
        if adapter_name not in gates.ilora_gate:
            gates.update_layer(adapter_name, peft_config)
        if not isinstance(target, ILoraLinear):
            self._check_target(target, current_key)
            target = ILoraLinear(target, current_key, gates.current)
            target._active_adapter = adapter_name
            setattr(parent, target_name, target)
        r, lora_alpha = (
            pattern.get(get_pattern_key(pattern, current_key), default)
            for pattern, default in (
                (peft_config.rank_pattern, peft_config.r),
                (peft_config.alpha_pattern, peft_config.lora_alpha),
            )
        )
        target.update_layer(adapter_name, r, lora_alpha, peft_config)

    def _check_target(self, target: nn.Module, key: str) -> None:
        if not isinstance(target, nn.Linear):
            raise TypeError(
                f"iLoRA applies to torch.nn.Linear, but target module {key} is a "
                f"{type(target).__name__}; name it in exclude_modules, or train it whole by "
                "modules_to_save"
            )
        if all(target is not module for module in self.encoder.modules()):
            raise ValueError(
                f"target module {key} lies outside of the encoder, where histories cannot be kept "
                "apart; name it in exclude_modules, or train it whole by modules_to_save"
            )

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's own assigns the weight as well, which fails where rows of a table are trained.
        setattr(parent, child_name, new_module)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        gates = self.encoder.history_gates
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        gates.detach()
        return model

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                f"iLoRA has one adapter per batch, got adapter_names {kwargs['adapter_names']}; "
                "split the batch and choose by set_adapter"
            )
        yield
