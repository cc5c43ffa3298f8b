"""The command line's grammar and its help."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

from dreambooth_core import __version__
from dreambooth_core.cli.flags import add_flags
from dreambooth_core.cli.importing import add_import_flags
from dreambooth_core.config.schema import JOB_CONFIGS
from dreambooth_core.job.commands import COMMANDS

PROGRAM = "python -m dreambooth_core"

OVERVIEW = """\
Teach a Stable Diffusion checkpoint a subject or style from a few pictures.

The usual way, from start to end:
  create        make a model from a checkpoint
  train         train it on your pictures
  compare       see which saved checkpoint is the one to keep
  sample        make pictures with it
Try it without pictures or checkpoint of your own: demo
"""

DRY_RUN_HELP = "make one step, tell its loss, time and memory, and keep nothing of it"

EPILOG = """\
VERB --help shows a verb's settings with their defaults and ranges, and an example.
Exit codes: 0 done, 1 failed, 2 bad input found before work started, 130 stopped before the end.
Ctrl-C stops a job after the step it is in and saves as its settings say; twice kills it.
"""

JOB_HELP = {
    "create": "make a model from a checkpoint",
    "class-images": "make the class images that a training needs, and nothing else",
    "train": "train a model on pictures",
    "dry-run": "make one step of a training and tell its time and memory; nothing is kept",
    "plan": "show what a training would do: each picture's prompt, the steps, the files it writes",
    "sample": "make pictures with a model",
    "save": "write a checkpoint from a training state",
    "compare": "draw the same pictures with several checkpoints, side by side",
    "extract-lora": "make a LoRA of the difference between two checkpoints",
    "bake-lora": "write a checkpoint with a LoRA put into it",
    "merge": "write a checkpoint made of two or three others",
}

IMPORT_HELP = (
    "take over settings, concepts and models of sd_dreambooth_extension and of kohya's trainer"
)

EXAMPLES = {
    "create": "create --name ada --source sd-v1-5.safetensors",
    "class-images": (
        'class-images --model ada --instance-folder pictures/ada --class-prompt "photo of a dog"'
        " --class-images-per-instance-image 10"
    ),
    "train": (
        "train --model ada --instance-folder pictures/ada --instance-token zwx --class-token dog"
        ' --instance-prompt "photo of zwx dog" --epochs 100 --save-every-epochs 25'
    ),
    "dry-run": "dry-run --model ada --instance-folder pictures/ada --instance-token zwx",
    "plan": "plan --model ada --instance-folder pictures/ada --instance-token zwx",
    "sample": 'sample --model ada --prompts "zwx dog on a beach" "zwx dog in snow" --count 4',
    "save": "save --model ada --dtype fp16",
    "compare": 'compare --model ada --prompts "zwx dog on a beach" "photo of a dog"',
    "extract-lora": (
        "extract-lora --name ada --base sd-v1-5.safetensors --trained ada_400.safetensors --rank 64"
    ),
    "bake-lora": "bake-lora --name both --checkpoint sd-v1-5.safetensors --lora ada --strength 0.8",
    "merge": (
        "merge --name ada-anime --method add_difference --primary anime.safetensors"
        " --secondary ada_400.safetensors --tertiary sd-v1-5.safetensors"
    ),
    "models": "models --root path/to/webui",
    "watch": "watch 20260401-120000-train",
    "stop": "stop 20260401-120000-train --after-epoch",
    "send": "send save 20260401-120000-train",
    "resume": "resume ada",
    "demo": "demo",
    "import": "import models/dreambooth/ada/db_config.json --output ada.json",
    "settings": "settings",
}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps our line breaks and gives help texts room."""

    def __init__(self, prog: str) -> None:
        """Use 100 columns, help texts in their own line where flags are long."""
        super().__init__(prog, max_help_position=30, width=100)

    def _split_lines(self, text: str, width: int) -> list[str]:
        """Break lines at spaces alone: a hyphen in a file's name stays inside it."""
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


def normalise(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with `_` in flag names written as `-`, so that both spellings work."""
    normal = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name.startswith("--"):
            name = name.replace("_", "-")
        normal.append(name + equals + value)
    return normal


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description=OVERVIEW, epilog=EPILOG, formatter_class=HelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for kind, config_class in JOB_CONFIGS.items():
        verb = _add_verb(verbs, kind, JOB_HELP[kind])
        verb.usage = f"{PROGRAM} {kind} [--root FOLDER] [--config FILE] [--SETTING VALUE ...]"
        _add_settings_sources(verb)
        add_flags(verb, config_class)
        if kind == "train":
            verb.add_argument("--dry-run", action="store_true", help=DRY_RUN_HELP)
    _add_verb(verbs, "models", "list the models that can be trained")
    _add_run(_add_verb(verbs, "watch", "follow a run that was started elsewhere"), "the newest")
    stop = _add_verb(verbs, "stop", "stop a run, which saves as its settings say")
    stop.add_argument("--after-epoch", action="store_true", help="finish the current epoch first")
    _add_run(stop, "the only one that is going on")
    send = _add_verb(verbs, "send", "ask something of a run while it goes on")
    known = "; ".join(f"{name}: {meaning}" for name, meaning in COMMANDS.items())
    send.add_argument("command", metavar="COMMAND", help=known)
    _add_run(send, "the only one that is going on")
    resume = _add_verb(verbs, "resume", "go on with a model's last training")
    resume.add_argument("model", metavar="MODEL", help="the model's name")
    _add_verb(verbs, "demo", "train the built-in small model on a built-in subject, and compare")
    add_import_flags(_add_verb(verbs, "import", IMPORT_HELP))
    _add_verb(verbs, "settings", "print the reference of all settings, in Markdown")
    return parser


def _add_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=_example(name),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    verb.add_argument(
        "--root",
        metavar="FOLDER",
        default="",
        help="the folder that holds models/: a WebUI's own or any other [default: the current one;"
        " inside a WebUI's extensions/NAME, that WebUI's]",
    )
    verb.add_argument(
        "--json", action="store_true", help="write events as JSON lines instead of a display"
    )
    return verb


def _add_settings_sources(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--config", metavar="FILE", default="", help="settings as a JSON file")
    verb.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="change one setting by its path, such as optimizer.name=adamw or"
        " concepts.1.class_token=dog; may be given several times and wins over flags",
    )


def _add_run(verb: argparse.ArgumentParser, default: str) -> None:
    verb.add_argument(
        "run", nargs="?", default="", metavar="RUN", help=f"the run's id [default: {default}]"
    )


def _example(name: str) -> str:
    command = textwrap.fill(
        f"{PROGRAM} {EXAMPLES[name]}",
        width=96,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "Example:\n  " + command.replace("\n", " \\\n")
