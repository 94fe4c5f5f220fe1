import pytest
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
)

from sft_kit.models.kinds import kind_of, kind_of_config

from .conftest import ARCHITECTURES

TINY_T5 = {
    "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4,
}  # fmt: skip
TINY_BART = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}  # fmt: skip
MODELS = [
    *((AutoModelForMaskedLM, name, ARCHITECTURES[name], "masked")
      for name in ARCHITECTURES if name not in ("gpt2", "llama")),
    *((AutoModelForCausalLM, name, ARCHITECTURES[name], "causal") for name in ("gpt2", "llama")),
    (AutoModelForCausalLM, "bert", ARCHITECTURES["bert"] | {"is_decoder": True}, "causal"),
    (AutoModelForPreTraining, "bert", ARCHITECTURES["bert"], "pairs"),
    (AutoModelForSeq2SeqLM, "t5", TINY_T5, "seq2seq"),
    (AutoModelForSeq2SeqLM, "bart", TINY_BART, "seq2seq"),
]  # fmt: skip


@pytest.mark.parametrize(("auto", "architecture", "fields", "kind"), MODELS)
def test_the_class_tells_the_kind_with_an_adapter_and_from_the_saved_config(
    tmp_path, auto, architecture, fields, kind
):
    model = auto.from_config(AutoConfig.for_model(architecture, **fields))
    assert kind_of(model) == kind
    model.save_pretrained(tmp_path)
    assert kind_of_config(AutoConfig.from_pretrained(tmp_path)) == kind
    config = LoraConfig(r=2, target_modules="all-linear", fan_in_fan_out=architecture == "gpt2")
    assert kind_of(get_peft_model(model, config)) == kind


def test_a_config_that_names_no_class_is_a_decoder_unless_it_has_an_encoder():
    assert kind_of_config(AutoConfig.for_model("gpt2")) == "causal"
    assert kind_of_config(AutoConfig.for_model("t5")) == "seq2seq"
