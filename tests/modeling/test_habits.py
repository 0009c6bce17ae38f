"""What people do with models of transformers and PEFT, done with this one."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from bert4rec_hf.modeling import BERT4RecConfig, BERT4RecForMaskedItemModeling

IDS = torch.tensor([[0, 5, 1, 1], [7, 1, 9, 2], [3, 4, 1, 6]])
LABELS = torch.tensor([[-100, -100, 8, 3], [-100, 6, -100, -100], [-100, -100, 2, -100]])


def make_model(**settings):
    torch.manual_seed(0)
    shape = {"vocab_size": 11, "hidden_size": 12, "intermediate_size": 20}
    return BERT4RecForMaskedItemModeling(BERT4RecConfig(**shape | settings))


@pytest.fixture
def rows():
    return [{"input_ids": ids, "labels": labels} for ids, labels in zip(IDS, LABELS, strict=True)]


def make_trainer(folder, rows, **options):
    settings = {name: options.pop(name) for name in ("label_smoothing_factor",) if name in options}
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        max_steps=2,
        logging_steps=1,
        use_cpu=True,
        **settings,
    )
    return Trainer(make_model(), arguments, train_dataset=rows, eval_dataset=rows, **options)


def test_compute_metrics_and_predict_see_the_scores_of_masked_items(rows, tmp_path):
    def accuracy(prediction):
        targets = prediction.label_ids[prediction.label_ids != -100]
        assert prediction.predictions.shape == (len(targets), 11)
        return {"hits": float((prediction.predictions.argmax(-1) == targets).mean())}

    trainer = make_trainer(tmp_path, rows, compute_metrics=accuracy)
    with torch.no_grad():
        expected = trainer.model.eval()(IDS).logits[LABELS != -100].numpy()
    predicted = trainer.predict(rows).predictions
    np.testing.assert_allclose(predicted, expected, atol=1e-6)
    hits = (expected.argmax(-1) == LABELS[LABELS != -100].numpy()).mean()
    assert trainer.evaluate()["eval_hits"] == pytest.approx(hits)


def test_label_smoothing_learns_from_finite_numbers(rows, tmp_path):
    trainer = make_trainer(tmp_path, rows, label_smoothing_factor=0.1)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    # A loss near log(9) = 2.2 for the items, and a tenth of the mean over all, special ones too.
    assert all(2 < loss < 4 for loss in losses)


def test_distillation_is_finite():
    teacher, student = make_model().eval()(IDS).logits, make_model(hidden_size=8)(IDS).logits
    divergence = F.kl_div(
        student.log_softmax(-1), teacher.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert divergence.isfinite()
    assert divergence > 0


def test_settings_are_known_by_the_names_of_the_field(tmp_path):
    config = BERT4RecConfig(
        max_position_embeddings=200,
        hidden_dropout_prob=0.5,
        attention_probs_dropout_prob=0.3,
        n_layers=3,
        inner_size=7,
    )
    found = (config.max_history_length, config.hidden_dropout, config.attention_dropout)
    assert found == (200, 0.5, 0.3)
    assert (config.num_hidden_layers, config.intermediate_size) == (3, 7)
    config.save_pretrained(tmp_path)
    assert "max_position_embeddings" not in (tmp_path / "config.json").read_text()
    assert BERT4RecConfig.from_pretrained(tmp_path).max_history_length == 200
    with pytest.raises(Exception, match=r"hidden_dropout must be in \[0, 1\), got 1.5"):
        BERT4RecConfig(hidden_dropout_prob=1.5)


def test_a_slip_in_a_name_is_refused():
    with pytest.raises(ValueError, match="hiden_size is not a setting .* did you mean hidden_size"):
        BERT4RecConfig(hiden_size=3)
    assert BERT4RecConfig(auto_map={"AutoConfig": "a.B"}).auto_map == {"AutoConfig": "a.B"}


@pytest.mark.parametrize("kind", [LoraConfig, VeraConfig])
def test_an_adapter_without_targets_sits_in_attention(kind):
    model = get_peft_model(make_model(), kind())
    names = {name.rpartition(".")[2] for name in model.targeted_module_names}
    assert names == {"q_proj", "v_proj"}
