"""Rebuild the embedded Chinese BERT from nothing: reviews, tokenizer, texts, pretraining.

Run: `python data/build_bert_chinese.py` from the root of the repository. It writes
`data/checkpoints/tiny-bert-chinese`.
"""

import subprocess
import sys
from pathlib import Path

from half_precision import store
from transformers import BertForPreTraining

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoints" / "tiny-bert-chinese"
RUN = Path("runs") / "pretrain_bert_chinese"
SCRIPTS = ("make_sentiment.py", "train_wordpiece.py", "make_chinese_texts.py")


def main() -> None:
    """Run every step, then store the weights."""
    for script in SCRIPTS:
        subprocess.run([sys.executable, HERE / script], check=True)
    recipe = HERE.parent / "recipes" / "pretrain_bert_mlm.py"
    settings = HERE / "tiny_bert_chinese.yaml"
    subprocess.run([sys.executable, recipe, "--config", settings, "--overwrite"], check=True)
    # As in the published bert-base-chinese, whose file has both heads too, the class to load by
    # default is that of the masked tokens.
    model = BertForPreTraining.from_pretrained(RUN)
    store(model, CHECKPOINT, architectures=["BertForMaskedLM"])


if __name__ == "__main__":
    main()
