"""The stages of the build, from a VAE and a text encoder on disk to a file that loads."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from transformers import CLIPTokenizer

from dreambooth_core.checkpoint.clip_tokenizer import write_tokenizer
from dreambooth_core.world.build import __main__ as build
from dreambooth_core.world.build import denoiser, gate, language
from dreambooth_core.world.build.networks import new_text_encoder, new_vae


def _run(monkeypatch: pytest.MonkeyPatch, stage: str, out: Path) -> None:
    monkeypatch.setattr("sys.argv", ["build", stage, "--out", str(out)])
    build.main()


def test_the_stages_hand_over_what_they_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(language, "CAPTIONS_FOR_WORDS", 3000)
    monkeypatch.setattr(build, "encode_scenes", functools.partial(denoiser.encode_scenes, count=50))
    monkeypatch.setattr(
        build, "train_denoiser", functools.partial(denoiser.train_denoiser, steps=1, batch_size=2)
    )
    write_tokenizer(tmp_path / "tokenizer")
    words = language.Words(CLIPTokenizer.from_pretrained(tmp_path / "tokenizer"))
    torch.save(new_vae().state_dict(), tmp_path / "vae.pt")
    torch.save(new_text_encoder(len(words.token_ids), words.end).state_dict(), tmp_path / "text.pt")
    for stage in ("latents", "denoiser", "export"):
        _run(monkeypatch, stage, tmp_path)
    assert "world.safetensors: 23." in capsys.readouterr().out
    components = gate.load_checkpoint(tmp_path / "world.safetensors")
    table = components.text_encoder.text_model.embeddings.token_embedding.weight
    trained = torch.load(tmp_path / "denoiser.pt", weights_only=True)["text"]
    rows = trained["text_model.embeddings.token_embedding.weight"]
    assert torch.equal(table[words.token_ids].half(), rows.half())


def test_an_unknown_stage_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        _run(monkeypatch, "judge", tmp_path)
    assert "autoencoder" in capsys.readouterr().err
