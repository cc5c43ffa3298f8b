"""How captions are used."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.control import control

CAPTION_SOURCES = ("auto", "file", "name")
CHUNK_TOKENS = 75
"""How many tokens of a prompt the text encoder reads at once; the WebUI counts them so too."""


@dataclass(kw_only=True)
class CaptionsSection:
    """How captions are used."""

    source: str = control(
        "auto",
        "Captions from",
        "Where the caption of a picture stands. auto takes the .txt file of the same name, else "
        "the .caption file, else the file name; file wants a file for every picture and names "
        "those that have none; name takes the file name even where there is a file. UTF-8 or "
        "UTF-16. Emphasis such as (word:1.2) and BREAK are read as the letters they are made of: "
        "the WebUI weighs words only when it draws.",
        choices=CAPTION_SOURCES,
    )
    dropout: float = control(
        0.0,
        "Caption dropout",
        "The share of instance examples that are shown with an empty prompt, chosen anew each "
        "time. A little (0.05 to 0.1) keeps the picture less tied to the words.",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
        advanced=True,
    )
    shuffle_tags: bool = control(
        False,
        "Shuffle tags",
        "Puts the parts between commas in a new order each time a picture is shown, for captions "
        "that are lists of tags. The text encoder then reads anew in every step, so that it stays "
        "in memory even when it is not trained.",
        advanced=True,
    )
    keep_tags: int = control(
        1,
        "Keep first tags",
        "How many parts at the front stay where they are when tags are shuffled: usually the one "
        "with the instance token.",
        minimum=0,
        maximum=100,
        step=1,
        unit="tags",
        advanced=True,
    )
    max_token_length: int = control(
        0,
        "Max token length",
        "Where long captions are cut off: 75, 150, 225 or 300 tokens, a token being a short word "
        "or part of one. They are read 75 at a time, as in the WebUI, phrases kept whole where a "
        "comma is near. 0 reads all, as the WebUI does.",
        minimum=0,
        maximum=4 * CHUNK_TOKENS,
        step=CHUNK_TOKENS,
        unit="tokens",
        advanced=True,
    )
    pad_tokens: bool = control(
        True,
        "Pad tokens",
        "Fills prompts up to 75 tokens, as the WebUI does when it draws. Off fills them up only "
        "to the longest of their batch.",
        advanced=True,
    )
    strict_tokens: bool = control(
        False,
        "Strict tokens",
        "Gives each phrase, up to one of , ; . ! ? and a space, a start and an end of its own, so "
        "that tags run into each other less. The WebUI does not read prompts so. The abandoned "
        "extension also put the letters of a word's end mark behind every word; this does not.",
        advanced=True,
    )
    extension_rules: bool = control(
        False,
        "Token rules of sd_dreambooth_extension",
        "Makes prompts as the abandoned extension did, to go on with what was trained there: the "
        "class token is replaced by the instance token, an instance token without a class token "
        "always goes in front, backslashes are removed, digits and dashes before a file name too.",
        advanced=True,
    )

    @property
    def read_anew(self) -> bool:
        """Whether prompts are read in every step, even when the text encoder does not learn.

        They are where no two are the same, and where their length is that of their batch.
        """
        return self.shuffle_tags or not self.pad_tokens
