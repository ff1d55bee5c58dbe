"""Text and conversations as tokens, and which of them a model is to predict.

A text row is a prompt and what follows it. A conversation is a list of messages; its text is made by the
chat template of the model's own tokenizer or, where there is none, by the plain template

    <system>
    You are brief.
    <user>
    What is 2 + 2?
    <assistant>
    4[end]

in which every turn is headed by its role, an assistant's turn ends with the tokenizer's end token and any
other with a line break. Only assistants' turns are predicted, with their end tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steepest.contract import SteepestError
from steepest.data.tokenizer import TokenIds, Tokenizer

Message = Mapping[str, Any]
"""One turn: `role` and `content`, both text, and whatever else its template reads."""

Turns = str | tuple[Message, ...]
"""A plain text, or the turns of a conversation."""

ASSISTANT = "assistant"
GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
"""The mark with which a chat template says itself which text is the assistant's."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """A row of tokens: ids (n,) int32, and targets (n,) bool, the tokens to be predicted."""

    ids: TokenIds
    targets: np.ndarray[tuple[int], np.dtype[np.bool_]]

    def __len__(self) -> int:
        return len(self.ids)


def encode_prompt(tokenizer: Tokenizer, prompt: Turns) -> TokenIds:
    """(n,) int32 ids after which the model is to answer: a text, or turns and the head of an assistant's."""
    if isinstance(prompt, str):
        return _ids(tokenizer.start_ids, _text(tokenizer, prompt))
    if tokenizer.chat is not None:
        return _ids(_template(tokenizer.chat, prompt, add_generation_prompt=True)["input_ids"])
    return _ids(tokenizer.start_ids, *(_turn(tokenizer, turn) for turn in prompt), _head(tokenizer))


def encode_answer(tokenizer: Tokenizer, prompt: Turns, answer: Turns) -> Encoded:
    """A prompt and what follows it, of which the answer's text or assistant turns are targets.

    Both are texts, or both are turns. Texts are encoded apart, so that training meets the tokens that
    generation will. Raises SteepestError if a chat template cannot say which tokens are the assistant's.
    """
    if isinstance(prompt, str) or isinstance(answer, str):
        if not (isinstance(prompt, str) and isinstance(answer, str)):
            raise SteepestError("prompt and answer must both be text, or both lists of messages.")
        before = encode_prompt(tokenizer, prompt)
        after = _ids(_text(tokenizer, answer), [tokenizer.end_id])
        return _joined([(before, False), (after, True)])
    turns = (*prompt, *answer)
    if tokenizer.chat is None:
        return _plain(tokenizer, turns, len(prompt))
    # Only the fast tokenizers know which characters a token stands for.
    if tokenizer.chat.is_fast and GENERATION.search(tokenizer.chat.get_chat_template()):
        return _marked(tokenizer.chat, turns, len(prompt))
    return _by_prefixes(tokenizer.chat, turns, len(prompt))


def _plain(tokenizer: Tokenizer, turns: Sequence[Message], first: int) -> Encoded:
    """Turns in the plain template; assistants' turns from number `first` on are targets."""
    pieces: list[tuple[Any, bool]] = [(tokenizer.start_ids, False)]
    for number, turn in enumerate(turns):
        if turn["role"] == ASSISTANT:
            pieces.append((_head(tokenizer), False))
            pieces.append((_ids(_text(tokenizer, turn["content"]), [tokenizer.end_id]), number >= first))
        else:
            pieces.append((_turn(tokenizer, turn), False))
    return _joined(pieces)


def _marked(chat: Any, turns: Sequence[Message], first: int) -> Encoded:
    """Turns in a template that marks the assistant's text itself."""
    out = _template(chat, turns, return_assistant_tokens_mask=True)
    ids, targets = _ids(out["input_ids"]), np.array(out["assistant_masks"], dtype=np.bool_)
    if any(turn["role"] == ASSISTANT for turn in turns[:first]):
        before = _ids(_template(chat, turns[:first])["input_ids"])
        _check_prefix(before, ids)
        targets[: len(before)] = False
    return Encoded(ids, targets)


def _by_prefixes(chat: Any, turns: Sequence[Message], first: int) -> Encoded:
    """Turns in any other template: an assistant's tokens are those that its turn adds to what is before."""
    ids = _ids(_template(chat, turns)["input_ids"])
    targets = np.zeros(len(ids), dtype=np.bool_)
    for number, turn in enumerate(turns):
        if number < first or turn["role"] != ASSISTANT:
            continue
        before = _ids(_template(chat, turns[:number], add_generation_prompt=True)["input_ids"])
        after = _ids(_template(chat, turns[: number + 1])["input_ids"])
        _check_prefix(before, after)
        _check_prefix(after, ids)
        # What a template puts behind the end token (a line break) is not the assistant's.
        (ends,) = np.nonzero(after[len(before) :] == chat.eos_token_id)
        stop = len(before) + int(ends[-1]) + 1 if len(ends) else len(after)
        targets[len(before) : stop] = True
    return Encoded(ids, targets)


def _check_prefix(start: TokenIds, whole: TokenIds) -> None:
    if not np.array_equal(start, whole[: len(start)]):
        raise SteepestError(
            "the model's chat template writes earlier turns differently once others follow, so it cannot be "
            "told which tokens are the assistant's; mark its text in the template with "
            "{% generation %} and {% endgeneration %}."
        )


def _template(chat: Any, turns: Sequence[Message], **options: bool) -> Any:
    try:
        return chat.apply_chat_template([dict(turn) for turn in turns], return_dict=True, **options)
    except Exception as error:  # whatever a template raises for roles or an order that it does not take
        raise SteepestError(
            f"the model's chat template refuses these messages ({' '.join(str(error).split())}); "
            "change them or the template."
        ) from error


def _head(tokenizer: Tokenizer, role: str = ASSISTANT) -> TokenIds:
    return _text(tokenizer, f"<{role}>\n")


def _turn(tokenizer: Tokenizer, turn: Message) -> TokenIds:
    """A turn of a prompt in the plain template."""
    if turn["role"] == ASSISTANT:
        return _ids(_head(tokenizer), _text(tokenizer, turn["content"]), [tokenizer.end_id])
    return _text(tokenizer, f"<{turn['role']}>\n{turn['content']}\n")


def _text(tokenizer: Tokenizer, text: str) -> TokenIds:
    return tokenizer.encode(text.encode("utf-8", errors="replace"))


def _ids(*parts: Any) -> TokenIds:
    return np.concatenate([np.asarray(part, dtype=np.int32) for part in parts])


def _joined(pieces: Sequence[tuple[Any, bool]]) -> Encoded:
    """Pieces of tokens, each with whether it is to be predicted, as one row."""
    flags = [np.full(len(ids), target, dtype=np.bool_) for ids, target in pieces]
    return Encoded(_ids(*(ids for ids, _ in pieces)), np.concatenate(flags))
