import pytest
import torch

from bert4rec_hf.lab.benchmark.bert4rec import (
    BERT4RecContestant,
    build_adapter,
    build_loader,
    count_items,
)
from bert4rec_hf.lab.benchmark.bert_for_masked_lm import BertForMaskedLMContestant
from bert4rec_hf.lab.benchmark.task import Settings, hold_out_last, pad, rank_by_comparison
from bert4rec_hf.lab.benchmark.workloads import draw_histories
from bert4rec_hf.tuners import TUNERS

CONTESTANTS = {
    "full_softmax": lambda task: BERT4RecContestant(task, "full_softmax"),
    "sampled_softmax": lambda task: BERT4RecContestant(task, "sampled_softmax"),
    "gbce": lambda task: BERT4RecContestant(task, "gbce"),
    "bert_for_masked_lm": BertForMaskedLMContestant,
}


@pytest.fixture(scope="module", params=CONTESTANTS)
def contestant(request, tiny):
    made = CONTESTANTS[request.param](tiny(request.param))
    made.build()
    return made


def test_training_changes_the_weights_and_counts_its_work(contestant, tiny):
    before = [weight.clone() for weight in contestant.model.parameters()]
    work = contestant.train(7)  # of 7 histories each: all but 4 of the 53
    assert work.histories == 49
    lengths = draw_histories(tiny("gbce").workload, seed=0).lengths
    assert lengths.sum() - 4 * 11 <= work.items <= lengths.sum() - 4 * 3
    after = contestant.model.parameters()
    assert all((old != new).any() for old, new in zip(before, after, strict=True))


def test_evaluation_counts_users_and_what_is_read_of_them(contestant, tiny):
    work = contestant.evaluate(2)
    lengths = draw_histories(tiny("gbce").workload, seed=0).lengths
    assert work == (14, lengths[:14].sum() - 14)


def test_collation_goes_on_where_it_stopped(contestant):
    works = [contestant.collate(2) for _ in range(2)]
    assert [work.histories for work in works] == [14, 14]
    assert works[0].items != works[1].items


def test_views_of_the_recipe_ask_after_every_prefix(tiny):
    """A window of n items is read with n - 1 masks beside it, less its last item, all packed."""
    task = tiny("full_softmax", prefix_view_ratio=1.0)
    batch = next(iter(build_loader(task, is_sampled=False)))
    asked = (batch["labels"] >= 0).sum().item()
    assert count_items(batch) == 2 * asked
    lengths = draw_histories(task.workload, seed=0).lengths
    assert 7 * (lengths.min() - 1) <= asked <= 7 * (lengths.max() - 1)
    contestant = BERT4RecContestant(task, "full_softmax")
    contestant.build()
    assert contestant.model.config.position_type == "rotary"
    assert contestant.train(1).histories == 7


@pytest.mark.parametrize("objective", ["full_softmax", "gbce"])
@pytest.mark.parametrize("adapter", TUNERS)
def test_an_adapter_is_trained_in_place_of_the_model(tiny, adapter, objective):
    contestant = BERT4RecContestant(tiny(objective, adapter=adapter), objective)
    contestant.build()
    weights = dict(contestant.model.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    assert contestant.train(3).histories == 21
    changed = {name for name, weight in weights.items() if (weight != before[name]).any()}
    assert changed == {name for name in weights if f".{adapter}_" in name}
    assert not contestant.run.tables  # frozen ones have no gradient, by row or not
    assert contestant.evaluate(2).histories == 14


# In two layers of width 12: what the pairs of q_proj and v_proj have, or those of all six; (IA)³
# has a factor per output of k_proj and v_proj, and per input of down_proj.
@pytest.mark.parametrize(
    ("adapter", "targets", "trainable"),
    [
        ("lora", "default", 2 * 2 * 4 * (12 + 12)),
        ("lora", "all-linear", 2 * 4 * (4 * (12 + 12) + 2 * (12 + 48))),
        ("ilora", "default", 2 * 2 * 4 * (12 + 12) + 4 * (12 + 1)),
        ("ilora", "all-linear", 2 * 4 * (4 * (12 + 12) + 2 * (12 + 48)) + 4 * (12 + 1)),
        ("ia3", "default", 2 * (12 + 12 + 48)),
        ("ia3", "all-linear", 2 * (4 * 12 + 48 + 48)),
    ],
)
def test_an_adapter_has_the_weights_of_its_targets(tiny, adapter, targets, trainable):
    task = tiny("full_softmax", adapter=adapter, adapter_targets=targets, r=4)
    contestant = BERT4RecContestant(task, "full_softmax")
    contestant.build()
    assert contestant.model.get_nb_trainable_parameters()[0] == trainable


@pytest.mark.parametrize("adapter", ["lora", "ilora"])
def test_dropout_of_a_pair_is_none_unless_asked_for(adapter):
    assert build_adapter(Settings(adapter=adapter)).lora_dropout == 0
    assert build_adapter(Settings(adapter=adapter, adapter_dropout=0.3)).lora_dropout == 0.3


def test_filler_is_not_an_item():
    batch = {"input_ids": torch.tensor([[5, 1, 9, 0, 0]])}
    assert count_items(batch).item() == 3


def test_the_last_items_are_held_out_and_rows_start_over(tiny):
    histories = draw_histories(tiny("gbce").workload, seed=0)
    inputs, targets = hold_out_last(histories, 55)
    assert inputs[54].tolist() == histories[1].tolist()[:-1]
    assert targets[54] == histories[1][-1]


def test_ranks_by_comparison_count_ties_against_the_target():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    assert rank_by_comparison(scores, torch.tensor([2, 0])).tolist() == [2, 2]


def test_padding_stands_behind_the_items():
    assert pad([[7, 8], [9]], 3).tolist() == [[7, 8, 0], [9, 0, 0]]
