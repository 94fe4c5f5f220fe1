"""Windows of documents for a decoder. T tokens of a row."""

import numpy as np

from sft_kit.data.corpus.rows import Corrupted, Row
from sft_kit.data.rows import IGNORED


def causal_lm(row: Row, seed: int, *, document_mask: bool = False) -> Corrupted:
    """Learn every token from those before it, or from those of its document before it.

    The labels are the tokens themselves, which the loss shifts, as in supervised fine-tuning.

    Args:
        row: (T,) tokens with the numbers of their documents.
        seed: Not used; all objectives are called alike.
        document_mask: Keep documents apart: a document's first token is predicted by nothing, and
            its positions begin at 0.

    Returns:
        `input_ids` (T,), `labels` (T,); for documents kept apart also `documents` (T,) and
        `position_ids` (T,).

    Source:
        Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training",
        section 3.1.
    """
    del seed
    is_first = np.zeros(row.input_ids.size, np.bool_)
    is_first[:1] = True
    if not document_mask:
        labels = np.where(is_first, IGNORED, row.input_ids)
        return {"input_ids": row.input_ids, "labels": labels}
    is_first[1:] = row.documents[1:] != row.documents[:-1]
    places = np.arange(row.input_ids.size)
    return {
        "input_ids": row.input_ids,
        "labels": np.where(is_first, IGNORED, row.input_ids),
        "documents": row.documents,
        "position_ids": places - np.maximum.accumulate(np.where(is_first, places, 0)),
    }
