"""What models write that hold no chats, against the loops written out and transformers' own."""

import copy

import pytest
import torch
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from sft_kit.errors import CheckpointError, DataError
from sft_kit.inference.filling import choose_prompts, write_plain
from sft_kit.inference.generate import continue_ids
from sft_kit.inference.placing import Filling, fill_in, place_ids, spell_out
from sft_kit.settings import SampleSettings

SENTENCE = "今天天气真好，我们一起出去玩吧"
WORDS = ["the", "cat", "sat", "on", "mat", "play", "##ing", "a", ".", "(", ")"]
SENTINELS = [f"<extra_id_{number}>" for number in range(4)]
GREEDY = SampleSettings(max_new_tokens=6)


@pytest.fixture(scope="module")
def bert_tokenizer():
    """WordPiece like BERT's: every character of the sentence, and a few English words."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *dict.fromkeys(SENTENCE), *WORDS]
    ids = {token: number for number, token in enumerate(tokens)}
    core = Tokenizer(models.WordPiece(vocab=ids, unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    around = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    core.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=around)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


@pytest.fixture(scope="module")
def t5_tokenizer():
    """A token a word, ended by `</s>`, with sentinels."""
    tokens = ["<pad>", "</s>", "<unk>", "▁", *[f"▁{word}" for word in WORDS], *SENTINELS]
    ids = {token: number for number, token in enumerate(tokens)}
    core = Tokenizer(models.WordLevel(vocab=ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=SENTINELS,
    )  # fmt: skip


@pytest.fixture(scope="module")
def bart_tokenizer():
    """Bytes, a word, BART's special tokens; its mask token takes in the blank before it."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokens += ["Ġc", "Ġca", "Ġcat"]
    ids = {token: number for number, token in enumerate(tokens)}
    merges = [("Ġ", "c"), ("Ġc", "a"), ("Ġca", "t")]
    core = Tokenizer(models.BPE(vocab=ids, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", cls_token="<s>", sep_token="</s>",
    )  # fmt: skip
    tokenizer.add_special_tokens({"mask_token": AddedToken("<mask>", lstrip=True)})
    return tokenizer


def make_bert(tokenizer, seed=0, cls=BertForMaskedLM, **fields):
    """Weights so large that every token read changes the likeliest one."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=48, initializer_range=0.4, **fields,
    )  # fmt: skip
    return cls(config).eval()


def make_t5(tokenizer, seed=0, factor=1.0):
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
        decoder_start_token_id=tokenizer.pad_token_id, initializer_factor=factor,
    )  # fmt: skip
    return T5ForConditionalGeneration(config).eval()


def make_bart(tokenizer, seed=0, **fields):
    torch.manual_seed(seed)
    config = BartConfig(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, max_position_embeddings=40, init_std=0.5, pad_token_id=1,
        bos_token_id=0, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
        **fields,
    )  # fmt: skip
    return BartForConditionalGeneration(config).eval()


def likeliest(scores, allowed):
    return max(allowed, key=lambda token_id: float(scores[token_id]))


def ordinary_ids(tokenizer):
    return [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]


def masked_scores(model, ids, visible, **inputs):
    """Scores (T, V) with a mask made by hand: `visible(query, key)`."""
    mask = torch.tensor([[[[visible(q, k) for k in range(len(ids))] for q in range(len(ids))]]])
    added = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    given = {name: torch.tensor([value]) for name, value in inputs.items()}
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), attention_mask=added, **given).logits[0]


# --- an encoder that sees both sides -------------------------------------------------------------


@pytest.mark.parametrize("objective", ["mlm", "wwm", "bidirectional"])
def test_each_mask_token_becomes_the_likeliest_ordinary_token(bert_tokenizer, objective):
    model = make_bert(bert_tokenizer)
    prompt = "今天[MASK][MASK]真好，我们 [MASK] 起"
    (reply,) = write_plain(
        model, bert_tokenizer, [prompt], GREEDY, kind="masked", objective=objective
    )
    ids = bert_tokenizer(prompt)["input_ids"]
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0]
    places = [place for place, i in enumerate(ids) if i == bert_tokenizer.mask_token_id]
    expected = [likeliest(scores[place], ordinary_ids(bert_tokenizer)) for place in places]
    assert reply.ids == expected
    assert reply.stopped
    a, b, c = bert_tokenizer.convert_ids_to_tokens(expected)
    assert reply.text == f"今天{a}{b}真好，我们 {c} 起"


def test_a_model_with_a_second_head_fills_as_its_first_head_says(bert_tokenizer):
    model = make_bert(bert_tokenizer, cls=BertForPreTraining)
    prompt = "今天[MASK]气"
    (reply,) = write_plain(model, bert_tokenizer, [prompt], GREEDY, kind="pairs", objective="mlm")
    ids = torch.tensor([bert_tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        scores = model(input_ids=ids).prediction_logits[0, 3]
    assert reply.ids == [likeliest(scores, ordinary_ids(bert_tokenizer))]


def overfit(model, batch, steps):
    """Train on one batch, without dropout, until the loss is next to nothing."""
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = model(**batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.05


def test_a_bert_that_knows_one_sentence_fills_it_rightly(bert_tokenizer):
    model = make_bert(bert_tokenizer)
    ids = torch.tensor(bert_tokenizer(SENTENCE)["input_ids"])
    places = torch.arange(1, len(ids) - 1)
    hidden = ids.repeat(len(places), 1)
    hidden[range(len(places)), places] = bert_tokenizer.mask_token_id
    labels = torch.full_like(hidden, -100)
    labels[range(len(places)), places] = ids[places]
    overfit(model, {"input_ids": hidden, "labels": labels}, 120)
    prompts = ["今天[MASK]气真好，我们一起出去玩吧", "今天天气真好，我们一起出去 [MASK] 吧"]
    replies = write_plain(model, bert_tokenizer, prompts, GREEDY, kind="masked", objective="mlm")
    assert [reply.text for reply in replies] == [SENTENCE, "今天天气真好，我们一起出去 玩 吧"]


def test_spelling_asks_for_every_character_and_leaves_the_rest_alone(bert_tokenizer):
    model = make_bert(bert_tokenizer, seed=2)
    prompt = "The 今天，我们 cat [MASK] 玩."
    (reply,) = write_plain(
        model, bert_tokenizer, [prompt], GREEDY, kind="masked", objective="spell"
    )
    ids = bert_tokenizer(prompt)["input_ids"]
    characters = bert_tokenizer.convert_tokens_to_ids(
        [c for c in dict.fromkeys(SENTENCE) if c != "，"]
    )
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0]
    asked = {*characters, bert_tokenizer.mask_token_id}
    best = [likeliest(scores[t], characters) for t, i in enumerate(ids) if i in asked]
    assert reply.ids == best
    a, b, c, d, e, f = bert_tokenizer.convert_ids_to_tokens(best)
    assert reply.text == f"The {a}{b}，{c}{d} cat {e} {f}."


# --- an encoder that writes ----------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "attention"), [(1, "sdpa"), (1, "eager"), (11, "sdpa")])
@pytest.mark.parametrize("objective", ["prefix", "causal"])
def test_a_continuation_is_that_of_a_loop_with_a_mask_made_by_hand(
    bert_tokenizer, objective, seed, attention
):
    model = make_bert(bert_tokenizer, seed=seed, attn_implementation=attention)
    prompt = "今天[MASK]气"
    settings = SampleSettings(max_new_tokens=9)
    (reply,) = write_plain(
        model, bert_tokenizer, [prompt], settings, kind="masked", objective=objective
    )
    cls, sep = bert_tokenizer.cls_token_id, bert_tokenizer.sep_token_id
    ids = [cls, *bert_tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    ids += [sep] if objective == "prefix" else []
    prefix = len(ids) if objective == "prefix" else 0
    written = []
    while len(written) < 9 and sep not in written:
        scores = masked_scores(model, ids + written, lambda q, k: k <= q or k < prefix)
        written.append(likeliest(scores[-1], [*ordinary_ids(bert_tokenizer), sep]))
    assert reply.ids == [token_id for token_id in written if token_id != sep]
    assert reply.stopped == (sep in written)
    assert len({*written}) > 2  # an example that could not go wrong would prove nothing


def test_a_continuation_ends_with_the_context(bert_tokenizer):
    model = make_bert(bert_tokenizer)
    with torch.no_grad():
        model.cls.predictions.bias[bert_tokenizer.sep_token_id] = -1e4  # never stops by itself
    settings = SampleSettings(max_new_tokens=100)
    (reply,) = write_plain(
        model, bert_tokenizer, ["今" * 40], settings, kind="masked", objective="prefix"
    )
    assert (len(reply.ids), reply.stopped) == (48 - 42, False)


@pytest.mark.parametrize("seed", [2, 4, 10])
def test_blanks_are_filled_as_a_loop_with_everything_made_by_hand_fills_them(bert_tokenizer, seed):
    model = make_bert(bert_tokenizer, seed=seed, type_vocab_size=6)
    prompt = "今天[MASK]真好，[MASK]出去"
    settings = SampleSettings(max_new_tokens=3)
    (reply,) = write_plain(
        model, bert_tokenizer, [prompt], settings, kind="masked", objective="infill"
    )
    cls, sep = bert_tokenizer.cls_token_id, bert_tokenizer.sep_token_id
    text = bert_tokenizer(prompt)["input_ids"]
    ids, positions, seconds = list(text), list(range(len(text))), [0] * len(text)
    blanks = []
    for place in (3, 7):
        assert text[place] == bert_tokenizer.mask_token_id
        blanks.append([])
        token_id, second = cls, 1
        while True:
            ids, positions, seconds = [*ids, token_id], [*positions, place], [*seconds, second]
            if len(blanks[-1]) == 3:
                break
            scores = masked_scores(
                model, ids, lambda q, k: k <= q or k < len(text),
                position_ids=positions, token_type_ids=seconds,
            )  # fmt: skip
            token_id = likeliest(scores[-1], [*ordinary_ids(bert_tokenizer), sep])
            second += 1
            if token_id == sep:
                break
            blanks[-1].append(token_id)
    assert reply.ids == blanks[0] + blanks[1]
    tokens = [
        "".join(bert_tokenizer.convert_ids_to_tokens(blank)).replace("##", "") for blank in blanks
    ]
    squeezed = reply.text.replace(" ", "")
    assert squeezed == f"今天{tokens[0]}真好，{tokens[1]}出去"


def test_a_blank_gets_no_more_tokens_than_the_model_has_second_positions(bert_tokenizer):
    model = make_bert(bert_tokenizer, type_vocab_size=5)
    with torch.no_grad():
        model.cls.predictions.bias[bert_tokenizer.sep_token_id] = -1e4
    many = SampleSettings(max_new_tokens=30)
    (reply,) = write_plain(
        model, bert_tokenizer, ["今[MASK]天"], many, kind="masked", objective="infill"
    )
    assert (len(reply.ids), reply.stopped) == (3, False)  # second positions 2, 3 and 4
    (reply,) = write_plain(
        make_bert(bert_tokenizer, type_vocab_size=40), bert_tokenizer,
        ["今" * 36 + "[MASK][MASK]"], many, kind="masked", objective="infill",
    )  # fmt: skip
    assert len(reply.ids) <= 48 - 40 - 2  # the context less the text and two starts


# --- decoders, and encoders with decoders --------------------------------------------------------


def test_a_decoder_continues_as_transformers_does(tokenizer, gpt2_model):
    with torch.no_grad():
        for parameter in gpt2_model.parameters():
            parameter.mul_(6.0)
    prompts = ["The quick", "Water boils at", "今天"]
    settings = SampleSettings(max_new_tokens=12)
    replies = write_plain(gpt2_model, tokenizer, prompts, settings, kind="causal", objective="clm")
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        output = gpt2_model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
            pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
        assert reply.ids == output[0, ids.shape[1] :].tolist()
        assert reply.text == tokenizer.decode(reply.ids).strip()


def test_a_decoder_begins_a_prompt_as_its_tokenizer_begins_a_text(llama_tokenizer, llama_model):
    core = llama_tokenizer.backend_tokenizer
    core.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", llama_tokenizer.bos_token_id)]
    )
    with torch.no_grad():
        for parameter in llama_model.parameters():
            parameter.mul_(6.0)
    (reply,) = write_plain(
        llama_model, llama_tokenizer, ["The"], GREEDY, kind="causal", objective="clm"
    )
    ids = llama_tokenizer("The")["input_ids"]
    assert ids[0] == llama_tokenizer.bos_token_id
    assert reply.ids == continue_ids(llama_model, ids, 6, [llama_tokenizer.eos_token_id], GREEDY)


def test_a_t5_that_knows_one_sentence_fills_its_sentinels_rightly(t5_tokenizer):
    model = make_t5(t5_tokenizer)
    source, target = "the <extra_id_0> sat on <extra_id_1>", "<extra_id_0> cat <extra_id_1> the mat"
    batch = {
        "input_ids": torch.tensor([t5_tokenizer(source)["input_ids"]]),
        "labels": torch.tensor([t5_tokenizer(target)["input_ids"]]),
    }
    overfit(model, batch, 60)
    (reply,) = write_plain(
        model, t5_tokenizer, [source], SampleSettings(max_new_tokens=12), kind="seq2seq",
        objective="spans",
    )  # fmt: skip
    assert reply.ids == t5_tokenizer(target)["input_ids"][:-1]
    assert reply.text.replace(" ", "") == target.replace(" ", "")
    assert reply.stopped
    (other,) = write_plain(
        model, t5_tokenizer, [source], SampleSettings(max_new_tokens=12), kind="seq2seq",
        objective="pairs of texts",
    )  # fmt: skip
    assert (other.ids, other.text.split()) == (reply.ids, ["cat", "the", "mat"])


def test_an_encoder_decoder_writes_what_transformers_writes_greedily(bart_tokenizer):
    model = make_bart(bart_tokenizer)
    prompts = ["a <mask> sat", "b"]
    replies = write_plain(
        model, bart_tokenizer, prompts, GREEDY, kind="seq2seq", objective="denoise"
    )
    assert replies[0].ids != replies[1].ids
    for prompt, reply in zip(prompts, replies, strict=True):
        inner = bart_tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = torch.tensor([[0, *inner, 2]])
        assert (bart_tokenizer.mask_token_id in inner) == ("<mask>" in prompt)
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False, num_beams=1
        )[0, 1:].tolist()
        assert reply.ids == (output[: output.index(2)] if 2 in output else output)


def test_what_a_checkpoint_ships_for_generation_takes_no_part(bart_tokenizer):
    model = make_bart(bart_tokenizer)
    before = write_plain(
        model, bart_tokenizer, ["abc"], GREEDY, kind="seq2seq", objective="denoise"
    )
    model.generation_config.num_beams = 4
    model.generation_config.no_repeat_ngram_size = 1
    model.generation_config.repetition_penalty = 9.0
    model.generation_config.do_sample = True
    shipped = copy.deepcopy(model.generation_config.to_dict())
    after = write_plain(model, bart_tokenizer, ["abc"], GREEDY, kind="seq2seq", objective="denoise")
    assert before == after
    assert model.generation_config.to_dict() == shipped


# --- what holds for all --------------------------------------------------------------------------

CASES = {
    "clm": ("causal", ["The quick", "Water boils at one", "a"]),
    "mlm": ("masked", ["今[MASK]", "今天[MASK]气真好，我们[MASK]", "[MASK]"]),
    "prefix": ("masked", ["今", "今天天气真好", "the cat"]),
    "causal": ("masked", ["今", "今天天气真好", "the cat"]),
    "infill": ("masked", ["今[MASK]", "今天[MASK]气真好，我们[MASK]", "[MASK]"]),
    "spell": ("masked", ["今", "今天天气真好，我们[MASK]", "天 cat"]),
    "spans": ("seq2seq", ["the <extra_id_0>", "cat", "the cat sat on <extra_id_1> mat"]),
    "denoise": ("seq2seq", ["a", "abc <mask> d", "sat"]),
}


@pytest.fixture
def case(request, tokenizer, gpt2_model, bert_tokenizer, t5_tokenizer, bart_tokenizer):
    """Model, tokenizer, prompts and how to call `write_plain`, by objective."""
    objective = request.param
    kind, prompts = CASES[objective]
    if kind == "causal":
        model, used = gpt2_model, tokenizer
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(4.0)
    elif kind == "masked":
        model, used = make_bert(bert_tokenizer, type_vocab_size=8), bert_tokenizer
    elif objective == "spans":
        model, used = make_t5(t5_tokenizer, seed=4, factor=4.0), t5_tokenizer
    else:
        model, used = make_bart(bart_tokenizer), bart_tokenizer
    return model, used, prompts, {"kind": kind, "objective": objective}


@pytest.mark.parametrize("case", CASES, indirect=True)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_reply_depends_on_its_own_prompt_and_the_seed_only(case, temperature):
    model, tokenizer, prompts, how = case
    settings = SampleSettings(max_new_tokens=5, temperature=temperature, seed=3)
    together = write_plain(model, tokenizer, prompts, settings, **how)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    alone = [write_plain(model, tokenizer, [prompt], settings, **how)[0] for prompt in prompts]
    assert together == alone
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_seeds_draw_differently_and_a_temperature_near_0_is_greedy(case):
    model, tokenizer, prompts, how = case

    def ids(**settings):
        sampling = SampleSettings(max_new_tokens=5, **settings)
        return [reply.ids for reply in write_plain(model, tokenizer, prompts, sampling, **how)]

    drawn = [ids(temperature=50.0, seed=seed) for seed in range(4)]
    assert any(one != drawn[0] for one in drawn[1:])
    assert ids(temperature=1e-6, seed=1) == ids() == ids(temperature=50.0, top_k=1)


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_the_training_mode_is_put_back_and_dropout_takes_no_part(case):
    model, tokenizer, prompts, how = case
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.5
    expected = write_plain(model.eval(), tokenizer, prompts, GREEDY, **how)
    model.train()
    frozen = list(model.modules())[-1]
    frozen.eval()
    assert write_plain(model, tokenizer, prompts, GREEDY, **how) == expected
    assert model.training
    assert not frozen.training


@pytest.mark.parametrize("case", CASES, indirect=True)
def test_scores_that_are_not_numbers_are_refused(case):
    model, tokenizer, prompts, how = case
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not numbers"):
        write_plain(model, tokenizer, prompts, GREEDY, **how)


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objective", "prompts", "found"),
    [
        ("mlm", ["今天", "[MASK]" + "今" * 60], [
            "prompt 1: has no mask token to replace (write [MASK] where something is missing)",
            "prompt 2: has 63 tokens, the model reads at most 48 (shorten it)",
        ]),
        ("spell", ["the cat", "今" * 60], [
            "prompt 1: has no character to replace",
            "prompt 2: has 62 tokens, the model reads at most 48 (shorten it)",
        ]),
        ("prefix", ["今", "今" * 60], ["prompt 2: has 62 tokens, the model reads at most 48"]),
        ("causal", ["今", "今" * 60], ["prompt 2: has 61 tokens, the model reads at most 48"]),
        ("infill", ["今" * 44 + "[MASK]"], ["prompt 1: has 47 tokens and 1 blanks, the model"]),
    ],
)  # fmt: skip
def test_prompts_that_an_encoder_cannot_use_are_all_named(
    bert_tokenizer, objective, prompts, found
):
    model = make_bert(bert_tokenizer, type_vocab_size=8)
    with pytest.raises(DataError) as caught:
        write_plain(model, bert_tokenizer, prompts, GREEDY, kind="masked", objective=objective)
    assert str(caught.value).startswith(f"{len(found)} of {len(prompts)} prompts can't be used")
    for line in found:
        assert line in str(caught.value)


def test_a_denoised_text_ends_with_its_sep_token_where_the_model_names_another_end(bart_tokenizer):
    """`denoise` rows end with `sep_token`, whatever the model's config says of `eos_token`."""
    tokenizer = copy.deepcopy(bart_tokenizer)
    tokenizer.eos_token = "<unk>"
    model = make_bart(tokenizer)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    with torch.no_grad():
        model.final_logits_bias[0, tokenizer.sep_token_id] = 1e4
    (reply,) = write_plain(model, tokenizer, ["a"], GREEDY, kind="seq2seq", objective="denoise")
    assert (reply.ids, reply.stopped) == ([], True)


def test_a_text_longer_than_an_encoder_reads_is_named(bart_tokenizer):
    model = make_bart(bart_tokenizer)
    with pytest.raises(DataError, match="prompt 1: has 52 tokens, the model reads at most 40"):
        write_plain(model, bart_tokenizer, ["a" * 50], GREEDY, kind="seq2seq", objective="denoise")


def test_blanks_need_a_model_with_second_positions(bert_tokenizer):
    with pytest.raises(CheckpointError, match="type_vocab_size is 2"):
        write_plain(
            make_bert(bert_tokenizer), bert_tokenizer, ["今[MASK]"], GREEDY, kind="masked",
            objective="infill",
        )  # fmt: skip


def test_an_objective_that_is_not_known_is_refused(bert_tokenizer):
    model = make_bert(bert_tokenizer)
    with pytest.raises(CheckpointError, match="'electra' is not known"):
        write_plain(model, bert_tokenizer, ["今[MASK]"], GREEDY, kind="masked", objective="electra")


def test_a_tokenizer_without_mask_token_is_refused(tokenizer, gpt2_model):
    with pytest.raises(DataError, match="mask_token"):
        write_plain(gpt2_model, tokenizer, ["x"], GREEDY, kind="masked", objective="mlm")


def test_texts_go_on_without_a_mask_token_in_the_tokenizer(bert_tokenizer):
    model = make_bert(bert_tokenizer)
    bare = copy.deepcopy(bert_tokenizer)
    bare.mask_token = None
    # What was the mask token is an ordinary one now: no model may choose it, so both choose alike.
    with torch.no_grad():
        model.cls.predictions.bias[bert_tokenizer.mask_token_id] = -1e4
    with_mask, without = (
        write_plain(model, used, ["今天"], GREEDY, kind="masked", objective="causal")
        for used in (bert_tokenizer, bare)
    )
    assert with_mask[0].ids == without[0].ids
    assert with_mask[0].ids
    with pytest.raises(DataError, match="found no mask token"):
        write_plain(model, bare, ["今天"], GREEDY, kind="masked", objective="mlm")


# --- prompts that suit an objective --------------------------------------------------------------

ALIKE = ["今天[MASK]", "今天"]


@pytest.mark.parametrize(
    ("objectives", "chosen", "why"),
    [
        (["mlm", "wwm", "bidirectional", "infill"], ["今天[MASK]"], "'今天' has no [MASK] to fill"),
        (["causal", "prefix"], ["今天"], "'今天[MASK]' has a [MASK], and texts go on here"),
        (["spell", "clm", "spans", "denoise", "pairs of texts"], ALIKE, ""),
    ],
)
def test_prompts_are_chosen_that_an_objective_can_use_and_the_others_named(
    bert_tokenizer, objectives, chosen, why
):
    for objective in objectives:
        found, left_out = choose_prompts(bert_tokenizer, ALIKE, objective)
        assert found == chosen, objective
        expected = [f"sample.prompts: {why}, so it is left out ({objective})"] if why else []
        assert left_out == expected


def test_prompts_for_a_tokenizer_without_mask_token_all_go_on(tokenizer):
    assert choose_prompts(tokenizer, ALIKE, "causal") == (ALIKE, [])


# --- the text around what is filled in -----------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "tokens", "expected"),
    [
        ("The [MASK] sat", ["cat"], "The cat sat"),
        ("play [MASK] on", ["##ing"], "playing on"),
        ("[MASK] sat", ["cat"], "cat sat"),
        ("the[MASK]", ["cat"], "the cat"),
        ("([MASK])", ["cat"], "(cat)"),
        ("[MASK][MASK] on", ["play", "##ing"], "playing on"),
        ("the [MASK] [MASK].", ["cat", "sat"], "the cat sat."),
        ("今[MASK][MASK]气", ["天", "天"], "今天天气"),
        ("The  今 [MASK] ", ["天"], "The  今 天 "),
    ],
)
def test_filled_tokens_read_as_the_text_around_them(bert_tokenizer, prompt, tokens, expected):
    """A model that can say one thing only fills the prompt with it."""
    model = make_bert(bert_tokenizer)
    ids = bert_tokenizer.convert_tokens_to_ids(tokens)
    places = [
        t
        for t, i in enumerate(bert_tokenizer(prompt)["input_ids"])
        if i == bert_tokenizer.mask_token_id
    ]
    original = model.forward

    def forward(**inputs):
        output = original(**inputs)
        for place, token_id in zip(places, ids, strict=True):
            output.logits[0, place, token_id] = 1e4
        return output

    model.forward = forward
    (reply,) = write_plain(model, bert_tokenizer, [prompt], GREEDY, kind="masked", objective="mlm")
    assert (reply.text, reply.ids) == (expected, ids)


@pytest.mark.parametrize(
    ("prompt", "token", "expected"),
    [("a <mask> b", "Ġcat", "a cat b"), ("a <mask>", "t", "at"), ("<mask> b", "Ġcat", "cat b")],
)
def test_a_mask_token_that_takes_in_the_blank_before_it_gives_it_back(
    bart_tokenizer, prompt, token, expected
):
    placed = place_ids(bart_tokenizer, prompt)
    place = placed.ids.index(bart_tokenizer.mask_token_id)
    before = placed.ids[place - 1] if place else None
    token_id = bart_tokenizer.convert_tokens_to_ids(token)
    filling = Filling(placed.spans[place], before, [token_id])
    assert fill_in(bart_tokenizer, prompt, [filling]) == expected


def test_chinese_is_spelled_without_the_blanks_of_wordpiece(bert_tokenizer):
    ids = bert_tokenizer("今天，我们 the cat 玩", add_special_tokens=False)["input_ids"]
    assert spell_out(bert_tokenizer, ids) == "今天，我们 the cat 玩"
