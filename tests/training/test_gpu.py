"""What a GPU computes by other kernels than a CPU: each test runs on both, `pytest -m gpu` there.

The witness is a plain computation in double precision on the CPU.
"""

import math

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import nn
from torch.nn import functional as F

from bert4rec_hf.data.negatives import NegativeSampler
from bert4rec_hf.data.views import MaskedItemCollator
from bert4rec_hf.evaluation import EvaluationConfig, rank_histories
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.ranking import CatalogScores, item_sets, rank_targets, top_items
from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling
from bert4rec_hf.modeling.objectives import ItemTable, Negatives, full_softmax, sampled_softmax
from bert4rec_hf.training.loop import TrainingRun
from bert4rec_hf.training.optimizer import RowAdamW

GPU = pytest.param("cuda", marks=pytest.mark.gpu)
SINGLE = [("cpu", "no"), pytest.param("cuda", "no", marks=pytest.mark.gpu)]
HALF = [("cpu", "bf16"), pytest.param("cuda", "bf16", marks=pytest.mark.gpu)]
FP16 = pytest.param("cuda", "fp16", marks=pytest.mark.gpu)
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
TOLERANCES = {"no": 1e-4, "bf16": 4e-2, "fp16": 5e-3}
MASKED, HIDDEN, VOCAB = 71, 24, 1_031


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def gradients(loss, inputs):
    return [each.to_dense().cpu().double() for each in torch.autograd.grad(loss, inputs)]


@pytest.fixture
def scored():
    """States, a table, targets, and what each masked item counts."""
    targets = torch.randint(2, VOCAB, (MASKED,), generator=torch.Generator().manual_seed(1))
    return draw(MASKED, HIDDEN), draw(VOCAB, HIDDEN, seed=2) / 5, targets


@pytest.mark.parametrize(("device", "precision"), [*SINGLE, *HALF, FP16])
def test_the_full_softmax_is_cross_entropy(scored, device, precision):
    states, table, targets = scored
    exact = [each.double().requires_grad_() for each in (states, table)]
    expected = F.cross_entropy(exact[0] @ exact[1][2:].T, targets - 2)
    inputs = [each.to(device).requires_grad_() for each in (states, table)]
    weights = torch.full((MASKED,), 1 / MASKED, device=device)
    with torch.autocast(device, DTYPES[precision], enabled=precision != "no"):
        loss = full_softmax(inputs[0], targets.to(device), weights, ItemTable(inputs[1], None))
    tolerance = TOLERANCES[precision]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
    pairs = zip(gradients(loss, inputs), gradients(expected, exact), strict=True)
    for actual, wanted in pairs:
        assert (actual - wanted).norm() < 2 * tolerance * wanted.norm()


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_the_sampled_softmax_gives_rows_a_gradient(scored, device):
    states, table, targets = scored
    ids = torch.randint(2, VOCAB, (97,), generator=torch.Generator().manual_seed(3))
    log_counts = draw(97, seed=4) / 3
    exact = [each.double().requires_grad_() for each in (states, table)]
    own = (exact[0] * exact[1][targets]).sum(dim=1)
    others = exact[0] @ exact[1][ids].T - log_counts
    others = others.masked_fill(targets[:, None] == ids, -math.inf)
    expected = (torch.logaddexp(own, others.logsumexp(dim=1)) - own).mean()
    inputs = [each.to(device).requires_grad_() for each in (states, table)]
    loss = sampled_softmax(
        inputs[0],
        targets.to(device),
        torch.full((MASKED,), 1 / MASKED, device=device),
        ItemTable(inputs[1], None, takes_rows=True),
        Negatives(ids.to(device), log_counts.to(device)),
    )
    assert torch.autograd.grad(loss, inputs[1], retain_graph=True)[0].is_sparse
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for actual, wanted in zip(gradients(loss, inputs), gradients(expected, exact), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("is_sparse", [True, False], ids=["row-sparse", "dense"])
def test_rows_without_a_gradient_are_left_alone(device, is_sparse):
    """Each row is stepped as a parameter of its own, in double precision, that has a gradient."""
    start = draw(7, 3)
    table = nn.Parameter(start.to(device))
    rows = [nn.Parameter(row.double()) for row in start]
    settings = {"lr": 0.1, "weight_decay": 0.3}
    optimizer = RowAdamW([{"params": [table], "by_row": True}], **settings, fused=True)
    reference = torch.optim.AdamW(rows, **settings)
    for step, touched in enumerate([[1, 4], [4], [0, 1, 4], [6], [], [1, 6]]):
        values, place = draw(len(touched), 3, seed=step), torch.tensor([touched]).long()
        gradient = torch.sparse_coo_tensor(place, values, (7, 3), check_invariants=True)
        table.grad = (gradient if is_sparse else gradient.to_dense()).to(device)
        for index, row in enumerate(rows):
            row.grad = gradient.to_dense()[index].double() if index in touched else None
        optimizer.step()
        reference.step()
        expected = torch.stack(rows).detach()
        torch.testing.assert_close(table.detach().cpu().double(), expected, rtol=1e-5, atol=1e-6)


VIEWS = {
    "masked": ({}, {"mask_ratio": 0.4}),
    "prefixes": ({"position_type": "rotary"}, {"prefix_view_ratio": 1.0, "last_item_ratio": 0.0}),
    "causal": ({"is_causal": True}, {"is_causal": True}),
}


def make_model(**settings):
    torch.manual_seed(0)
    shape = {
        "vocab_size": 53,
        "hidden_size": 32,
        "num_attention_heads": 2,
        "intermediate_size": 40,
        "max_history_length": 19,
        "num_hidden_layers": 3,
        "norm_first": True,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }
    return BERT4RecForMaskedItemModeling(BERT4RecConfig(**shape | settings))


def make_histories(count=23):
    generator = torch.Generator().manual_seed(5)
    lengths = torch.randint(2, 30, (count,), generator=generator).tolist()
    return [torch.randint(2, 53, (n,), generator=generator).numpy() for n in lengths]


def make_batch(**settings):
    collator = MaskedItemCollator(max_history_length=19, **settings)
    return collator([{"items": items, "view": i} for i, items in enumerate(make_histories())])


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize(("model", "views"), VIEWS.values(), ids=VIEWS)
def test_packed_histories_of_every_kind_of_view_give_the_loss_of_double_precision(
    device, model, views
):
    batch = make_batch(**views)
    exact = make_model(**model).double()
    expected = exact(**batch).loss
    expected.backward()
    ours = make_model(**model).to(device)
    loss = ours(**send_to_device(batch, device)).loss
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    for weight, wanted in zip(ours.parameters(), exact.parameters(), strict=True):
        error = (weight.grad.cpu().double() - wanted.grad).norm()
        assert error <= 1e-3 * wanted.grad.norm() + 1e-6


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_ranks_and_best_items_are_those_of_a_full_sort(device):
    model, histories = make_model().to(device).eval(), make_histories()
    targets = torch.randint(2, 53, (len(histories),), generator=torch.Generator().manual_seed(6))
    scorer = ModelScorer(model)
    with torch.no_grad():
        scores = scorer.score(scorer.encode(histories), 2, 53).cpu()
    config = EvaluationConfig(ks=[10], seen_targets="ranked", chunk_size=7)
    found = rank_histories(scorer, histories, targets.numpy(), config, num_top=5)
    with torch.no_grad():
        chunks = CatalogScores(scorer, scorer.encode(histories), chunk_size=7)
        ranks = rank_targets(chunks, targets, item_sets(histories, keep=targets.numpy())).cpu()
        best = top_items(chunks, 5, item_sets(histories))[0].cpu()
    for row, history in enumerate(histories):
        left_out = set(history.tolist())
        order = sorted(set(range(2, 53)) - left_out, key=lambda item: -scores[row, item - 2].item())
        assert best[row].tolist() == order[:5]
        candidates = [*(item for item in order if item != targets[row]), targets[row].item()]
        own = scores[row, targets[row] - 2]
        expected = 1 + sum(scores[row, item - 2] >= own for item in candidates[:-1])
        assert ranks[row] == found.ranks[row] == expected


@pytest.fixture
def accelerate():
    """Make an accelerator of another precision than the one before, of which there is but one."""

    def make(device, precision):
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(mixed_precision=precision, cpu=device == "cpu")

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def train(tmp_path, small, accelerate):
    """Train the smallest model in a precision, the losses of some steps multiplied."""

    def run(device, precision, steps=12, factors=None, **settings):
        accelerator = accelerate(device, precision)
        config = small.make_config(max_steps=steps, warmup_ratio=0, **settings)
        model = small.make_model(hidden_dropout=0, attention_dropout=0)
        training = TrainingRun(model, config, accelerator, tmp_path)
        seen, losses = iter(range(1, steps + 1)), []

        def change(module, inputs, output):
            output.loss = output.loss * (factors or {}).get(next(seen), 1.0)
            return output

        training.unwrapped.register_forward_hook(change)
        training.model.train()
        scales = []
        for batch in accelerator.prepare(small.make_loader(config)):
            losses.append(training.learn(batch).item())
            training.state.step += 1
            scales.append(accelerator.scaler.get_scale() if accelerator.scaler else None)
        return training, losses, scales

    return run


@pytest.mark.parametrize(("device", "precision"), [*HALF, FP16])
def test_half_precision_learns_as_single_precision_does(train, device, precision):
    _, expected, _ = train("cpu", "no")
    training, losses, _ = train(device, precision)
    assert losses == pytest.approx(expected, rel=0.1)
    assert all(weight.dtype == torch.float32 for weight in training.unwrapped.parameters())
    assert all(weight.isfinite().all() for weight in training.unwrapped.parameters())


@pytest.mark.gpu
def test_a_step_that_overflows_in_fp16_is_left_out_and_the_scale_is_halved(train):
    """The loss is finite and its scaled gradient is not: nothing bad, the scale was too large."""
    training, losses, scales = train("cuda", "fp16", factors={8: 1e30})
    assert math.isfinite(losses[7])
    assert scales[7] == scales[6] / 2
    assert training.state.skipped_steps == []
    assert all(weight.isfinite().all() for weight in training.unwrapped.parameters())


@pytest.mark.gpu
def test_a_loss_that_is_not_finite_in_fp16_is_skipped_as_the_settings_say(train):
    training, _, _ = train("cuda", "fp16", factors={8: math.nan}, on_bad_step="skip")
    assert training.state.skipped_steps == [8]
    assert all(weight.isfinite().all() for weight in training.unwrapped.parameters())


@pytest.mark.parametrize(("device", "precision"), [*HALF, FP16])
def test_rows_are_stepped_in_half_precision_as_in_single(small, accelerate, device, precision):
    """Under a scaler a row-sparse gradient is divided by the scale like every other."""
    config = small.make_config(max_steps=6, warmup_ratio=0)
    results = {}
    for where, how in (("cpu", "no"), (device, precision)):
        accelerator = accelerate(where, how)
        model = small.make_model(hidden_dropout=0, attention_dropout=0, objective="gbce")
        model.use_row_gradients()
        training = TrainingRun(model, config, accelerator, folder=None)
        loader = small.make_loader(config)
        loader.collate_fn.negatives = NegativeSampler(torch.ones(17).numpy(), 9, "uniform")
        training.model.train()
        for batch in accelerator.prepare(loader):
            training.learn(batch)
        results[how] = training.unwrapped.get_input_embeddings().weight.detach().cpu()
    moved = results["no"] - small.make_model().get_input_embeddings().weight.detach()
    assert (results[precision] - results["no"]).norm() < 0.2 * moved.norm()
