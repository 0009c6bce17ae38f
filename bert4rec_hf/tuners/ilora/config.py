"""What an iLoRA adapter is made of."""

from dataclasses import dataclass, field
from enum import Enum

from peft import PeftConfig

from .gate import GATES

BIASES = ("none", "all", "ilora_only")


class ILoraPeftType(str, Enum):  # noqa: UP042 - PEFT splits str(), "ILoraPeftType.ILORA", as its own
    """The name of the tuner; PEFT looks it up as the string that it is, and reads its `value`."""

    ILORA = "ILORA"


@dataclass
class ILoraConfig(PeftConfig):
    """Shape and switches of an iLoRA adapter (Kong et al., 2024, https://arxiv.org/abs/2408.10159).

    >>> ILoraConfig(r=16, num_experts=4).expert_rank
    4
    """

    r: int = 8
    """Channels of the LoRA pair of a target module, dealt out to the experts in equal runs."""

    lora_alpha: float | int = 32
    """The update is scaled by lora_alpha / expert_rank; under equal gate weights by alpha / r."""

    num_experts: int = 4
    lora_dropout: float | int = 0.1
    """Share of the numbers dropped before they enter the low-rank pair."""

    gate: str = "instance"
    """What weighs the experts: the `instance`, a learned `constant`, or nothing (`uniform`)."""

    target_modules: list[str] | str | None = None
    """Linear layers of the encoder, by the end of their names or a regular expression; `all-linear`
    for all; those that PEFT puts LoRA on when None."""

    exclude_modules: list[str] | str | None = None
    """Target modules to leave out after all, named in the same way."""

    bias: str = "none"
    """Which biases of the base model to train: `none`, `all`, or those of `ilora_only` modules."""

    modules_to_save: list[str] | None = None
    """Modules of the base model to train whole and save with the adapter."""

    trainable_token_indices: list[int] | dict[str, list[int]] | None = None
    """Rows of the item table to train and save with the adapter; a dict names other tables."""

    ensure_weight_tying: bool = False
    """Train a table that embeds and scores as one, where `modules_to_save` names it."""

    layers_to_transform: list[int] | int | None = None
    """Numbers of the layers to put the adapter on; all when None."""

    layers_pattern: list[str] | str | None = None
    """What the list of layers is called, where `layers_to_transform` does not find it."""

    rank_pattern: dict[str, int] = field(default_factory=dict)
    """From names of modules, or regular expressions, to an r of their own."""

    alpha_pattern: dict[str, float | int] = field(default_factory=dict)
    """From names of modules, or regular expressions, to a lora_alpha of their own."""

    init_weights: bool = True
    """Begin as an adapter that changes nothing; only tests want it otherwise."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = ILoraPeftType.ILORA
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        self._check_channels()
        self._check_choices()
        self._check_layers()

    @property
    def expert_rank(self) -> int:
        """Channels of one expert."""
        return self.r // self.num_experts

    def _check_channels(self) -> None:
        if self.num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {self.num_experts}")
        for r in (self.r, *self.rank_pattern.values()):
            if r < 1 or r % self.num_experts:
                raise ValueError(
                    "r must be a multiple of num_experts, in rank_pattern too, so that each expert "
                    f"gets as many channels; got {r} and {self.num_experts}"
                )
        for alpha in (self.lora_alpha, *self.alpha_pattern.values()):
            if alpha <= 0:
                raise ValueError(f"lora_alpha must be positive, got {alpha}")
        if not 0 <= self.lora_dropout < 1:
            raise ValueError(f"lora_dropout must be in [0, 1), got {self.lora_dropout}")

    def _check_choices(self) -> None:
        for name, choices in (("gate", GATES), ("bias", BIASES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )

    def _check_layers(self) -> None:
        if self.layers_to_transform is not None and isinstance(self.target_modules, str):
            raise ValueError(
                "layers_to_transform goes with target_modules as a list, got the expression "
                f"{self.target_modules!r}; say in it which layers are meant"
            )
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError(
                f"layers_pattern {self.layers_pattern!r} goes with layers_to_transform, got none; "
                "give the numbers of the layers"
            )
