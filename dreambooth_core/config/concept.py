"""What a concept is: a subject or style to be learned, and the class it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_core.config.choices import SAMPLERS
from dreambooth_core.config.control import REQUIRED, control

FILL_UP, OWN, GENERATE = "fill_up", "own", "generate"
CLASS_IMAGE_SOURCES = (FILL_UP, OWN, GENERATE)


@dataclass(kw_only=True)
class Concept:
    """One subject or style, its pictures and its words."""

    instance_folder: str = control(
        REQUIRED,
        "Instance images folder",
        "The folder with the 5 to 50 pictures to learn from, subfolders included.",
        kind="folder",
    )
    class_folder: str = control(
        "",
        "Class images folder",
        "A folder with your own class images, such as photos of other dogs. It is only read: "
        "pictures that the model makes are kept in the model's folder.",
        kind="folder",
    )
    class_images_source: str = control(
        FILL_UP,
        "Class images from",
        "fill_up takes all pictures of the class images folder, and the model makes what is still "
        "missing (all, if there is no folder). own takes the folder's pictures as they are, "
        "however many, and makes none. generate takes only made ones.",
        choices=CLASS_IMAGE_SOURCES,
    )
    instance_prompt: str = control(
        "[filewords]",
        "Instance prompt",
        "What an instance image shows. [filewords] stands for the picture's caption: the .txt or "
        ".caption file beside it, else its file name.",
        kind="prompt",
    )
    class_prompt: str = control(
        "",
        "Class prompt",
        "What a class image shows, such as: a photo of a dog. [filewords] stands for the instance "
        "images' captions with the instance token taken out.",
        kind="prompt",
    )
    instance_token: str = control(
        "",
        "Instance token",
        "A rare word that will mean your subject, such as: zwx. It is put into instance prompts "
        "that lack it.",
    )
    class_token: str = control(
        "",
        "Class token",
        "The plain word for what your subject is, such as: dog. It is put into class prompts "
        "that lack it.",
    )
    repeats: int = control(
        1,
        "Repeats",
        "How many times an epoch shows each instance image of this concept, so that concepts with "
        "few pictures keep up with others.",
        minimum=1,
        maximum=1000,
        step=1,
        unit="times",
    )
    folder_names: bool = control(
        False,
        "Read kohya folder names",
        "A folder called 9_w0ut3r man shows its pictures 9 times in an epoch, instead of Repeats; "
        "w0ut3r man is the caption of pictures without a caption file, and where no token is set, "
        "the first word is the instance token and the rest the class token.",
        advanced=True,
    )
    prompt_templates: str = control(
        "",
        "Prompt template file",
        "A text file with a prompt in each line, one of which is drawn each time a picture is "
        "shown; it takes the place of the instance prompt. [filewords] stands for the caption, "
        "[name] for the instance token and the class token. Lines that begin with # are left out.",
        advanced=True,
    )
    loss_weight: float = control(
        1.0,
        "Loss weight",
        "How much a picture of this concept counts beside one of another concept; it goes for its "
        "class images too. A single picture NAME.* counts more or less by the number in a file "
        "NAME.weight.txt beside it, such as 0.5.",
        minimum=0.01,
        maximum=100.0,
        step=0.01,
        advanced=True,
    )
    class_images_per_instance_image: int = control(
        0,
        "Class images per instance image",
        "How many class images to have for each instance image. They remind the model of what it "
        "knew of the class while it learns (prior preservation). 0 uses none.",
        minimum=0,
        maximum=1000,
        step=1,
        unit="images",
    )
    class_negative_prompt: str = control(
        "",
        "Class negative prompt",
        "What made class images should not show.",
        kind="prompt",
    )
    class_cfg_scale: float = control(
        7.5,
        "Class images CFG scale",
        "How closely made class images follow the prompt. 1 does not push at all.",
        minimum=1.0,
        maximum=30.0,
        step=0.5,
        advanced=True,
    )
    class_steps: int = control(
        40,
        "Class images sampling steps",
        "Denoising steps per made class image.",
        minimum=1,
        maximum=500,
        step=1,
        unit="steps",
        advanced=True,
    )
    class_sampler: str = control(
        "ddim",
        "Class images sampler",
        "The method that denoises made class images.",
        choices=SAMPLERS,
        advanced=True,
    )
    class_seed: int = control(
        -1,
        "Class images seed",
        "The first made class image's seed; each further one takes the next. "
        "-1 takes the run's seed.",
        minimum=-1,
        maximum=2**32 - 1,
        step=1,
        advanced=True,
    )
    sample_prompts: list[str] = control(
        [],
        "Sample prompts",
        "Prompts of previews that are made during training.",
        kind="prompt",
    )
