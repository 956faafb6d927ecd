"""What a language model answers: its text without its thoughts, or why there is none.

Models that reason write their thoughts before the answer, in marks that differ by
family. They are taken out here, once, for rankings, answers and queries alike.
"""

from __future__ import annotations

import re
import unicodedata

# A longer reply is not read: no ranking, answer or query is so long.
LONGEST = 1 << 16

# Of a tag's name: <think>, <|begin_of_thought|>, <ns:reasoning_content type="x">.
_WORD = (
    r"[\w:-]{0,32}(?:think|thought|reason|reflect|analysis|scratch|monologue|unused94)"
    r"[\w-]{0,32}"
)
_OPENED = (
    rf"<\|?{_WORD}(?:\s[^<>]{{0,64}})?\|?>"
    r"|\[THINK\]|◁think▷"
    # Harmony: <|channel|>analysis, and what Gemma writes for it.
    r"|<\|?channel\|?>\s?(?:analysis|commentary|thought)\b"
    # Granite, in words.
    r"|Here is my thought process:"
)
_CLOSED = (
    rf"<\|?/\s?{_WORD}\s?\|?>|<\|?end_(?:of_)?{_WORD}\|?>|<unused95>"
    # The answer starts at its own mark.
    r"|<answer>|<\|?start_response\|?>"
    r"|\[/THINK\]|◁/think▷|<channel\|>"
    r"|<\|?channel\|?>\s?final\b(?:\s?<\|message\|>)?|Here is my response:"
)
_MARKS = re.compile(rf"(?P<closed>{_CLOSED})|(?P<opened>{_OPENED})", re.IGNORECASE)
_END = re.compile(r"</answer>|<\|?end_response\|?>", re.IGNORECASE)
# Where a turn ends; a model that is not stopped there writes the next ones itself.
_TURN = re.compile(
    r"<\|(?:im_end|im_start|eot_id|eom_id|end_of_turn|end_of_text|endoftext|end|return"
    r"|start_header_id|user|assistant)\|>|<(?:end|start)_of_turn>|</s>"
)
# Harmony, where the server leaves out the marks and keeps the channels' names.
_BARE = re.compile(r"\Aanalysis(?:[A-Z]|.*assistantfinal)", re.DOTALL)


class Reply(str):
    """The text of a reply.

    Attributes:
        cut: the endpoint ended it at the most tokens that it may have.
    """

    cut: bool

    def __new__(cls, text: str, cut: bool = False) -> Reply:
        reply = super().__new__(cls, text)
        reply.cut = cut
        return reply


def is_cut(reply: str | None) -> bool:
    """Whether a reply was ended at the most tokens; plain strings were not."""
    return getattr(reply, "cut", False)


def answer(reply: str | None, *, plain: bool = False) -> tuple[str, str]:
    """What follows the last thought of a reply: ``(text, "")``, or ``("", reason)``.

    The reasons: "no reply", "empty", "too long" (over ``LONGEST`` bytes), "cut while
    thinking" (a thought that is opened and never closed).

    Args:
        plain: characters in their compatibility forms (NFKC), and each run of white
            space as one blank or one line break.
    """
    if reply is None:
        return "", "no reply"
    if len(reply) > LONGEST or len(reply.encode("utf-8", "replace")) > LONGEST:
        return "", "too long"
    text = str(reply)
    if plain:
        # Full-width digits and brackets become the plain ones.
        text = unicodedata.normalize("NFKC", text)
        text = squeezed(text.replace("&gt;", ">").replace("&lt;", "<"))
    marks = list(_MARKS.finditer(text))
    if marks:
        if marks[-1]["opened"]:
            return "", "cut while thinking"
        text = _END.split(text[marks[-1].end() :], maxsplit=1)[0]
    elif _BARE.match(text.lstrip()):
        _, found, text = text.rpartition("assistantfinal")
        if not found:
            return "", "cut while thinking"
    turns = (turn.strip() for turn in _TURN.split(text))
    text = next(filter(None, turns), "")
    return (text, "") if text else ("", "empty")


def squeezed(text: str) -> str:
    """Each run of white space as one blank, or one line break where it holds one."""
    return re.sub(r"\s+", lambda run: "\n" if "\n" in run.group() else " ", text)
