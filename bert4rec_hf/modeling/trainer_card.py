"""What `Trainer.push_to_hub` publishes of a model of ours: our card, the vocabulary and the titles.

Trainer writes a card of its own, "More information needed", after the model was saved and just
before it uploads the folder. It asks TrainingSummary for it, and no model is asked.
"""

from pathlib import Path
from typing import Any, NamedTuple

from transformers.modelcard import TrainingSummary

from .modeling_bert4rec import BERT4RecPreTrainedModel
from .publishing import CARD_NAME, complete_folder, copy_companions


class WrittenCard(NamedTuple):
    """A card as Trainer wants one."""

    text: str

    def to_model_card(self) -> str:
        """The text."""
        return self.text


def describe_trained(trainer: Any, **options: Any) -> Any:
    """Describe what a Trainer trained, and complete its folder if that is a model of ours.

    Args:
        trainer: Has saved its model to its output folder.
        options: Of `Trainer.create_model_card`.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not isinstance(model, BERT4RecPreTrainedModel):
        return summarize(trainer, **options)
    folder = Path(trainer.args.output_dir)
    copy_companions(folder, str(getattr(trainer.processing_class, "name_or_path", "")))
    complete_folder(folder, model.name_or_path, model.config)
    return WrittenCard((folder / CARD_NAME).read_text(encoding="utf-8"))


summarize = TrainingSummary.from_trainer
TrainingSummary.from_trainer = staticmethod(describe_trained)
