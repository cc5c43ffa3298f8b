"""The prompts that checkpoints are compared on: the subject, the subject elsewhere, its class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dreambooth_core.config.schema import CompareConfig, Concept, TrainConfig
from dreambooth_core.data.prompts import FILEWORDS, Role, final_prompt, has_word
from dreambooth_core.errors import InputError
from dreambooth_core.job.runs import last_run
from dreambooth_core.job.workspace import Workspace

NEW_SETTING = "at the beach"


@dataclass(frozen=True)
class Column:
    """A prompt of the comparison; `note` says what it is there for."""

    prompt: str
    note: str = ""
    has_token: bool = False

    @property
    def heading(self) -> str:
        """The text above the column."""
        return f"{self.prompt} ({self.note})" if self.note else self.prompt


def last_concepts(workspace: Workspace, model: str) -> list[Concept]:
    """Return the concepts of the model's last training; none if there was none."""
    run = last_run(workspace, model, "train")
    return run.config.concepts if run and isinstance(run.config, TrainConfig) else []


def _plain(template: str, concept: Concept, role: Role) -> str:
    """Return a concept's prompt without any picture's caption."""
    bare = "" if FILEWORDS in template else template
    return final_prompt(
        bare,
        "",
        instance_token=concept.instance_token,
        class_token=concept.class_token,
        role=role,
    )


def concept_columns(concept: Concept, setting: str = NEW_SETTING) -> list[Column]:
    """Return the three columns of a concept; one without words of its own has fewer."""
    subject = _plain(concept.instance_prompt, concept, "instance")
    class_word = _plain(concept.class_prompt, concept, "class")
    columns = []
    if subject:
        columns.append(Column(subject, "the subject", has_token=True))
        columns.append(Column(f"{subject} {setting}", "in a new setting", has_token=True))
    if class_word and class_word != subject:
        columns.append(Column(class_word, "its class alone"))
    return columns


def _asked_column(prompt: str, tokens: Sequence[str]) -> Column:
    if any(has_word(prompt, token) for token in tokens):
        return Column(prompt, "with the token", has_token=True)
    return Column(prompt, "without the token" if tokens else "")


def comparison_columns(
    config: CompareConfig, concepts: Sequence[Concept], tokens: Sequence[str] = ()
) -> list[Column]:
    """Return the columns asked for, else those of the last training's concepts.

    `tokens` are words that stand for a subject beside the concepts' own.
    """
    tokens = [*tokens, *(concept.instance_token for concept in concepts if concept.instance_token)]
    prompts = [prompt for prompt in config.prompts if prompt.strip()]
    if prompts:
        return [_asked_column(prompt, tokens) for prompt in prompts]
    columns = [column for concept in concepts for column in concept_columns(concept)]
    if not columns:
        raise InputError(
            f"There is nothing to draw: the model {config.model!r} has no training whose prompts"
            " could be used.",
            remedy="Give prompts.",
            field="prompts",
        )
    return columns
