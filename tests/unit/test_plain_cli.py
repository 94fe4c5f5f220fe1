"""`sft-kit generate` and `chat` with models that hold no chats."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from sft_kit.artifacts.save import save_model
from sft_kit.cli import main
from sft_kit.inference.filling import write_plain
from sft_kit.run_record import weight_digests, write_record
from sft_kit.settings import ModelSettings, SampleSettings

BERT = Path(__file__).resolve().parents[2] / "data" / "checkpoints" / "tiny-bert-chinese"
PROMPT = "今天[MASK][MASK]很好"


@pytest.fixture
def call(monkeypatch, capsys):
    """Call the console script's function; return exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sft-kit", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        output = capsys.readouterr()
        return caught.value.code or 0, output.out, output.err

    return call


@pytest.fixture(scope="module")
def t5():
    """A T5 with emphatic random weights, and a tokenizer with two sentinels."""
    tokens = ["<pad>", "</s>", "<unk>", "▁", "▁the", "▁cat", "▁sum", "<extra_id_0>", "<extra_id_1>"]
    ids = {token: number for number, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(vocab=ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=tokens[-2:],
    )  # fmt: skip
    torch.manual_seed(4)
    config = T5Config(
        vocab_size=len(tokens), d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2,
        decoder_start_token_id=0, initializer_factor=4.0,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval(), tokenizer


@pytest.fixture(scope="module")
def bert():
    """The encoder that comes with the project."""
    return AutoModelForMaskedLM.from_pretrained(BERT), AutoTokenizer.from_pretrained(BERT)


@pytest.fixture
def make_run(tmp_path):
    """Makes a finished run of a whole model, as the recipes leave it."""

    def make(loaded, kind, objective, **data):
        model, tokenizer = loaded
        folder = tmp_path / "run"
        save_model(model, tokenizer, folder)
        settings = {"model": asdict(ModelSettings("x")), "adapter": None, "data": data}
        write_record(folder, {
            "status": "finished", "recipe": "pretrain_x.py", "settings": settings,
            "pretraining": {"kind": kind, "objective": objective},
            "weights": weight_digests(folder),
        })  # fmt: skip
        return folder

    return make


@pytest.mark.parametrize("objective", ["mlm", "prefix", "spell"])
def test_generate_does_what_a_run_was_trained_for(call, make_run, bert, objective):
    folder = make_run(bert, "masked", objective)
    code, out, err = call(
        "generate", folder, "--prompt", PROMPT, "--prompt", "我们[MASK]", "--json",
        "--max-new-tokens", "5", "--temperature", "0.9", "--seed", "4",
    )  # fmt: skip
    sampling = SampleSettings(max_new_tokens=5, temperature=0.9, seed=4)
    prompts = [PROMPT, "我们[MASK]"]
    replies = write_plain(*bert, prompts, sampling, kind="masked", objective=objective)
    assert (code, err) == (0, "")
    assert json.loads(out) == [
        {"prompt": p, "reply": r.text, "stopped": r.stopped, "num_tokens": len(r.ids)}
        for p, r in zip(prompts, replies, strict=True)
    ]


def test_generate_fills_masks_with_an_encoder_that_no_run_has_written(call, bert):
    code, out, _ = call("generate", BERT, "--prompt", PROMPT)
    (reply,) = write_plain(*bert, [PROMPT], SampleSettings(), kind="masked", objective="mlm")
    assert (code, out) == (0, f"{reply.text}\n")
    assert reply.text.startswith("今天")
    assert len(reply.text) == 6


def test_generate_shows_the_sentinels_that_an_encoder_decoder_writes(call, t5, tmp_path):
    model, tokenizer = t5
    save_model(model, tokenizer, tmp_path / "t5")
    prompt = "the <extra_id_0> cat"
    code, out, err = call("generate", tmp_path / "t5", "--prompt", prompt, "--max-new-tokens", "6")
    assert (code, err) == (0, "")
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False
    )[0, 1:]
    shown = [token_id for token_id in written.tolist() if token_id > 2]
    assert out.strip() == tokenizer.decode(shown).strip()


def test_generate_puts_before_a_source_what_the_run_put_there(call, make_run, t5):
    folder = make_run(t5, "seq2seq", "pairs of texts", prefix="sum ")
    code, out, err = call("generate", folder, "--prompt", "the cat", "--json")
    (reply,) = write_plain(
        *t5, ["sum the cat"], SampleSettings(), kind="seq2seq", objective="pairs of texts"
    )
    (other,) = write_plain(
        *t5, ["the cat"], SampleSettings(), kind="seq2seq", objective="pairs of texts"
    )
    assert (code, err) == (0, "")
    (row,) = json.loads(out)
    assert (row["prompt"], row["reply"]) == ("the cat", reply.text)
    assert reply.ids != other.ids


def test_a_prompt_without_anything_to_fill_is_one_message(call):
    code, out, err = call("generate", BERT, "--prompt", "今天")
    assert (code, out) == (2, "")
    assert "prompt 1: has no mask token to replace (write [MASK] where something is missing)" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("is_run", [True, False])
def test_chat_with_a_model_that_holds_no_chats_says_what_to_use(call, make_run, bert, is_run):
    folder = make_run(bert, "masked", "mlm") if is_run else BERT
    code, out, err = call("chat", folder)
    assert (code, out) == (2, "")
    assert f"sft-kit generate {folder} --prompt TEXT" in err
    assert err.count("error:") == 1


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--system", "Be kind."], "--system: found 'Be kind.', and the model holds no chats"),
        (["--fast-int4"], "--fast-int4: is for ChatGLM only"),
        (["--base", "x"], "--base: is the base of a run folder, and this is a checkpoint"),
    ],
)
def test_options_for_other_models_are_refused(call, options, found):
    code, out, err = call("generate", BERT, "--prompt", PROMPT, *options)
    assert (code, out) == (2, "")
    assert f"command line: {found}" in err


@pytest.mark.parametrize(("kind", "objective"), [("seq2seq", "pairs of texts"), ("masked", "mlm")])
def test_merging_an_adapter_of_another_kind_names_what_peft_has_for_it(
    call, make_run, t5, bert, kind, objective, tmp_path
):
    folder = make_run(t5 if kind == "seq2seq" else bert, kind, objective)
    (folder / "adapter_model.safetensors").touch()
    code, out, err = call("merge", folder, "--output", tmp_path / "merged")
    assert (code, out) == (2, "")
    assert "merging is for causal language models that chat so far" in err
    assert "`merge_and_unload`" in err
    assert "sft-kit generate" not in err
    assert not (tmp_path / "merged").exists()


def test_a_checkpoint_inside_a_run_points_at_the_run(call, make_run, bert):
    folder = make_run(bert, "masked", "mlm")
    checkpoint = folder / "checkpoint-4"
    bert[0].save_pretrained(checkpoint)
    code, out, err = call("generate", checkpoint, "--prompt", PROMPT)
    assert (code, out) == (2, "")
    assert f"{checkpoint}: it has no tokenizer" in err
    assert f"(give the run folder: {folder})" in err
    bert[1].save_pretrained(checkpoint)
    assert call("generate", checkpoint, "--prompt", PROMPT)[0] == 0
