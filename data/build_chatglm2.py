"""Rebuild the embedded ChatGLM2 checkpoint: corpus, tokenizer, pretraining, four bits.

Run: `python data/build_chatglm2.py` from the root of the repository. It writes
`data/checkpoints/tiny-chatglm2-int4` with the files, names and packing that THUDM/chatglm2-6b-int4
was published with, so that everything which loads the one loads the other.
"""

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from sft_kit.models.chatglm import ChatGLMForCausalLM, quantize

HERE = Path(__file__).parent
CHECKPOINT = HERE / "checkpoints" / "tiny-chatglm2-int4"
RUN = Path("runs") / "pretrain_tiny_chatglm2"
SCRIPTS = ("make_corpus.py", "make_instructions.py", "train_sentencepiece.py")


def main() -> None:
    """Run every step, then quantize and store the weights."""
    for script in SCRIPTS:
        subprocess.run([sys.executable, HERE / script], check=True)
    recipe = HERE.parent / "recipes" / "pretrain_gpt2_clm.py"
    settings = HERE / "tiny_chatglm2.yaml"
    subprocess.run([sys.executable, recipe, "--config", settings, "--overwrite"], check=True)
    model = ChatGLMForCausalLM.from_pretrained(RUN, dtype=torch.float16)
    quantize(model, bits=4)
    model.config.use_cache = True  # the Trainer switched it off
    model.save_pretrained(CHECKPOINT)
    # Published checkpoints of this family are pickles; ours shows that they load.
    weights = CHECKPOINT / "model.safetensors"
    torch.save(load_file(weights), CHECKPOINT / "pytorch_model.bin")
    weights.unlink()
    (CHECKPOINT / "generation_config.json").unlink()  # they have none
    size = sum(path.stat().st_size for path in CHECKPOINT.iterdir())
    print(f"{CHECKPOINT}: {size:,} bytes")


if __name__ == "__main__":
    main()
