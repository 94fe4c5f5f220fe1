"""The shapes of compared answers and of prompts on their way from a file to the model."""

from collections.abc import Mapping
from dataclasses import dataclass

from sft_kit.data.rows import Message, Where


@dataclass(frozen=True, slots=True)
class Comparison:
    """Answers to one prompt, the best first.

    Attributes:
        prompt: Turns before the answers; empty where the answers are plain texts.
        answers: K >= 2 continuations of the prompt, each of one or more turns that end with the
            assistant's; of plain texts, one message with the role "text" each.
        margin: By how much the first is better than the second, in units of the score, 0 or more;
            only where K is 2.
        source: The file it comes from, for figures by source.
        where: The row it came from.
    """

    prompt: tuple[Message, ...]
    answers: tuple[tuple[Message, ...], ...]
    margin: float
    source: str
    where: Where


@dataclass(frozen=True, slots=True)
class PreferenceExample:
    """One tokenized comparison.

    Attributes:
        input_ids: K lists of token ids, the best answer's first; each is the prompt and the answer
            and ends with a stop token.
        num_prompt_tokens: Leading tokens that all K have in common as their prompt.
        margin: In units of the score.
        comparison: The row it came from.
    """

    input_ids: tuple[tuple[int, ...], ...]
    num_prompt_tokens: int
    margin: float
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that waits for a completion.

    Attributes:
        input_ids: P token ids, as chat sends them.
        messages: The turns, or none where the prompt is plain text.
        text: What a reward function is given: the last user message, or the plain text.
        columns: The row's other fields, for reward functions.
        where: The row it came from.
    """

    input_ids: tuple[int, ...]
    messages: tuple[Message, ...]
    text: str
    columns: Mapping[str, object]
    where: Where
