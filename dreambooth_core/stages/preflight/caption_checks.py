"""What is wrong with the words, as findings with their remedies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dreambooth_core.checkpoint.clip_tokenizer import WORD_END
from dreambooth_core.config.concept import Concept
from dreambooth_core.config.sections.captions import CHUNK_TOKENS
from dreambooth_core.data.examples import Example
from dreambooth_core.data.prompt_chunks import cut_into_chunks
from dreambooth_core.data.prompts import has_word
from dreambooth_core.job.events import INFO, WARNING, Finding
from dreambooth_core.stages.preflight.clip_words import ClipWords
from dreambooth_core.stages.preflight.picture_checks import named

COMMA = f",{WORD_END}"
VOCABULARY = 49_408
RARE_FROM = 45_000
"""Numbers of tokens follow how common the words were in the text that CLIP's vocabulary was made
of: dog is 1,929, poodle 34,961, dachshund 42,720, and sks, a rifle, 48,136."""


def long_captions(examples: Sequence[Example], words: ClipWords, longest: int) -> Iterator[Finding]:
    """Yield what becomes of captions that are too long; `longest` is where they are cut, or 0."""
    limit = longest or CHUNK_TOKENS
    prompts = {prompt for example in examples for prompt in example.prompts}
    counts = {prompt: len(words.tokens(prompt)) for prompt in prompts}
    too_long = {prompt for prompt in prompts if read_tokens(prompt, words) > limit}
    long = [e for e in examples if not too_long.isdisjoint(e.prompts)]
    if not long:
        return
    most = max(counts.values())
    where = named([example.path for example in long])
    if longest:
        yield Finding(
            WARNING,
            f"The captions of {len(long)} pictures are longer than {longest} tokens, the longest"
            f" {most}; what is behind is not read: {where}.",
            "Shorten them, or raise the max token length.",
            "captions.max_token_length",
        )
    else:
        yield Finding(
            INFO,
            f"The captions of {len(long)} pictures have more than {limit} tokens, the longest"
            f" {most}: {where}. They are read in parts of {limit}, as the WebUI does.",
            "Say what matters within the first part: it is read as a whole.",
        )


def read_tokens(prompt: str, words: ClipWords) -> int:
    """Return how many tokens the chunks of a prompt have room for: phrases are kept whole."""
    return len(cut_into_chunks(words.tokens(prompt), COMMA)) * CHUNK_TOKENS


def token_in_class_prompt(
    concept: Concept, path: str, examples: Sequence[Example]
) -> list[Finding]:
    """Return a warning if the prompts of class images, `examples`, name the subject."""
    token, field = concept.instance_token, f"{path}.class_prompt"
    left = [example for example in examples if has_word(example.prompt, token)]
    if left:
        return [
            Finding(
                WARNING,
                f"The prompts of {len(left)} class images hold the instance token {token!r}, so"
                f" that the class is taught as the subject: {left[0].prompt!r}.",
                "Take the token out of the class prompt and the class token.",
                field,
            )
        ]
    if not examples or not has_word(concept.class_prompt, token):
        return []
    message = f"The class prompt holds the instance token {token!r}, which is left out of it:"
    return [
        Finding(
            WARNING,
            f"{message} class images are of {examples[0].prompt!r}.",
            "Say what the class shows without the token.",
            field,
        )
    ]


def known_token(concept: Concept, path: str, words: ClipWords) -> list[Finding]:
    """Return what the model knows of the instance token already, if it is made of known words."""
    parts = concept.instance_token.split()
    numbers = [words.number(part) for part in parts]
    known = [number for number in numbers if number is not None]
    if not known or len(known) < len(numbers):
        return []
    field, token, number = f"{path}.instance_token", concept.instance_token, max(known)
    remedy = "Take a word that means nothing, such as zwx: it has to be made of several tokens."
    if number < RARE_FROM:
        what = "words that the model knows" if len(parts) > 1 else "a word that the model knows"
        place = f"number {number:,} of {VOCABULARY:,} from the most common on"
        message = f"The instance token {token!r} is {what} ({place}): it would learn against it."
        return [Finding(WARNING, message, remedy, field)]
    message = (
        f"The instance token {token!r} is one of the rarest tokens that the model knows. It works,"
        " but what it stood for may show through."
    )
    return [Finding(INFO, message, remedy, field)]
