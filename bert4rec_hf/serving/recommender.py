"""A trained folder in use: raw items in, ranked raw items with scores and titles out."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.utils import cached_file

from bert4rec_hf.data.vocabulary import build_vocabulary
from bert4rec_hf.evaluation.model_scorer import ModelScorer
from bert4rec_hf.evaluation.ranking import FIRST_ITEM_ID, HISTORIES_AT_ONCE, ItemSets, item_sets
from bert4rec_hf.hub.adapter_base import check_base
from bert4rec_hf.hub.model_folder import load_adapter, load_model
from bert4rec_hf.hub.pull import fetch_folder
from bert4rec_hf.hub.push import push
from bert4rec_hf.modeling import BERT4RecForMaskedItemModeling
from bert4rec_hf.modeling.publishing import complete_folder, set_tokenizer_class
from bert4rec_hf.serving.ann import ItemIndex
from bert4rec_hf.serving.candidates import CandidateScorer
from bert4rec_hf.serving.catalog import Catalog
from bert4rec_hf.serving.choices import COLD_HISTORIES, UNKNOWN_ITEMS
from bert4rec_hf.serving.histories import HistoryBatch, answer, answer_vectors, read_histories
from bert4rec_hf.serving.vectors import Vectors


class Recommendation(NamedTuple):
    """One recommended item."""

    item: str
    score: float
    title: str | None = None


class Recommendations(list[Recommendation]):
    """What one history is recommended, best first: a list that knows why it is empty."""

    problem: str | None = None
    """Why the history could not be read; None where it could."""


class Options(NamedTuple):
    """What a request asks for besides its histories."""

    k: int
    candidates: CandidateScorer | ItemIndex
    exclude: Mapping[Any, Iterable[str]]
    exclude_seen: bool
    cold: str
    unknown: str


class Recommender:
    """A model and its vocabulary, for histories of raw items.

    Args:
        model: Trained.
        tokenizer: The vocabulary it was trained with.
        titles: Title of each raw item that has one.
        popularity: (vocab,) interactions of each id, for histories without a known item; see
            `count_popularity`.

    Raises:
        ValueError: Model and vocabulary have different sizes.
    """

    def __init__(
        self,
        model: BERT4RecForMaskedItemModeling | PeftModel,
        tokenizer: PreTrainedTokenizerBase | Catalog,
        titles: dict[str, str] | None = None,
        popularity: np.ndarray | None = None,
    ):
        is_catalog = isinstance(tokenizer, Catalog)
        self.vocabulary = tokenizer if is_catalog else Catalog.from_tokenizer(tokenizer)
        if len(self.vocabulary) != model.config.vocab_size:
            raise ValueError(
                f"the vocabulary has {len(self.vocabulary)} ids and the model "
                f"{model.config.vocab_size}; use the tokenizer.json that was saved with the model"
            )
        self.scorer = ModelScorer(model.eval())
        self.vectors = Vectors(self.scorer)
        self.index: ItemIndex | None = None
        self.titles = titles or {}
        self.popularity = popularity

    @property
    def catalog(self) -> list[str]:
        """All raw items, in the order of their ids."""
        return self.vocabulary.items

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        adapter: str | Path | None = None,
    ) -> "Recommender":
        """Load a model or adapter folder, or one of a hub by its name.

        Args:
            name: The folder, or `user/name`.
            revision: Branch, tag or commit of a repository.
            token: The one of `hf auth login` when None.
            device: Where the model computes, such as "cuda"; the CPU when None.
            dtype: In which its weights are held, such as "bfloat16"; as they were saved when None.
                Scores are float32 in any case.
            adapter: Folder or name of an adapter that is put on the model.

        Raises:
            ValueError: `name` is an adapter itself and another one is asked for, the adapter was
                learned on another base model, or there is no such dtype.
        """
        name = fetch_folder(name, revision=revision, token=token)
        model = load_model(name)
        if adapter is not None:
            if isinstance(model, PeftModel):
                raise ValueError(
                    f"{name} is an adapter itself, so {adapter} cannot be put on it; name its base "
                    "model, or leave adapter out"
                )
            adapter = fetch_folder(adapter, token=token)
            check_base(adapter, name)
            model = load_adapter(model, adapter)
        if isinstance(dtype, str):
            dtype = read_dtype(dtype)
        titles = cached_file(name, "titles.json", _raise_exceptions_for_missing_entries=False)
        return cls(
            model.to(device=device, dtype=dtype),
            Catalog.from_pretrained(name),
            json.loads(Path(titles).read_text(encoding="utf-8")) if titles else None,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the folder that `from_pretrained` loads: weights, code, vocabulary, titles, card.

        Args:
            folder: Of a model or, if one is active, of an adapter.
        """
        folder, model = Path(folder), self.scorer.model
        model.save_pretrained(folder)
        if not isinstance(model, PeftModel):
            complete_folder(folder, model.name_or_path, model.config)
        if not (folder / "tokenizer.json").exists():
            build_vocabulary(self.catalog).save_pretrained(folder)
            if not isinstance(model, PeftModel):
                set_tokenizer_class(folder, model.config.max_history_length)
        if self.titles and not (folder / "titles.json").exists():
            text = json.dumps(self.titles, indent=2, ensure_ascii=False)
            (folder / "titles.json").write_text(text + "\n", encoding="utf-8")

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
    ) -> str:
        """Publish the model or adapter with its code, vocabulary, titles and card.

        Args:
            repo_id: `user/name`, or `name` for one of one's own; made where there is none.
            private: Whether a repository that is made now is.
            revision: The branch, made where there is none; `main` when None.
            token: The one of `hf auth login` when None.

        Returns:
            Address of the commit.

        Raises:
            ValueError: The base model of an adapter is on no hub.
            HubError: The hub cannot be reached, or refuses.
        """
        with TemporaryDirectory() as name:
            self.save_pretrained(name)
            return push(Path(name), repo_id, private=private, revision=revision, token=token)

    def count_popularity(self, histories: Any) -> None:
        """Learn what is popular from histories, for `cold="popular"`.

        Args:
            histories: As `recommend` takes them; items that are not in the catalog do not count.
        """
        ids = [self.vocabulary.find(each) for each in read_histories(histories).histories]
        self.popularity = np.bincount(np.concatenate(ids), minlength=len(self.vocabulary))

    def recommend(  # noqa: PLR0913 - the options of a request
        self,
        histories: Any,
        k: int = 10,
        *,
        candidates: Iterable[str] | None = None,
        exclude: Iterable[str] | Mapping[Any, Iterable[str]] | None = None,
        exclude_seen: bool = True,
        cold: str = "error",
        unknown: str = "error",
        approximate: bool = False,
    ) -> Any:
        """Recommend the next item of one history, or of each of several.

        One history that cannot be read is an error. Among several it does not keep the others from
        their answers: its own is empty and has a `problem`, and a warning names it.

        Args:
            histories: Raw items, oldest first; several such histories in a list; a dict of them by
                user; numpy arrays or Series in place of lists; or a polars or pandas frame with
                the columns `user` and `item`, and `timestamp` unless rows are in the order of
                time, or `user` and `items`, a list per row.
            k: How many items, best first; fewer where candidates run out.
            candidates: Raw items that may be recommended, such as those in stock; all when None.
                Those that the model does not know are passed over.
            exclude: Raw items that may not; or a mapping from user to such, by place where
                histories have no users.
            exclude_seen: Leave out the items of the history, however old.
            cold: What a history without any item of the catalog gets: `error`; what the `mask`
                alone scores highest; what is `popular`, with its number of interactions as the
                score; or nothing, `empty`.
            unknown: `error` refuses a history with an item that is not in the catalog, `skip`
                reads it without that item.
            approximate: Search the index of `build_index`; not together with candidates, nor with
                items excluded for all.

        Returns:
            Recommendations for one history; a list of them for several; a dict of them by user for
            a mapping; for a frame, a frame of the same library with the columns `user`, `rank`,
            `item`, `score` and `title`.

        Raises:
            KeyError: An item of the one history is not in the catalog and unknown is `error`.
            ValueError: The one history has no item of the catalog and cold is `error`, or an option
                is out of range, or none of the candidates is in the catalog.
            TypeError: An item of the one history is not a string.
        """
        options = self.read_options(
            k,
            candidates=candidates,
            exclude=exclude,
            exclude_seen=exclude_seen,
            cold=cold,
            unknown=unknown,
            approximate=approximate,
        )
        batch = read_histories(histories)
        encoded, problems = self._read(batch, cold, unknown)
        rows: list[Recommendations] = []
        for start in range(0, len(encoded), HISTORIES_AT_ONCE):
            run = slice(start, start + HISTORIES_AT_ONCE)
            keys = range(len(encoded)) if batch.users is None else batch.users
            rows += self._recommend(encoded[run], keys[run], options)
        for row, problem in problems.items():
            rows[row] = Recommendations()
            rows[row].problem = problem
        return answer(batch, rows)

    def build_index(self, histories: Any = None, **options: Any) -> float | None:
        """Prepare approximate search among very many items, for `recommend(…, approximate=True)`.

        Args:
            histories: Typical ones, for which the index is tuned; untuned when None.
            options: Of ItemIndex.

        Returns:
            The share of the 10 best items that a search finds, for these histories.

        Raises:
            ImportError: faiss is not installed.
        """
        self.index = ItemIndex(self.vectors, **options)
        if histories is None:
            return None
        vectors = self.encode(read_histories(histories).histories, cold="mask", unknown="skip")
        return self.index.tune(vectors)

    @property
    def item_vectors(self) -> np.ndarray:
        """(items, hidden) float32, in the order of the catalog; (items, hidden + 1) with biases.

        The inner product with the vector of a history is the item's score, before item neighbors
        are mixed in by models that do so.
        """
        return self.vectors.items

    def encode(self, histories: Any, *, cold: str = "error", unknown: str = "error") -> Any:
        """Vectors of histories; their inner product with those of items is the score.

        Args:
            histories: As for `recommend`.
            cold: `error`, or `mask`, which reads the mask alone.
            unknown: As for `recommend`.

        Returns:
            (hidden,) for one history, (histories, hidden) for several, a dict by user for a
            mapping, and for a frame one of the same library with the columns `user` and `vector`.
            Among several, one that cannot be read is named by a warning; its numbers are NaN, and
            it is missing from a dict or frame.

        Raises:
            KeyError, TypeError, ValueError: As `recommend` does.
        """
        _check_choice("unknown", unknown, UNKNOWN_ITEMS)
        _check_choice("cold", cold, ("error", "mask"))
        batch = read_histories(histories)
        encoded, problems = self._read(batch, cold, unknown)
        vectors = np.empty((len(encoded), self.vectors.size), dtype=np.float32)
        for start in range(0, len(encoded), HISTORIES_AT_ONCE):
            run = slice(start, start + HISTORIES_AT_ONCE)
            vectors[run] = self.vectors.encode(encoded[run])
        vectors[list(problems)] = np.nan
        return answer_vectors(batch, vectors, problems.keys())

    def similar_items(
        self, items: str | Sequence[str], k: int = 10
    ) -> Recommendations | list[Recommendations]:
        """Find the items whose vectors are most alike, by cosine.

        Args:
            items: One raw item, or several.
            k: How many, the most similar first.

        Returns:
            For one item a list with the cosine as the score; for several a list of these.

        Raises:
            KeyError: An item is not in the catalog.
            ValueError: k is less than 1.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        ids = self.vocabulary.encode([items] if isinstance(items, str) else items)
        found = zip(*self.vectors.similar(ids.astype(np.int64), k), strict=True)
        rows = [self._name(row.tolist(), cosines.tolist()) for row, cosines in found]
        return rows[0] if isinstance(items, str) else rows

    def read_options(  # noqa: PLR0913 - those of `recommend`
        self,
        k: int,
        *,
        candidates: Iterable[str] | None = None,
        exclude: Iterable[str] | Mapping[Any, Iterable[str]] | None = None,
        exclude_seen: bool = True,
        cold: str = "error",
        unknown: str = "error",
        approximate: bool = False,
    ) -> Options:
        """Check the options of a request; they are told by `recommend`."""
        _check_choice("unknown", unknown, UNKNOWN_ITEMS)
        _check_choice("cold", cold, COLD_HISTORIES)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if cold == "popular" and self.popularity is None:
            raise ValueError(
                "cold is 'popular', but popularity was never counted; call count_popularity with "
                "histories first, or choose mask or empty"
            )
        by_user, for_all = {}, None
        if isinstance(exclude, Mapping):
            by_user = exclude
        elif exclude is not None:
            for_all = self.read_items("exclude", exclude)
        allowed = None if candidates is None else self.read_items("candidates", candidates)
        if allowed is not None and len(allowed) == 0:
            raise ValueError(
                "none of the candidates is in the catalog; are they named as in its dataset?"
            )
        scorer = self._choose_scorer(allowed, for_all, approximate=approximate)
        return Options(k, scorer, by_user, exclude_seen, cold, unknown)

    def _choose_scorer(
        self, allowed: np.ndarray | None, for_all: np.ndarray | None, *, approximate: bool
    ) -> CandidateScorer | ItemIndex:
        """What finds the best items: a product with all candidates, or the index."""
        if not approximate:
            return CandidateScorer(self.scorer.weight, self.scorer.bias, allowed, for_all)
        if self.index is None:
            raise ValueError("approximate is true, but there is no index; call build_index first")
        if allowed is not None or for_all is not None:
            raise ValueError(
                "approximate search supports neither candidates nor items excluded for all; leave "
                "approximate out"
            )
        return self.index

    def read_items(self, option: str, items: Iterable[str]) -> np.ndarray:
        """(known,) ids of those raw items that are in the catalog.

        Args:
            option: What messages call them.
            items: Raw items.

        Raises:
            TypeError: It is a single text, which would be taken letter by letter.
        """
        if isinstance(items, str):
            raise TypeError(f"{option} must be a list of raw items, got {items!r}")
        return self.vocabulary.find(items)

    def _read(
        self, batch: HistoryBatch, cold: str, unknown: str
    ) -> tuple[list[np.ndarray], dict[int, str]]:
        """Ids of each history, and by place the problem of those that cannot be read."""
        encoded, problems = [], {}
        for row, history in enumerate(batch.histories):
            try:
                encoded.append(self._read_one(history, cold, unknown))
            except (KeyError, TypeError, ValueError) as error:
                if batch.kind == "one":
                    raise
                encoded.append(np.empty(0, dtype=np.int32))
                problems[row] = str(error.args[0])
        if problems:
            row, problem = next(iter(problems.items()))
            warnings.warn(
                f"{len(problems)} of {len(encoded)} histories cannot be read, the first "
                f"is {batch.name(row)}: {problem}",
                stacklevel=3,
            )
        return encoded, problems

    def _read_one(self, history: Any, cold: str, unknown: str) -> np.ndarray:
        ids = self.vocabulary.encode(history, unknown)
        if len(ids) == 0 and cold == "error":
            raise ValueError(
                f"none of the {len(history)} items of the history is in the catalog; at least one "
                "is needed, or choose cold: mask, popular or empty"
            )
        return ids

    @torch.inference_mode()
    def _recommend(
        self, histories: list[np.ndarray], keys: Sequence[Any], options: Options
    ) -> list[Recommendations]:
        """Recommend for one run of histories.

        Args:
            histories: Ids.
            keys: What `exclude` calls each.
            options: Of the request.
        """
        ids, scores = options.candidates.best(
            self.scorer.encode(histories), options.k, self._left_out(histories, keys, options)
        )
        ids, scores = ids.cpu(), scores.cpu()
        rows = [
            self._name(row_ids, row_scores)
            for row_ids, row_scores in zip(ids.tolist(), scores.tolist(), strict=True)
        ]
        if options.cold in ("popular", "empty"):
            for place, history in enumerate(histories):
                if len(history) == 0:
                    rows[place] = self._recommend_cold(keys[place], options)
        return rows

    def _left_out(
        self, histories: list[np.ndarray], keys: Sequence[Any], options: Options
    ) -> ItemSets | None:
        """What is no candidate for one history or the other."""
        sets = histories if options.exclude_seen else [each[:0] for each in histories]
        if options.exclude:
            sets = [
                np.append(ids, self.read_items("exclude", options.exclude.get(key, ())))
                for ids, key in zip(sets, keys, strict=True)
            ]
        return item_sets(sets) if any(map(len, sets)) else None

    def _recommend_cold(self, key: Any, options: Options) -> Recommendations:
        """What is popular, or nothing."""
        if options.cold == "empty":
            return Recommendations()
        is_candidate = options.candidates.is_candidate.copy()
        is_candidate[self.read_items("exclude", options.exclude.get(key, ()))] = False
        ids = np.flatnonzero(is_candidate)
        # Stable, so that of equally popular items the first of the catalog come first.
        order = np.argsort(-self.popularity[ids], kind="stable")[: options.k]
        return self._name(ids[order].tolist(), self.popularity[ids[order]].astype(float).tolist())

    def _name(self, ids: Sequence[int], scores: Sequence[float]) -> Recommendations:
        """Put the names and titles of items to their ids."""
        items = (self.vocabulary.names[number] for number in ids if number >= FIRST_ITEM_ID)
        return Recommendations(
            Recommendation(item, score, self.titles.get(item))
            for item, score in zip(items, scores, strict=False)
        )


def read_dtype(name: str) -> torch.dtype:
    """Find a floating dtype of torch by its name.

    >>> read_dtype("bfloat16")
    torch.bfloat16
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f"dtype must be one such as float32, bfloat16 or float16, got {name!r}")
    return dtype


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(choices)}, got {value!r}")
