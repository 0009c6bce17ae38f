"""No adapter tells a position what it may not see: what lies after it can change and it does not.

Who may see whom is worked out from the views themselves, one pair of positions at a time.
"""

import numpy as np
import pytest
import torch
from peft import get_peft_model

from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.tuners import TUNERS

HISTORIES = [np.array([5, 9, 3]), np.array([8, 2, 12, 7, 11, 4]), np.array([6, 10, 7, 3, 9, 5, 2])]
OTHER_ITEM = 13

VIEWS = {
    "masked": {"mask_ratio": 0.4, "last_item_ratio": 0.0},
    "last item": {"last_item_ratio": 1.0},
    "prefixes": {"prefix_view_ratio": 1.0, "prefix_ratio": 1.0, "last_item_ratio": 0.0},
    "some prefixes": {"prefix_view_ratio": 1.0, "prefix_ratio": 0.4, "last_item_ratio": 0.0},
    "mixed": {"prefix_view_ratio": 0.6, "prefix_ratio": 0.6, "last_item_ratio": 0.2},
    "causal": {"is_causal": True},
}
CASES = [
    (views, is_packed)
    for views in VIEWS
    for is_packed in (True, False)
    if is_packed or "prefix_view_ratio" not in VIEWS[views]  # which can only be packed
]

ADAPTERS = {
    "lora": {"target_modules": "all-linear", "init_lora_weights": False},
    "ia3": {},
    "ilora": {"target_modules": "all-linear", "init_weights": False, "r": 6, "num_experts": 3},
}


def test_every_tuner_is_here():
    assert ADAPTERS.keys() == TUNERS.keys()


def make_adapted(tuner, is_causal):
    torch.manual_seed(0)
    config = BERT4RecConfig(
        vocab_size=14,
        hidden_size=12,
        num_attention_heads=3,
        intermediate_size=20,
        max_history_length=7,
        position_type="rotary",
        initializer_range=0.5,
        output_transform=False,
        is_causal=is_causal,
    )
    model = BERT4RecForMaskedItemModeling(config)
    model = get_peft_model(model, TUNERS[tuner](**ADAPTERS[tuner]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ilora_gate" in name or "ia3_" in name:
                weight.normal_()
    return model.double().eval()


def read_positions(batch):
    """(history, place, prefix, whether a query) of each position, in plain numbers."""
    if "cu_seq_lens_q" not in batch:
        places = batch["attention_mask"].cumsum(1) - 1
        return [
            (row, place, 0, False) for row, line in enumerate(places.tolist()) for place in line
        ]
    ends = batch["cu_seq_lens_q"].tolist()
    none = torch.zeros_like(batch["input_ids"])
    prefixes = batch.get("prefix_ids", none)[0].tolist()
    is_query = batch.get("is_query", none)[0].tolist()
    places = batch["position_ids"][0].tolist()
    return [
        (history, places[position], prefixes[position], bool(is_query[position]))
        for history, (start, stop) in enumerate(zip(ends, ends[1:], strict=False))
        for position in range(start, stop)
    ]


def may_see(reader, other, is_causal):
    """Whether one position may read another of the batch."""
    if reader == other:
        return True
    (history, place, prefix, _), (other_history, other_place, other_prefix, is_query) = (
        reader,
        other,
    )
    if history != other_history or is_query or other_place < 0:
        return False
    return other_place <= place if is_causal else other_prefix <= prefix


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize(("views", "is_packed"), CASES)
def test_what_a_position_may_not_see_can_change_and_it_does_not(tuner, views, is_packed):
    is_causal = views == "causal"
    model = make_adapted(tuner, is_causal)
    collator = MaskedItemCollator(max_history_length=7, is_packed=is_packed, **VIEWS[views])
    batch = collator([{"items": items, "view": 5} for items in HISTORIES])
    names = ("attention_mask", "position_ids", "cu_seq_lens_q", "max_length_q")
    names += ("prefix_ids", "is_query")
    layout = {name: batch[name] for name in names if name in batch}

    @torch.no_grad()
    def read(input_ids):
        return model.base_model.model.model(input_ids=input_ids, **layout).last_hidden_state

    ids, positions = batch["input_ids"], read_positions(batch)
    before = read(ids).flatten(0, 1)
    num_unseen = 0
    for changed, other in enumerate(positions):
        if other[1] < 0:
            continue
        perturbed = ids.clone()
        perturbed.view(-1)[changed] = OTHER_ITEM
        moved = (read(perturbed).flatten(0, 1) - before).abs().amax(dim=1)
        for reader, distance in zip(positions, moved.tolist(), strict=True):
            if reader[1] < 0:
                continue
            if may_see(reader, other, is_causal):
                assert distance > 1e-6
            else:
                assert distance < 1e-9
                num_unseen += reader[0] == other[0]
    # Within a history there is nothing to hide where all of it is masked or seen.
    assert (num_unseen > 20) == (views not in ("masked", "last item"))


def test_a_query_of_a_prefix_view_is_weighed_as_its_prefix_would_be_alone():
    model = make_adapted("ilora", is_causal=False)
    collator = MaskedItemCollator(max_history_length=7, **VIEWS["some prefixes"])
    batch = collator([{"items": items, "view": 5} for items in HISTORIES])
    positions, queries = read_positions(batch), batch["masked_positions"]
    weights = model.base_model.gate_weights(keep=queries, **batch)
    assert len(queries) > 6
    for query, actual in zip(queries.tolist(), weights, strict=True):
        history, place, *_ = positions[query]
        items = sorted(HISTORIES, key=len)[history][:place]
        alone = model.base_model.gate_weights(input_ids=torch.tensor([[*items, 1]]))
        torch.testing.assert_close(actual, alone[0])


def test_a_causal_model_is_weighed_at_its_newest_item_as_without_the_mask_behind_it():
    model = make_adapted("ilora", is_causal=True)
    items = torch.tensor([[0, 0, 6, 2], [5, 9, 3, 8]])
    expected = model.base_model.gate_weights(input_ids=items)
    with_masks = torch.cat([items, torch.ones(2, 1, dtype=torch.long)], dim=1)
    newest = torch.tensor([3, 8])
    actual = model.base_model.gate_weights(keep=newest, input_ids=with_masks)
    torch.testing.assert_close(actual, expected)
