"""Raw items to ids: a vocabulary that splits nothing, and names what it does not know."""

from collections.abc import Iterator
from typing import Any

from tokenizers.models import WordLevel
from transformers import AddedToken, BatchEncoding, PreTrainedTokenizerFast


class BERT4RecTokenizer(PreTrainedTokenizerFast):
    """A vocabulary of items, in which a text is one item and a history a list of words.

    >>> tokenizer(["heat", "alien"], is_split_into_words=True).input_ids  # doctest: +SKIP
    [8, 2]
    """

    def add_tokens(
        self,
        new_tokens: str | AddedToken | list[str | AddedToken],
        special_tokens: bool = False,
    ) -> int:
        """Let the catalog grow; `model.resize_token_embeddings(len(tokenizer))` follows.

        An added token of transformers would be found inside other items, too: "2" in "12".

        Args:
            new_tokens: Raw items, which get the next ids.
            special_tokens: Whether they are no items.

        Returns:
            How many were not there before.
        """
        tokens = new_tokens if isinstance(new_tokens, list | tuple) else [new_tokens]
        if special_tokens or not all(isinstance(token, str) for token in tokens):
            return super().add_tokens(list(tokens), special_tokens=special_tokens)
        ids = self.backend_tokenizer.get_vocab()
        new = [token for token in dict.fromkeys(tokens) if token not in ids]
        if new:
            grown = ids | {token: len(ids) + place for place, token in enumerate(new)}
            self.backend_tokenizer.model = WordLevel(grown)
        return len(new)

    def _encode_plus(self, text: Any, *args: Any, **kwargs: Any) -> BatchEncoding:
        try:
            return super()._encode_plus(text, *args, **kwargs)
        except Exception as error:
            ids = self.get_vocab()
            items = list(find_items(text))
            unknown = [item for item in items if item not in ids]
            if not unknown:
                raise
            raise KeyError(
                f"{len(unknown)} of {len(items)} items are not in the catalog, the first is "
                f"{unknown[0]!r}; a text is one item, and a history a list of them with "
                "is_split_into_words=True, or pipeline('next-item-recommendation')"
            ) from error


def find_items(text: Any) -> Iterator[str]:
    """List the items of a text, of a list, or of lists in a list."""
    if isinstance(text, str):
        yield text
    else:
        for part in text:
            yield from find_items(part)


BERT4RecTokenizer.register_for_auto_class("AutoTokenizer")
