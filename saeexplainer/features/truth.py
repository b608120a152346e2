"""What a feature really encodes, where the domain knows: F1 over tokens between concepts and firing.

A token counts as firing where the feature reaches half its corpus maximum, the threshold of generative accuracy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csc_matrix, csr_matrix

from saeexplainer.errors import UserError, first_line
from saeexplainer.runs.storage import read_tensors, write_tensors


@dataclass(frozen=True)
class TruthTable:
    """Concepts and firing, token by token, on one fixed sample of documents."""

    concepts: list[str]  # column names of `holds`
    holds: csc_matrix  # [tokens, concepts] 1.0 where the concept is true
    fires: csc_matrix  # [tokens, features] 1.0 where the feature reaches half its maximum


def build(concepts: Sequence[str], token_concepts: Sequence[Sequence[str]], firing: Sequence[np.ndarray]) -> TruthTable:
    """Assemble the table: concept keys of each token, and the firing tokens of each feature."""
    column = {concept: at for at, concept in enumerate(concepts)}
    rows = np.repeat(np.arange(len(token_concepts)), [len(keys) for keys in token_concepts])
    columns = np.array([column[key] for keys in token_concepts for key in keys], dtype=np.int64)
    shape = (len(token_concepts), len(concepts))
    holds = csr_matrix((np.ones(len(rows)), (rows, columns)), shape=shape).tocsc()
    holds.data[:] = 1.0
    indptr = np.concatenate([[0], np.cumsum([len(tokens) for tokens in firing])])
    indices = np.concatenate(list(firing)) if len(firing) else np.zeros(0, dtype=np.int64)
    fires = csc_matrix((np.ones(len(indices)), indices, indptr), shape=(len(token_concepts), len(firing)))
    return TruthTable(list(concepts), holds, fires)


def f1(predicted: np.ndarray, actual: np.ndarray) -> float:
    """F1 of two sets of token numbers; 0.0 where either is empty."""
    both = len(np.intersect1d(predicted, actual, assume_unique=True))
    return 2 * both / (len(predicted) + len(actual)) if both else 0.0


def tokens_of(table: TruthTable, named: Sequence[str]) -> np.ndarray:
    """Token numbers at which every named concept holds; empty if none is named or one is unknown."""
    column = {concept: at for at, concept in enumerate(table.concepts)}
    if not named or any(concept not in column for concept in named):
        return np.zeros(0, dtype=np.int64)
    sets = [table.holds[:, [column[concept]]].indices for concept in named]
    result = np.sort(sets[0])
    for other in sets[1:]:
        result = np.intersect1d(result, other)
    return result


def firing_tokens(table: TruthTable, feature: int) -> np.ndarray:
    """Token numbers at which the feature of that column fires."""
    return np.sort(table.fires[:, [feature]].indices)


def f1_of_all(table: TruthTable) -> np.ndarray:
    """[features, concepts] F1 of every single concept with every feature."""
    both = (table.fires.T @ table.holds).toarray()
    sizes = np.asarray(table.fires.sum(axis=0)).T + np.asarray(table.holds.sum(axis=0))
    return np.divide(2 * both, sizes, out=np.zeros_like(both), where=sizes > 0)


def save(path: Path, table: TruthTable) -> None:
    """Write the table as safetensors; concept names are the domain's, in its fixed order."""
    tensors = {}
    for name, matrix in (("holds", table.holds), ("fires", table.fires)):
        tensors[f"{name}.indices"] = torch.from_numpy(matrix.indices.astype(np.int32))
        tensors[f"{name}.indptr"] = torch.from_numpy(matrix.indptr.astype(np.int64))
        tensors[f"{name}.shape"] = torch.tensor(matrix.shape)
    write_tensors(path, tensors)


def load(path: Path, concepts: Sequence[str]) -> TruthTable:
    """Read a table that `save` wrote; `concepts` are the domain's, in its fixed order."""
    tensors = read_tensors(path)

    def matrix(name: str) -> csc_matrix:
        indices = tensors[f"{name}.indices"].numpy()
        parts = (np.ones(len(indices)), indices, tensors[f"{name}.indptr"].numpy())
        return csc_matrix(parts, shape=tuple(tensors[f"{name}.shape"].tolist()))

    try:
        return TruthTable(list(concepts), matrix("holds"), matrix("fires"))
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"{path}: holds no truth ({first_line(error)}); run `dvc repro` to remake it") from None
