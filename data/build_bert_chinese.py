"""Rebuild the embedded Chinese BERT from nothing: labelled reviews, tokenizer, pretraining.

Run: `python data/build_bert_chinese.py` from the root of the repository. It writes
`data/checkpoints/tiny-bert-chinese` with the weights in float16, which halves the file; they are
loaded as float32.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import BertForPreTraining

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoints" / "tiny-bert-chinese"
RUN = Path("runs") / "pretrain_bert_chinese"


def main() -> None:
    """Run every step, then store the weights."""
    for script in ("make_sentiment.py", "train_wordpiece.py"):
        subprocess.run([sys.executable, HERE / script], check=True)
    subprocess.run([sys.executable, HERE / "pretrain_bert.py", "--output", RUN], check=True)
    model = BertForPreTraining.from_pretrained(RUN, dtype=torch.float16)
    model.save_pretrained(CHECKPOINT)
    # Stored in float16, computed in float32: that is what a CPU does well. And as in the published
    # bert-base-chinese, whose file has both heads too, the class to load by default is that of the
    # masked tokens.
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    config |= {"architectures": ["BertForMaskedLM"], "dtype": "float32"}
    text = json.dumps(config, indent=2, sort_keys=True)
    (CHECKPOINT / "config.json").write_text(f"{text}\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in CHECKPOINT.iterdir())
    print(f"{CHECKPOINT}: {size:,} bytes")


if __name__ == "__main__":
    main()
