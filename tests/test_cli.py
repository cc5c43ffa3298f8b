from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dreambooth_core import cli, demo
from dreambooth_core.cli import verbs
from dreambooth_core.cli.flags import describe, flags_of
from dreambooth_core.cli.parser import EXAMPLES, JOB_HELP, build_parser, normalise
from dreambooth_core.config.control import field_specs, section_specs
from dreambooth_core.config.schema import (
    JOB_CONFIGS,
    BakeLoraConfig,
    Concept,
    CreateConfig,
    SampleConfig,
    TrainConfig,
)
from dreambooth_core.config.serialize import to_dict, with_absolute_paths
from dreambooth_core.job import launcher
from dreambooth_core.job.launcher import launch
from dreambooth_core.job.runs import read_run, run_ids
from dreambooth_core.job.workspace import ModelInfo, Workspace

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def ready(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace with a model "ada" and the current folder; workers obey their prompt."""
    workspace.model("ada").write_info(ModelInfo("ada", "sd1", "/base.safetensors"))
    monkeypatch.setattr(launcher, "WORKER_MODULE", "tests.fake_worker")
    monkeypatch.chdir(workspace.root)
    return workspace


def _help(verb: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main([verb, "--help"])
    assert caught.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", JOB_CONFIGS)
def test_help_teaches_every_setting(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = " ".join(_help(kind, capsys).split())
    for flag in flags_of(JOB_CONFIGS[kind]):
        for name in flag.names:
            assert f"--{name}" in text, name
        assert " ".join(describe(flag.spec).split()) in text
    for section in section_specs(JOB_CONFIGS[kind]):
        assert f"{section.control.label}: {section.control.help}" in text
    assert "Example: python -m dreambooth_core" in text


def test_a_help_text_says_default_range_and_unit() -> None:
    specs = {spec.path: spec for spec in field_specs(TrainConfig)}
    epochs = describe(specs["intervals.epochs"])
    assert epochs.endswith("[in epochs; 0 to 10000; default 100]")
    assert describe(specs["model"]).endswith("[must be given]")
    assert describe(specs["unet.train"]).endswith("[default on]")
    assert describe(specs["optimizer.name"]).endswith(" sgd; default lion]")
    assert describe(specs["saving.name"]).endswith("[default empty]")


def test_every_setting_has_a_flag() -> None:
    for cls in JOB_CONFIGS.values():
        wanted = {spec.path for spec in field_specs(cls)} - {"concepts"}
        if cls is TrainConfig:
            wanted |= {f"concept.{spec.path}" for spec in field_specs(Concept)}
        assert {flag.dest for flag in flags_of(cls)} == wanted


def test_short_flags_are_clear() -> None:
    names = {name: flag.dest for flag in flags_of(TrainConfig) for name in flag.names}
    assert names["epochs"] == "intervals.epochs"
    assert names["instance-folder"] == "concept.instance_folder"
    assert names["seed"] == "seed"
    for unclear in ("name", "train", "unet", "steps", "every-steps", "enabled", "use-ema"):
        assert unclear not in names
    assert names["previews.every-steps"] == "previews.every_steps"


@pytest.mark.parametrize("verb", [*EXAMPLES])
def test_examples_are_understood(verb: str) -> None:
    import shlex

    words = shlex.split(EXAMPLES[verb])
    options = build_parser().parse_args(normalise(words))
    assert options.verb == words[0] == verb
    if verb in JOB_CONFIGS:
        verbs.config_from(options, JOB_CONFIGS[verb])


def test_the_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    text = capsys.readouterr().out
    for verb in [*JOB_HELP, "models", "watch", "stop", "send", "resume", "demo"]:
        assert f"\n    {verb} " in text or f"\n    {verb}\n" in text


def test_both_spellings_of_flags() -> None:
    given = ["train", "--batch_size", "2", "--saving.use_ema=a_b", "in_stance", "-x_y"]
    assert normalise(given) == [
        *("train", "--batch-size", "2", "--saving.use-ema=a_b", "in_stance", "-x_y")
    ]


def _config(words: list[str]) -> Any:
    options = build_parser().parse_args(normalise(words))
    return verbs.config_from(options, JOB_CONFIGS[options.verb])


def test_flags_become_settings() -> None:
    config = _config(
        [
            *("train", "--model", "ada", "--epochs", "7", "--learning_rate.unet", "2e-6"),
            *("--instance-folder", "pics", "--concept.class-token", "dog", "--no-unet.train"),
            *("--sample-prompts", "a", "b", "--sample-prompts", "c", "--horizontal-flip"),
        ]
    )
    expected = TrainConfig(
        model="ada",
        concepts=[
            Concept(instance_folder="pics", class_token="dog", sample_prompts=["a", "b", "c"])
        ],
    )
    expected.intervals.epochs = 7
    expected.learning_rate.unet = 2e-6
    expected.unet.train = False
    expected.images.horizontal_flip = True
    assert config == expected


def test_file_then_flags_then_set(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    values = {"model": "a", "intervals": {"epochs": 1, "max_steps": 1}, "seed": 1}
    path.write_text(json.dumps(values))
    words = ["train", "--config", str(path), "--epochs", "2", "--seed", "2", "--set", "seed=3"]
    config = _config(words)
    assert (config.model, config.seed) == ("a", 3)
    assert (config.intervals.epochs, config.intervals.max_steps) == (2, 1)


def test_concept_flags_change_the_only_concept_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.json"
    concepts = [{"instance_folder": "a"}]
    path.write_text(json.dumps({"model": "m", "concepts": concepts}))
    config = _config(["train", "--config", str(path), "--class-token", "dog"])
    assert config.concepts == [Concept(instance_folder="a", class_token="dog")]
    path.write_text(json.dumps({"model": "m", "concepts": concepts * 2}))
    assert cli.main(["train", "--config", str(path), "--class-token", "dog"]) == 2
    assert "concepts.0.class_token" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--model", "ada", "--set", "epoch=3"], "epoch: is not a setting."),
        (["train", "--set", "seed=1"], "model: must be given."),
        (["train", "--model", "a/b"], "slash"),
        (["train", "--model", "ada"], "nothing to learn"),
        (["train", "--model", "eve", "--instance-folder", "pics"], "There is no model 'eve'"),
        (["train", "--model", "ada", "--instance-folder", "empty"], "holds no pictures"),
        (["train", "--model", "ada", "--instance-folder", "none"], "does not exist"),
        (["train", "--config", "none.json"], "none.json cannot be read"),
        (["create", "--name", "x/y", "--source", "a"], "slash"),
        (["create", "--name", "x", "--source", "none"], "no checkpoint file 'none'"),
        (["create", "--name", "ada", "--source", "bad.safetensors"], "a model 'ada' already"),
        (["create", "--name", "x", "--source", "bad.safetensors"], "bad.safetensors"),
        (["sample", "--model", "ada"], "prompts: are empty"),
        (["save", "--model", "ada"], "no training state"),
        (["merge", "--name", "x", "--primary", "a", "--secondary", "b"], "needs the checkpoint"),
        (["extract-lora", "--name", "x", "--base", "a", "--trained", "b"], "no checkpoint file"),
        (["bake-lora", "--name", "x", "--checkpoint", "a", "--lora", "b"], "no LoRA file 'b'"),
        (["bake-lora", "--name", "x/y", "--checkpoint", "a", "--lora", "b"], "slash"),
        (["resume", "ada"], "was not trained here yet"),
        (["resume", "eve"], "There is no model 'eve'"),
        (["watch"], "There are no runs"),
        (["watch", "none"], "There is no run 'none'"),
        (["stop"], "No run is going on."),
        (["models", "--root", "none"], "none does not exist"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(
    ready: Workspace, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (ready.root / "empty").mkdir()
    (ready.root / "pics").mkdir()
    (ready.root / "pics" / "one.png").write_bytes(b"")
    (ready.root / "bad.safetensors").write_bytes(b"no checkpoint")
    before = sorted(ready.root.rglob("*"))
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.out == ""
    assert sorted(ready.root.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--epochs", "many"], "not a whole number"),
        (["train", "--epoch", "3"], "unrecognized arguments"),
        (["fly"], "invalid choice"),
    ],
)
def test_bad_words_on_the_command_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_as_json(ready: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", "--model", "ada", "--json"]) == 2
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["error"], event["exit_code"]) == ("job_failed", "ConfigError", 2)
    assert event["field"] == "prompts"


def test_a_job_is_followed_to_its_end(ready: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", "--model", "ada", "--prompts", "finish"]) == 0
    out = capsys.readouterr().out
    (run_id,) = run_ids(ready)
    assert f"Run {run_id}: sample of model ada" in out
    assert "one.png" in out
    assert "two.png" in out


@pytest.mark.parametrize("words", [["train", "--dry-run"], ["dry-run"]])
def test_a_step_can_be_tried(ready: Workspace, words: list[str]) -> None:
    pictures = ready.root / "pics"
    pictures.mkdir()
    (pictures / "one.png").write_bytes(b"")
    cli.main([*words, "--model", "ada", "--instance-folder", str(pictures)])
    (run_id,) = run_ids(ready)
    run = read_run(ready.run_folder(run_id))
    assert run.kind == "dry-run" and isinstance(run.config, TrainConfig)


def test_a_job_as_json_lines(ready: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sample", "--model", "ada", "--prompts", "finish", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == [
        *("job_started", "phase_started", "phase_progress", "notice", "job_finished")
    ]
    assert events[-1]["summary"]["paths"] == ["one.png", "two.png"]


@pytest.mark.parametrize(("order", "code"), [("raise", 1), ("die", 1), ("usage", 2)])
def test_exit_codes(
    ready: Workspace, order: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["sample", "--model", "ada", "--prompts", order]) == code
    assert "error: " in capsys.readouterr().out


def test_models(ready: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    info = ModelInfo("bob", "sd1", "", steps=5, checkpoints=["/a.safetensors"])
    ready.model("bob").write_info(info)
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "ada: sd1, 512 pixels, not trained, from /base.safetensors",
        "bob: sd1, 512 pixels, 5 steps, from ",
        "  /a.safetensors",
    ]
    assert cli.main(["models", "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["ada", "bob"]


def test_no_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "--root", str(tmp_path)]) == 0
    assert "There are no models" in capsys.readouterr().out
    assert cli.main(["models", "--root", str(tmp_path), "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_the_workspace_of_an_extension_is_its_webui(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extension = tmp_path / "webui" / "extensions" / "us"
    extension.mkdir(parents=True)
    options = build_parser().parse_args(["models"])
    monkeypatch.chdir(extension)
    assert verbs.workspace_of(options).root == extension
    (tmp_path / "webui" / "models").mkdir()
    assert verbs.workspace_of(options).root == tmp_path / "webui"


def test_stop_and_send_and_watch(ready: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    job = launch(ready, "sample", SampleConfig(model="ada", prompts=["wait"]))
    assert cli.main(["send", "save"]) == 0
    assert cli.main(["send", "explode"]) == 2
    assert cli.main(["stop", "--after-epoch", job.run_id]) == 0
    assert cli.main(["stop"]) == 0
    assert cli.main(["watch"]) == 130
    captured = capsys.readouterr()
    assert f"Sent save to run {job.run_id}." in captured.out
    assert "no command 'explode'" in captured.err
    assert "Stopped at step 5." in captured.out
    sent = (job.folder / "commands.jsonl").read_text().splitlines()
    names = [json.loads(line)["command"] for line in sent]
    assert names == ["save", "stop_after_epoch", "stop"]
    job.wait()
    assert cli.main(["stop", job.run_id]) == 2
    assert "has ended already" in capsys.readouterr().err


def test_resume_goes_on_with_the_last_settings(
    ready: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig(model="ada", seed=7)
    seen: list[Any] = []

    def follow_nothing(workspace: Workspace, kind: str, config: Any, as_json: bool) -> int:
        seen.append((kind, to_dict(config), as_json))
        return 0

    from dreambooth_core.job.runs import Run, create_run_folder, write_run

    folder = create_run_folder(ready, "train")
    write_run(folder, Run(folder.name, "train", ready.root, config))
    monkeypatch.setattr(verbs, "_launch_and_follow", follow_nothing)
    assert cli.main(["resume", "ada"]) == 0
    assert seen == [("train", {**to_dict(config), "resume": True}, False)]


def test_the_demo_runs_its_steps_until_one_fails(
    ready: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def steps(workspace: Workspace) -> list[tuple[str, Any]]:
        orders = ("finish", "finish", "raise", "finish")
        return [("sample", SampleConfig(model="ada", prompts=[order])) for order in orders]

    monkeypatch.setattr(demo, "steps", steps)
    assert cli.main(["demo"]) == 1
    assert len(run_ids(ready)) == 3


def test_relative_loras_are_kept_absolute_and_names_stay(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(b"")
    for given, kept in (("mine.safetensors", str(tmp_path / "mine.safetensors")), ("ada", "ada")):
        config = BakeLoraConfig(name="x", checkpoint="base", lora=given)
        assert with_absolute_paths(config, tmp_path).lora == kept


def test_lora_settings_have_long_flags() -> None:
    words = ["train", "--model", "m", "--lora.enabled", "--lora.rank", "8", "--lora.dora"]
    lora = _config(words).lora
    assert (lora.enabled, lora.rank, lora.dora) == (True, 8, True)
    names = {name for flag in flags_of(TrainConfig) for name in flag.names}
    assert not names & {"rank", "alpha", "dora"}


def test_relative_folders_are_kept_absolute(ready: Workspace) -> None:
    assert cli.main(["sample", "--model", "ada", "--prompts", "finish", "--output", "out"]) == 0
    (run_id,) = run_ids(ready)
    config = read_run(ready.run_folder(run_id)).config
    assert config.output == str(ready.root / "out")


def test_create_says_which_checkpoint_it_takes(ready: Workspace) -> None:
    config = _config(["create", "--name", "x", "--source", "y", "--extract-ema"])
    assert config == CreateConfig(name="x", source="y", extract_ema=True)


@pytest.mark.skipif(sys.platform == "win32", reason="sends the signal as a terminal does on POSIX")
@pytest.mark.parametrize(("presses", "words"), [(1, "Stopped at step 5."), (2, "was killed")])
def test_ctrl_c_stops_and_a_second_one_kills(ready: Workspace, presses: int, words: str) -> None:
    # The second press must come before the stop is obeyed, so that worker ignores the first.
    worker = "tests.fake_worker" if presses == 1 else "tests.deaf_worker"
    code = (
        "import sys; from dreambooth_core.job import launcher;"
        f"launcher.WORKER_MODULE = {worker!r};"
        "from dreambooth_core.cli import main; sys.exit(main())"
    )
    words_given = ["sample", "--model", "ada", "--prompts", "wait", "--root", str(ready.root)]
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", code, *words_given],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    lines = [_read_until(process, "working: 1/2")]
    for _ in range(presses):
        process.send_signal(signal.SIGINT)
        lines.append(_read_until(process, "ing"))
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == (130 if presses == 1 else 1), rest
    assert "Stopping after this step" in lines[1]
    assert words in rest


def _read_until(process: subprocess.Popen[str], words: str) -> str:
    assert process.stdout is not None
    seen, end = "", time.monotonic() + 60
    while time.monotonic() < end:
        line = process.stdout.readline()
        assert line, seen
        seen += line
        if words in line:
            return line
    pytest.fail(seen)
