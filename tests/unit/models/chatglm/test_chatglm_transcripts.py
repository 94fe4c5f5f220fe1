"""Greedy chats, turn by turn and streamed with a kept cache, as the original code had them."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from sft_kit.models.chatglm import ChatGLMForCausalLM, ChatGLMTokenizer

FIXTURES = Path(__file__).parents[3] / "fixtures" / "chatglm"
FOLDERS = ["chatglm2_tiny_fp16", "chatglm2_tiny_int4", "chatglm3_tiny_fp16"]
NUM_PIECES, NUM_ROWS, END = 460, 512, 2
STOP_TOKENS = {"chatglm2": [END], "chatglm3": [END, 466, 468]}


@cache
def load(name: str) -> tuple[ChatGLMForCausalLM, ChatGLMTokenizer]:
    model = AutoModelForCausalLM.from_pretrained(FIXTURES / name, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(FIXTURES / name)


@cache
def transcripts(name: str) -> dict:
    return json.loads((FIXTURES / name / "expected_tokenizer.json").read_text("utf-8"))["chat"]


def suppressed(stops: list[int]) -> list[int]:
    """Ids that the recorded chats were kept from writing."""
    return [0, 1, *(i for i in range(NUM_PIECES, NUM_ROWS) if i not in stops)]


def generate(
    name: str, input_ids: list[int], num_tokens: int, kept: DynamicCache | None = None
) -> list[int]:
    """Continue greedily, by at most `num_tokens`; returns the new ids."""
    model, tokenizer = load(name)
    stops = STOP_TOKENS[tokenizer.family]
    prompt = torch.tensor([input_ids])
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=kept,
        do_sample=False,
        top_p=None,
        temperature=None,
        max_length=None,
        max_new_tokens=num_tokens,
        suppress_tokens=suppressed(stops),
        eos_token_id=stops,
    )
    return output[0, len(input_ids) :].tolist()


def prompt_ids(name: str, messages: list[dict[str, str]]) -> list[int]:
    _, tokenizer = load(name)
    return tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)


def messages_of(history: list) -> Iterator[dict[str, str]]:
    """ChatGLM3's histories are messages; ChatGLM2's are pairs of a question and an answer."""
    for entry in history:
        if isinstance(entry, dict):
            yield entry
        else:
            yield {"role": "user", "content": entry[0]}
            yield {"role": "assistant", "content": entry[1]}


def answer_of(name: str, new_ids: list[int]) -> str:
    """Decode an answer; ChatGLM3's original code leaves the last token out, which stopped it."""
    _, tokenizer = load(name)
    shown = new_ids[:-1] if tokenizer.family == "chatglm3" else new_ids
    return tokenizer.decode(shown, skip_special_tokens=True)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_chat_of_two_turns_is_the_original_one(name):
    history: list = []
    for turn in ("chat0", "chat1"):
        wanted = transcripts(name)[turn]
        question = {"role": "user", "content": wanted["query"]}
        input_ids = prompt_ids(name, [*messages_of(history), question])
        assert input_ids == wanted["input_ids"]
        wanted_ids = wanted["output_ids"][len(input_ids) :]
        # One that stopped by itself has to do so again.
        room = 20 if wanted_ids[-1] in STOP_TOKENS[load(name)[1].family] else 0
        new_ids = generate(name, input_ids, len(wanted_ids) + room)
        assert new_ids == wanted_ids
        answer = answer_of(name, new_ids).strip()
        assert answer == wanted["response"]
        if load(name)[1].family == "chatglm3":
            history += [question, {"role": "assistant", "metadata": "", "content": answer}]
        else:
            history.append([wanted["query"], answer])
        assert history == wanted["history"]


def next_turn_ids(name: str, query: str) -> list[int]:
    """Encode the second question of a stream, to stand behind the first answer.

    ChatGLM2 goes on with the text, so the piece that begins every text is left out; ChatGLM3 writes
    its prefix `[gMASK]<sop>` again.
    """
    _, tokenizer = load(name)
    if tokenizer.family == "chatglm3":
        return prompt_ids(name, [{"role": "user", "content": query}])
    text = f"\n\n[Round 2]\n\n问：{query}\n\n答："
    return tokenizer(text, add_special_tokens=False)["input_ids"][1:]


@pytest.mark.parametrize("name", FOLDERS)
def test_a_stream_with_a_kept_cache_is_the_original_one(name):
    kept = DynamicCache()
    read: list[int] = []  # what is in the cache: all but the last token written
    for turn in ("stream0", "stream1"):
        wanted = transcripts(name)[turn]
        if read:
            input_ids = next_turn_ids(name, wanted["query"])
        else:
            input_ids = prompt_ids(name, [{"role": "user", "content": wanted["query"]}])
        assert input_ids == wanted["input_ids"]
        positions = range(kept.get_seq_length(), kept.get_seq_length() + len(input_ids))
        assert list(positions) == wanted["position_ids"]
        assert len(read) + len(input_ids) == wanted["attention_len"]
        wanted_ids = wanted["output_ids"][len(input_ids) :]
        new_ids = generate(name, read + input_ids, len(wanted_ids), kept)
        assert new_ids == wanted_ids
        # What a reader sees: nothing while a character is unfinished.
        pieces = [answer_of(name, new_ids[:end]) for end in range(1, len(new_ids) + 1)]
        shown = [piece for piece in pieces if piece and not piece.endswith("\ufffd")]
        assert len(shown) == wanted["n_yields"]
        assert shown[-1].strip() == wanted["last"]
        read = [*read, *input_ids, *new_ids[:-1]]
        assert kept.get_seq_length() == len(read)
