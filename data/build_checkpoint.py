"""Rebuild the embedded checkpoint from nothing: corpus, instructions, tokenizer, pretraining.

Run: `python data/build_checkpoint.py` from the root of the repository. It writes
`data/checkpoints/tiny-gpt2`.
"""

import subprocess
import sys
from pathlib import Path

from half_precision import store
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoints" / "tiny-gpt2"
RUN = Path("runs") / "pretrain_gpt2_clm"
SCRIPTS = ("make_corpus.py", "make_instructions.py", "train_tokenizer.py")


def main() -> None:
    """Run every step, then store the weights."""
    for script in SCRIPTS:
        subprocess.run([sys.executable, HERE / script], check=True)
    recipe = HERE.parent / "recipes" / "pretrain_gpt2_clm.py"
    subprocess.run([sys.executable, recipe, "--overwrite"], check=True)
    AutoTokenizer.from_pretrained(RUN).save_pretrained(CHECKPOINT)
    store(AutoModelForCausalLM.from_pretrained(RUN), CHECKPOINT)


if __name__ == "__main__":
    main()
