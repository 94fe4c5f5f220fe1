import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    BartConfig,
    T5Config,
)

from sft_kit.models.labelled_outputs import LabelledOutput, answer_where_labelled

from .conftest import ARCHITECTURES

ENCODERS = [name for name in ARCHITECTURES if name not in ("gpt2", "llama")]
IDS = torch.arange(4 * 11).view(4, 11) * 13 % 90 + 5
ATTENTION = (torch.arange(11) < torch.tensor([11, 4, 8, 6])[:, None]).long()
MASK = (IDS % 3 == 0) & ATTENTION.bool()
MASK[1] = False


def make(name: str):
    torch.manual_seed(5)
    if name == "t5":
        config = T5Config(
            vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0,
            decoder_start_token_id=0,
        )  # fmt: skip
        return AutoModelForSeq2SeqLM.from_config(config)
    if name == "bart":
        config = BartConfig(
            vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, dropout=0.0,
            encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=48,
            decoder_ffn_dim=48, max_position_embeddings=64, init_std=0.3,
        )  # fmt: skip
        model = AutoModelForSeq2SeqLM.from_config(config)
        model.final_logits_bias.normal_()  # added behind the output layer
        return model
    architecture, _, head = name.partition(" ")
    config = AutoConfig.for_model(architecture, **ARCHITECTURES[architecture])
    auto = AutoModelForPreTraining if head else AutoModelForMaskedLM
    return auto.from_config(config)


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    inputs = {"input_ids": IDS, "attention_mask": ATTENTION}
    return inputs | ({"decoder_input_ids": IDS.flip(0)} if name in ("t5", "bart") else {})


def all_logits(output) -> torch.Tensor:
    return output["prediction_logits" if "prediction_logits" in output else "logits"]


def loss_and_gradients(model, logits: torch.Tensor):
    loss = torch.nn.functional.cross_entropy(logits, IDS[MASK])
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.item(), found


@pytest.mark.parametrize("name", [*ENCODERS, "bert pairs", "t5", "bart"])
def test_what_is_answered_is_what_the_whole_output_says_there(name):
    model = make(name).train()
    inputs = inputs_of(name)
    output = model(**inputs)
    whole = all_logits(output)[MASK]
    expected = loss_and_gradients(model, whole)

    answer_where_labelled(model)
    marks = torch.tensor([1, 0, -100, 0])
    extra = {"next_sentence_label": marks} if name == "bert pairs" else {}
    answer = model(**inputs, **extra, label_mask=MASK)
    assert isinstance(answer, LabelledOutput)
    assert answer.logits.shape == (int(MASK.sum()), 99)
    torch.testing.assert_close(answer.logits, whole, rtol=0, atol=1e-6)
    if name == "bert pairs":
        assert torch.equal(answer.next_sentence_logits, output.seq_relationship_logits)
        assert torch.equal(answer.next_sentence_label, marks)
    else:
        assert answer.next_sentence_logits is None
    found = loss_and_gradients(model, answer.logits)
    assert found[0] == pytest.approx(expected[0], abs=1e-6)
    assert found[1].keys() == expected[1].keys()
    for key, gradient in expected[1].items():
        torch.testing.assert_close(found[1][key], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "bert pairs", "t5"])
def test_a_call_without_marks_is_the_models_own(name):
    plain, model = make(name).eval(), make(name).eval()
    answer_where_labelled(model)
    with torch.no_grad():
        expected = plain(**inputs_of(name))
        model(**inputs_of(name), label_mask=MASK)  # nothing of it stays
        found = model(**inputs_of(name))
        assert type(found) is type(expected)
        assert torch.equal(all_logits(found), all_logits(expected))
        with pytest.raises(IndexError):
            model(**(inputs_of(name) | {"input_ids": IDS + 1000}), label_mask=MASK)
        again = model(**inputs_of(name))
        assert torch.equal(all_logits(again), all_logits(expected)), "a failed call leaves a mask"
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_a_batch_without_labels_gets_an_empty_answer_that_can_be_trained_on():
    model = make("bert")
    answer_where_labelled(model)
    answer = model(**inputs_of("bert"), label_mask=torch.zeros_like(MASK))
    assert answer.logits.shape == (0, 99)
    answer.logits.sum().backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_batches_with_more_and_fewer_labels_give_the_output_layer_as_many_rows():
    model = make("bert")
    answer_where_labelled(model)
    seen = []
    model.get_output_embeddings().register_forward_hook(lambda _, args, out: seen.append(len(out)))
    counts = [1, 7, 30]
    for count in counts:
        mask = (torch.arange(IDS.numel()) < count).view_as(IDS)
        assert len(model(**inputs_of("bert"), label_mask=mask).logits) == count
    assert len(set(seen)) == 1
    assert seen[0] >= max(counts)


@pytest.mark.parametrize("name", ["bert", "t5", "bart"])
def test_an_adapter_and_recomputed_activations_answer_alike(name):
    def adapted(*, recompute: bool):
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        torch.manual_seed(8)
        model = get_peft_model(make(name), config).train()
        if recompute:
            model.enable_input_require_grads()
            model.activation_checkpointing_enable()
        return model

    plain = adapted(recompute=False)
    expected = loss_and_gradients(plain, all_logits(plain(**inputs_of(name)))[MASK])
    for recompute in (False, True):
        model = adapted(recompute=recompute)
        answer_where_labelled(model)
        found = loss_and_gradients(model, model(**inputs_of(name), label_mask=MASK).logits)
        assert found[0] == pytest.approx(expected[0], abs=1e-6)
        adapter = [key for key in expected[1] if "lora" in key]
        assert adapter
        for key in adapter:
            torch.testing.assert_close(found[1][key], expected[1][key], rtol=1e-4, atol=1e-6)
