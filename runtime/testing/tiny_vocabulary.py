"""The vocabularies of the tiny models, and what a chat model made of them likes to say."""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Final

NORMAL: Final = 1
CONTROL: Final = 3
USER_DEFINED: Final = 4
"""Token types, as GGUF numbers them."""

END_OF_TEXT: Final = "<|endoftext|>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
CALL_START: Final = "<tool_call>"
CALL_END: Final = "</tool_call>"

CHATML: Final = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""A ChatML template that knows nothing of tools."""

CHATML_TOOLS: Final = (
    "{% if tools %}"
    "{{ '<|im_start|>system\\nCall tools inside <tool_call></tool_call>. Tools:\\n' }}"
    "{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'tool' %}"
    "{{ '<|im_start|>user\\n<tool_response>\\n' + message['content'] + '\\n</tool_response>' }}"
    "{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '<tool_call>{\"name\": \"' + call['function']['name'] + '\", \"arguments\": ' }}"
    "{{ call['function']['arguments'] | tojson }}{{ '}</tool_call>' }}"
    "{% endfor %}"
    "{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant' + "
    "('|tools|' if tools and messages[-1]['role'] != 'tool' else '\\n') }}"
    "{% endif %}"
)
"""A ChatML template with tool calls in the form that Hermes and Qwen models use.

Where there are tools and none has just answered, it opens the turn so that the model calls one.
"""

# The model says one word of each group in turn, then a full stop and a quotation mark: words that
# read as text, and inside a JSON string an end within a few tokens at any temperature.
_SENTENCE: Final = (
    (" the", " a", " this", " every"),
    (" small", " quiet", " local", " quick"),
    (" model", " engine", " client", " server"),
    (" runs", " works", " answers", " waits"),
    (" on", " with", " without", " beside"),
    (" you", " me", " it", " us"),
)


_WORDS: Final = tuple(word for group in _SENTENCE for word in group)


def _byte_notation() -> dict[int, str]:
    """Byte → the character that stands for it in a GPT-2 vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


_NOTATION: Final = _byte_notation()


@dataclass(frozen=True, slots=True)
class ChatVocabulary:
    """Tokens of the chat model, and its habits.

    Attributes:
        tokens: Token texts in GPT-2's byte notation.
        token_types: Type of each, as GGUF numbers them.
        merges: Byte-pair merges, highest rank first.
        classes: For each token the number of its class; a class shares its followers.
        class_count: How many classes there are.
        bias: How likely each token is after anything, in logits.
        followers: Class → tokens it likes to be followed by, in logits above their bias.
    """

    tokens: tuple[str, ...]
    token_types: tuple[int, ...]
    merges: tuple[str, ...]
    classes: tuple[int, ...]
    class_count: int
    bias: tuple[float, ...]
    followers: dict[int, dict[int, float]]


def chat_vocabulary(size: int | None = None) -> ChatVocabulary:
    """Every single byte, some English words, three control tokens; filled up to ``size`` tokens.

    Raises:
        ValueError: ``size`` is less than the vocabulary needs.
    """
    special = (END_OF_TEXT, TURN_START, TURN_END, CALL_START, CALL_END)
    tokens = [*special, *(_NOTATION[byte] for byte in range(256))]
    merges: list[str] = []
    for word in _WORDS:
        pieces = [_NOTATION[byte] for byte in word.encode()]
        left = pieces[0]
        for right in pieces[1:]:
            if left + right not in tokens:
                tokens.append(left + right)
                merges.append(f"{left} {right}")
            left += right
    used = len(tokens)
    # A multiple of 32, as real models have: the llguidance 1.9 inside engines panics when the size
    # is one less than one, and the engine then goes on without the grammar.
    if size is None:
        size = -(-used // 32) * 32
    if size < used:
        raise ValueError(f"a vocabulary of {size} tokens is too small: it needs {used}")
    tokens.extend(f"[unused{number}]" for number in range(size - used))
    classes, class_count, followers = _habits(tokens)
    return ChatVocabulary(
        tokens=tuple(tokens),
        token_types=(*[CONTROL] * 3, *[USER_DEFINED] * 2, *[NORMAL] * (len(tokens) - 5)),
        merges=tuple(merges),
        classes=classes,
        class_count=class_count,
        bias=tuple(_bias(number, token, used) for number, token in enumerate(tokens)),
        followers=followers,
    )


def _habits(tokens: list[str]) -> tuple[tuple[int, ...], int, dict[int, dict[int, float]]]:
    """Classes, their number and followers, as :class:`ChatVocabulary` has them."""
    ids = {token: number for number, token in enumerate(tokens)}

    def of(text: str) -> int:
        return ids["".join(_NOTATION[byte] for byte in text.encode())]

    classes = [0] * len(tokens)
    followers: dict[int, dict[int, float]] = {}
    groups = [tuple(of(word) for word in group) for group in _SENTENCE]
    groups += [(of("."),), (of('"'),)]
    for number, group in enumerate(groups, start=1):
        for token in group:
            classes[token] = number
        following = groups[number % len(groups)]
        followers[number] = dict.fromkeys(following, 7.0 if len(following) > 1 else 9.0)
    quote = len(groups)
    value_end, closed, colon, opening, asked, called = range(quote + 1, quote + 7)
    ends = {of("}"): 7.0, of("]"): 7.0, of(","): 2.5}
    followers[quote][of(",")] = -6.0  # only where a grammar forbids words, and rather an end
    followers[value_end] = ends
    followers[closed] = {**ends, ids[CALL_END]: 20.0}
    followers[colon] = {of('"'): 5.0, **{of(digit): 3.0 for digit in string.digits}}
    followers[opening] = {of('"'): 5.0, of("}"): 2.0, of("]"): 2.0}
    followers[0] = dict.fromkeys(groups[0], 5.0)
    for text in string.digits + "el]":
        classes[of(text)] = value_end
    classes[of("}")] = closed
    classes[of(":")] = colon
    for text in "{[,":
        classes[of(text)] = opening
    classes[of("|")], classes[ids[CALL_END]] = asked, called
    followers[asked] = {ids[CALL_START]: 30.0}
    followers[called] = {ids[TURN_END]: 30.0}
    return tuple(classes), called + 1, followers


def embedding_vocabulary() -> tuple[tuple[str, ...], tuple[int, ...]]:
    """WordPiece tokens (as GGUF writes them, ``▁`` before the start of a word) and their types.

    Every printable ASCII character is there, at the start of a word and within one.
    """
    control = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    characters = [
        character for character in string.printable if character.strip() and not character.isupper()
    ]
    words = [f"▁{word.strip()}" for word in _WORDS]
    tokens = [*control, *(f"▁{character}" for character in characters), *characters]
    tokens += [word for word in words if word not in tokens]
    return tuple(tokens), tuple(
        CONTROL if number < len(control) else NORMAL for number in range(len(tokens))
    )


def _bias(number: int, text: str, used: int) -> float:
    """Words before letters before the rest; last what only a grammar should bring."""
    if number < 5:
        # The end of a turn comes only where a grammar allows nothing else, or after a tool call.
        return -12.0 if text == CALL_END else -14.0
    if number >= used:
        return -20.0
    if len(text) > 1:
        return 0.0 if text.replace(_NOTATION[32], " ") in _WORDS else -3.0
    if text in {_NOTATION[ord(space)] for space in " \n\t\r"}:
        return -17.0  # JSON may go on with white space for ever: rather end
    if not text.isascii() or text in "\\<":
        return -12.0
    return -2.0
