"""What a BERT4Rec is made of."""

from difflib import get_close_matches
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

NUM_SPECIAL_IDS = 2
"""Padding (0) and mask (1); the ids from here on are items."""

LARGEST = {
    "vocab_size": 2**31 - 1,
    "hidden_size": 2**16,
    "num_hidden_layers": 1_000,
    "intermediate_size": 2**20,
    "max_history_length": 2**20,
}
"""Far beyond any use; what a broken file states beyond them would be built for hours."""

POSITION_TYPES = ("learned", "rotary")
POSITION_ORIGINS = ("oldest", "newest")


FIELD_NAMES = {
    "max_position_embeddings": "max_history_length",
    "max_seq_length": "max_history_length",
    "maxlen": "max_history_length",
    "d_model": "hidden_size",
    "embedding_dim": "hidden_size",
    "num_layers": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "inner_size": "intermediate_size",
    "hidden_dropout_prob": "hidden_dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "attn_dropout_prob": "attention_dropout",
}
"""What BERT of transformers and other libraries of recommenders call the same settings."""


@strict
class BERT4RecConfig(PreTrainedConfig):
    """Shape and switches of a BERT4Rec (Sun et al., 2019, https://arxiv.org/abs/1904.06690).

    The defaults are the paper's network. Three switches lead to the modern one: `norm_first=True`,
    `position_origin="newest"`, and `output_transform=False` with `output_bias=False`.

    >>> BERT4RecConfig(vocab_size=12).num_items
    10
    """

    model_type = "bert4rec"
    attribute_map = FIELD_NAMES

    vocab_size: int = 1_002
    """Items of the catalog plus padding and mask; `resize_token_embeddings` assigns to it."""

    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 256
    hidden_act: str = "gelu"

    max_history_length: int = 50
    """Positions of one input: the newest items of a history and the mask after them."""

    position_type: str = "learned"
    """`learned`: a vector per position, added to the item's. `rotary`: attention turns by how far
    apart items stand (Su et al., 2021, https://arxiv.org/abs/2104.09864)."""

    rotary_base: float | int = 100
    """The slowest turn takes nearly 2 pi times so many items."""

    position_origin: str = "oldest"
    """Where learned positions are counted from: the oldest item of the input, or the newest."""

    is_causal: bool = False
    """Let items see older ones only, and each name the next: a SASRec of the same parts (Kang and
    McAuley, 2018, https://arxiv.org/abs/1808.09781), to compare with. Its scores for the next item
    stand at the newest item and not at the mask."""

    norm_first: bool = False
    """Normalize before attention and feed-forward network (and at the end), not after them."""

    output_transform: bool = True
    """Put a dense layer, the activation and a norm between the encoder and the scores."""

    output_bias: bool = True
    """Give each item a score of its own, whatever the history."""

    tie_word_embeddings: bool = True
    """Score items by the same table that embeds them."""

    num_neighbors: int = 0
    """Items kept beside each item because they stood close to it in the training part, and mixed
    into the scores, see neighbors.py; 0 keeps none, and 50 are about as good as all."""

    neighbor_distance: int = 5
    """Places that two items of a history may stand apart and count as close."""

    num_recent_items: int = 10
    """Newest items of a history whose neighbors are mixed in."""

    neighbor_decay: float | int = 0.7
    """What each of them counts relative to the one after it."""

    objective: str = "full_softmax"
    """What training minimizes: `full_softmax`, `sampled_softmax` or `gbce`, see objectives.py."""

    gbce_calibration: float | int = 0.75
    """The t of gBCE: 0 is plain binary cross-entropy, 1 wholly calibrated."""

    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    mask_token_id: int = 1
    bos_token_id: int | None = None
    eos_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Take settings under the field's other names, and refuse what is likely a slip.

        Raises:
            ValueError: A name is none of a setting and close to one.
        """
        names = [*vars(BERT4RecConfig)["__annotations__"], *FIELD_NAMES]
        for name in kwargs:
            if not hasattr(self, name) and (close := get_close_matches(name, names, 1, 0.85)):
                raise ValueError(
                    f"{name} is not a setting of BERT4RecConfig; did you mean {close[0]}?"
                )
        super().__post_init__(**kwargs)

    @property
    def num_items(self) -> int:
        """Size of the catalog."""
        return self.vocab_size - NUM_SPECIAL_IDS

    def validate_bounds(self) -> None:
        for name, largest in LARGEST.items():
            if getattr(self, name) > largest:
                raise ValueError(f"{name} must be at most {largest:,}, got {getattr(self, name)}")

    def validate_vocab_size(self) -> None:
        if self.vocab_size <= NUM_SPECIAL_IDS:
            raise ValueError(
                f"vocab_size must exceed {NUM_SPECIAL_IDS} (padding, mask and at least one item), "
                f"got {self.vocab_size}"
            )

    def validate_sizes(self) -> None:
        for name in (
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.initializer_range <= 0:
            raise ValueError(f"initializer_range must be positive, got {self.initializer_range}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size must be a multiple of num_attention_heads, "
                f"got {self.hidden_size} and {self.num_attention_heads}"
            )

    def validate_hidden_act(self) -> None:
        if self.hidden_act not in ACT2FN:
            raise ValueError(
                f"hidden_act must be an activation of transformers such as gelu, silu or relu, "
                f"got {self.hidden_act!r}"
            )

    def validate_max_history_length(self) -> None:
        if self.max_history_length < 2:
            raise ValueError(
                "max_history_length must hold at least an item and the mask after it, "
                f"got {self.max_history_length}"
            )

    def validate_position_type(self) -> None:
        if self.position_type not in POSITION_TYPES:
            raise ValueError(
                f"position_type must be one of {', '.join(POSITION_TYPES)}, "
                f"got {self.position_type!r}"
            )
        if self.position_type == "rotary" and self.hidden_size // self.num_attention_heads % 2:
            raise ValueError(
                "rotary positions turn pairs of numbers, so that hidden_size / num_attention_heads "
                f"must be even, got {self.hidden_size} / {self.num_attention_heads}"
            )
        if self.rotary_base <= 1:
            raise ValueError(f"rotary_base must exceed 1, got {self.rotary_base}")

    def validate_position_origin(self) -> None:
        if self.position_origin not in POSITION_ORIGINS:
            raise ValueError(
                f"position_origin must be one of {', '.join(POSITION_ORIGINS)}, "
                f"got {self.position_origin!r}"
            )

    def validate_dropout(self) -> None:
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")

    def validate_neighbors(self) -> None:
        if self.num_neighbors < 0:
            raise ValueError(f"num_neighbors must be 0 or more, got {self.num_neighbors}")
        for name in ("neighbor_distance", "num_recent_items"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.neighbor_decay <= 1:
            raise ValueError(f"neighbor_decay must be in (0, 1], got {self.neighbor_decay}")

    def validate_gbce_calibration(self) -> None:
        if not 0 <= self.gbce_calibration <= 1:
            raise ValueError(f"gbce_calibration must be in [0, 1], got {self.gbce_calibration}")

    def validate_special_ids(self) -> None:
        if (self.pad_token_id, self.mask_token_id) != (0, 1):
            raise ValueError(
                "pad_token_id and mask_token_id are 0 and 1 in every BERT4Rec vocabulary, "
                f"got {self.pad_token_id} and {self.mask_token_id}"
            )


BERT4RecConfig.register_for_auto_class()
