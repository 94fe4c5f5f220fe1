"""Rebuild the embedded T5 from nothing: corpus, instructions, tokenizer, pretraining.

Run: `python data/build_t5.py` from the root of the repository. It writes
`data/checkpoints/tiny-t5`.
"""

import subprocess
import sys
from pathlib import Path

from half_precision import store
from transformers import AutoModelForSeq2SeqLM

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoints" / "tiny-t5"
RUN = Path("runs") / "pretrain_t5_span"
SCRIPTS = ("make_corpus.py", "make_instructions.py", "train_unigram.py")


def main() -> None:
    """Run every step, then store the weights."""
    for script in SCRIPTS:
        subprocess.run([sys.executable, HERE / script], check=True)
    recipe = HERE.parent / "recipes" / "pretrain_t5_span.py"
    subprocess.run([sys.executable, recipe, "--overwrite"], check=True)
    store(AutoModelForSeq2SeqLM.from_pretrained(RUN), CHECKPOINT)


if __name__ == "__main__":
    main()
