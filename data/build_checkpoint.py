"""Rebuild the embedded checkpoint from nothing: corpus, instructions, tokenizer, pretraining.

Run: `python data/build_checkpoint.py` from the root of the repository. It writes
`data/checkpoints/tiny-gpt2` with the weights in float16, which halves the file; they are loaded as
float32.
"""

import json
import subprocess
import sys
from pathlib import Path

import torch
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
    model = AutoModelForCausalLM.from_pretrained(RUN, dtype=torch.float16)
    model.save_pretrained(CHECKPOINT)
    AutoTokenizer.from_pretrained(RUN).save_pretrained(CHECKPOINT)
    # Stored in float16, computed in float32: that is what a CPU does well.
    config = json.loads((CHECKPOINT / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**config, "dtype": "float32"}, indent=2, sort_keys=True)
    (CHECKPOINT / "config.json").write_text(f"{text}\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in CHECKPOINT.iterdir())
    print(f"{CHECKPOINT}: {size:,} bytes")


if __name__ == "__main__":
    main()
