"""The settings of the abandoned extension (`db_config.json`, 2022 to 2025), and what each is here.

Its own faults are facts that were read in its last version; the words say them.
"""

from __future__ import annotations

from dreambooth_core.config.imports import d8ahazard_readers as read
from dreambooth_core.config.imports.mapping import (
    Row,
    changed,
    dropped,
    revived,
    same,
    told,
    turned,
)
from dreambooth_core.config.imports.report import CHANGED, TRANSLATED

ONE_GROUP = "All weights shared one group there, so that this was not read."
BY_FILE = "Which files a run writes is told by other settings; a LoRA was written at every save."
DEAD_SWITCH = "It did nothing there."
BOOKKEEPING = "It says where the model was, not how to train."
ALPHA = "Alpha is the rank, so that the LoRA acts as it was trained."
DISPLAY = "It changed only what was shown."

LENGTH = (
    turned("num_train_epochs", "intervals.epochs", read.epochs_unless_steps),
    turned("max_train_steps", "intervals.max_steps", read.max_steps),
    same("epoch_pause_frequency", "intervals.pause_every_epochs"),
    same("epoch_pause_time", "intervals.pause_seconds"),
    turned("seed", "seed", read.seed),
    dropped("deterministic", "Here the same seed gives the same model on the same machine anyway."),
    dropped("shuffle_after_epoch", "Every epoch has an order of its own here."),
)

BATCH = (
    same("train_batch_size", "batch.batch_size"),
    changed(
        "sample_batch_size",
        "batch.class_batch_size",
        "There it counted for making class images alone; here also for training on them.",
        before=lambda value, old: 0,
    ),
    same("gradient_accumulation_steps", "batch.gradient_accumulation_steps"),
    same("gradient_checkpointing", "batch.gradient_checkpointing"),
    same("gradient_set_to_none", "batch.set_to_none"),
    same("max_grad_norm", "batch.max_grad_norm"),
)

RATES = (
    same("learning_rate", "learning_rate.unet"),
    revived(
        "txt_learning_rate",
        "learning_rate.text_encoder",
        "The text encoder was trained with the UNet's rate.",
        before=read.unet_rate,
    ),
    same("lora_learning_rate", "lora.unet_learning_rate"),
    revived(
        "lora_txt_learning_rate",
        "lora.text_encoder_learning_rate",
        "The text encoder was trained with the UNet's rate.",
        before=read.unet_rate,
    ),
    turned("lr_scheduler", "learning_rate.schedule", read.schedule),
    Row(
        "lr_warmup_steps",
        "learning_rate.warmup_steps",
        CHANGED,
        "There they counted images, here optimizer steps.",
        read.warmup,
        read.warmup_in_images,
    ),
    turned("learning_rate_min", "learning_rate.min_factor", read.min_factor),
    turned("min_learning_rate", "learning_rate.min_factor", read.min_factor),
    turned("lr_cycles", "learning_rate.cycles", read.cycles),
    turned("lr_scale_pos", "learning_rate.cycles", read.cycles_of_scale),
    same("lr_power", "learning_rate.power"),
    dropped("lr_factor", "The schedules that read it are constant here from their first step."),
    dropped("scale_lr", "The rate here is what is written, whatever the batch."),
)

OPTIMIZER = (
    turned("optimizer", "optimizer.name", read.optimizer),
    turned("optimizer", "optimizer.beta2", read.beta2),
    turned("optimizer", "optimizer.scale_parameter", read.scaled_steps),
    turned("use_8bit_adam", "optimizer.name", read.eight_bit),
    turned("use_8bit_adam", "optimizer.beta2", read.beta2),
    same("weight_decay", "optimizer.weight_decay"),
    same("adamw_weight_decay", "optimizer.weight_decay"),
    same("adam_weight_decay", "optimizer.weight_decay"),
    revived(
        "tenc_weight_decay",
        "optimizer.text_encoder_weight_decay",
        ONE_GROUP,
        before=lambda value, old: old.number("weight_decay", 0.01),
    ),
    revived(
        "tenc_grad_clip_norm",
        "optimizer.text_encoder_max_grad_norm",
        ONE_GROUP,
        before=lambda value, old: 0.0,
    ),
    same("adam_beta1", "optimizer.beta1"),
    same("adam_beta2", "optimizer.beta2"),
    same("adam_epsilon", "optimizer.epsilon"),
    turned("adaptation_beta1", "optimizer.beta1", read.of_adaptation),
    turned("adaptation_beta2", "optimizer.beta2", read.of_adaptation),
    turned("adaptation_d0", "optimizer.d0", read.of_adaptation),
    turned("adaptation_eps", "optimizer.epsilon", read.of_adaptation),
    dropped("adaptation_growth_rate", "There is no limit of D-Adaptation's growth here."),
    dropped("adaptation_momentum", "Only D-Adaptation of SGD read it, which is not here."),
)

NETWORKS = (
    Row(
        "stop_text_encoder",
        "text_encoder.train_ratio",
        TRANSLATED,
        "",
        read.text_encoder_ratio,
        read.text_encoder_ratio_there,
    ),
    turned("train_text_encoder", "text_encoder.train_ratio", read.text_encoder_switch),
    turned("train_text_encoder_steps", "text_encoder.train_ratio", read.text_encoder_steps),
    same("clip_skip", "text_encoder.clip_skip"),
    revived(
        "freeze_clip_normalization",
        "text_encoder.freeze_norm_layers",
        "No layer was frozen.",
        before=lambda value, old: False,
    ),
    same("train_unet", "unet.train"),
    same("freeze_spectral_norm", "unet.freeze_spectral_norm"),
    dropped("train_unfrozen", "It only chose a .yaml file; all layers are trained here."),
    dropped("unfreeze_model", "It only chose a .yaml file; all layers are trained here."),
    dropped("train_imagic", "There is no Imagic here."),
)

LORA = (
    same("use_lora", "lora.enabled"),
    same("lora_unet_rank", "lora.rank"),
    turned("lora_unet_rank", "lora.alpha", read.as_number_of, ALPHA),
    same("lora_rank", "lora.rank"),
    turned("lora_rank", "lora.alpha", read.as_number_of, ALPHA),
    same("lora_txt_rank", "lora.text_encoder_rank"),
    turned("lora_txt_rank", "lora.text_encoder_alpha", read.as_number_of, ALPHA),
    Row(
        "lora_weight",
        "",
        CHANGED,
        "There it was written as alpha, so that the WebUI used the LoRA far too weakly. Here alpha"
        " is the rank; a strength is written into the prompt, as in <lora:name:0.8>.",
    ),
    turned("use_lora_extended", "lora.conv_rank", read.conv_rank),
    dropped("lora_txt_weight", "The strength is written into the prompt, as in <lora:name:0.8>."),
    dropped("lora_model_name", "Files of there have a wrong alpha: begin a LoRA anew."),
    dropped("lora_use_buggy_requires_grad", "It repeated a fault of an older version."),
    dropped("half_lora", "LoRA files are in the saved number format."),
)

LOSS = (
    revived(
        "prior_loss_weight",
        "loss.prior_loss_weight",
        "Class images counted fully with batch size 1, and not at all with larger ones.",
        before=read.prior_weight_there,
    ),
    revived(
        "prior_loss_scale",
        "loss.prior_loss_scale",
        "It was not used for what was learned.",
        before=lambda value, old: False,
    ),
    turned("prior_loss_target", "loss.prior_loss_target", read.target_epochs),
    same("prior_loss_weight_min", "loss.prior_loss_weight_min"),
    changed(
        "use_dream",
        "loss.dream",
        "There only half of it was done: the picture was not made noisy anew.",
    ),
    same("dream_detail_preservation", "loss.dream_detail_preservation"),
    changed(
        "offset_noise",
        "loss.offset_noise",
        "It is as often negative as positive, so the sign means nothing.",
        read.without_sign,
    ),
    revived(
        "min_snr_gamma",
        "loss.min_snr_gamma",
        "It was written into the file's metadata and never used.",
        before=lambda value, old: 0.0,
    ),
    dropped("input_pertubation", DEAD_SWITCH),
    dropped("noise_scheduler", "Noise is that of DDPM here, which the others only draw with."),
    dropped("deis_train_scheduler", "Noise is that of DDPM here."),
    dropped("split_loss", DISPLAY),
    told("with_prior_preservation", "The number of class images says so."),
)

PRECISION = (
    same("mixed_precision", "precision.mixed_precision"),
    Row(
        "full_mixed_precision",
        "precision.weights",
        CHANGED,
        "There the weights themselves were in 16 bits, which loses small steps.",
        read.half_weights,
        read.half_weights_there,
    ),
    turned("attention", "precision.attention", read.attention),
    same("tf32_enable", "precision.tf32"),
    turned("use_cpu", "precision.device", lambda value, old: "cpu" if value else "auto"),
    turned("cache_latents", "images.cache_latents", read.uncached),
    turned("not_cache_latents", "images.cache_latents", read.inverted_cache),
    same("use_ema", "ema.enabled"),
    changed(
        "use_ema",
        "ema.decay",
        "There it was 0.9999 from the first step on and hardly moved in a short run; here it suits"
        " runs of hundreds of steps.",
        read.ema_decay,
        before=read.ema_decay_there,
    ),
    dropped("ema_predict", DEAD_SWITCH),
)

PICTURES = (
    same("resolution", "images.resolution"),
    same("hflip", "images.horizontal_flip"),
    turned("center_crop", "images.crop", read.crop),
    same("dynamic_img_norm", "images.dynamic_normalization"),
)

CAPTIONS = (
    same("shuffle_tags", "captions.shuffle_tags"),
    turned("shuffle_tags", "captions.keep_tags", read.first_tag, "The first tag stays first."),
    changed(
        "strict_tokens",
        "captions.strict_tokens",
        "There the letters of a word's end mark were read too; here they are not.",
    ),
    same("pad_tokens", "captions.pad_tokens"),
    revived(
        "max_token_length",
        "captions.max_token_length",
        "Captions were always cut off at 75 tokens.",
        before=lambda value, old: 75,
    ),
)

SAVING = (
    turned("save_embedding_every", "saving.save_every_epochs", read.save_every),
    turned("save_embedding_every", "saving.save_every_steps", read.every_steps),
    told("save_ckpt_during", "It is seen to with save_embedding_every."),
    same("save_ckpt_after", "saving.save_at_end"),
    same("save_ckpt_cancel", "saving.save_on_stop"),
    turned("save_state_during", "saving.state_every_epochs", read.state_every),
    dropped("save_state_after", "A state to go on from is always written at the end."),
    dropped("save_state_cancel", "A state to go on from is always written when stopped."),
    dropped("save_lora_during", BY_FILE),
    dropped("save_lora_after", BY_FILE),
    dropped("save_lora_cancel", BY_FILE),
    dropped("save_lora_for_extra_net", "LoRA files have the WebUI's names here."),
    dropped("save_safetensors", "Files are .safetensors here."),
    dropped("save_use_global_counts", "Files are numbered by the steps of all runs."),
    told("save_use_epochs", "It is seen to with the frequencies."),
    turned("save_ema", "saving.ema_keys", read.with_ema_only),
    changed(
        "infer_ema",
        "saving.use_ema",
        "It puts the average in the place of the weights, here for previews too.",
    ),
    changed("infer_ema", "previews.use_ema", "Previews draw what is saved."),
    turned("half_model", "saving.dtype", read.saved_dtype),
    turned("custom_model_name", "saving.name", lambda value, old: read.plain_name(str(value))),
    turned("use_subdir", "saving.subfolder", read.subfolder),
)

PREVIEWS = (
    turned("save_preview_every", "previews.every_epochs", read.every),
    turned("save_preview_every", "previews.every_steps", read.every_steps),
    turned("sanity_prompt", "previews.prompts", read.one_prompt),
    turned("sanity_seed", "previews.seed", read.seed),
    turned("scheduler", "previews.sampler", read.sampler),
    dropped("graph_smoothing", DISPLAY),
    dropped("disable_logging", DISPLAY),
    dropped("tomesd", "It sped previews up at the cost of their detail."),
    dropped("enable_tomesd", "It sped previews up at the cost of their detail."),
)

NO_SETTINGS = (
    told("concepts_list", "The concepts stand below.", hidden=True),
    told("concepts_path", "It names or holds a list of concepts.", hidden=True),
    told("use_concepts", "The concepts stand below."),
    told("disable_class_matching", "It is seen to with the concepts' class images."),
    told("save_class_txt", "Class images keep their prompt here."),
    told("src", "The checkpoint that the model was made from: choose it on the Create tab."),
    told("model_name", "The model's name there."),
    told("name", "The model's name there."),
    told("model_dir", BOOKKEEPING),
    told("model_path", BOOKKEEPING),
    told("output_dir", BOOKKEEPING),
    told("working_dir", BOOKKEEPING),
    told("pretrained_model_name_or_path", BOOKKEEPING),
    told("shared_diffusers_path", BOOKKEEPING),
    told("use_shared_src", BOOKKEEPING),
    told("model_type", "What a model is, is read from its weights here."),
    told("v2", "What a model is, is read from its weights here."),
    told("has_ema", "What a checkpoint holds is read from it here."),
    told("pretrained_vae_name_or_path", "A VAE is chosen when the model is made, on Create."),
    told("snapshot", "Import the model's folder to make a model of its weights."),
    told("revision", "How many images the model had seen."),
    told("total_steps", "How many steps the model had been trained."),
    told("lifetime_revision", "It was not used there."),
    told("initial_revision", "It was not used there."),
    told("epoch", "How many epochs the model had been trained."),
    told("epochs", "What the page showed of the epochs."),
    told("train_conditioning", "It belonged to an experiment of January 2023."),
    told("loaded", "Whether the file had been read."),
    told("api_key", "Keys are not taken over.", hidden=True),
)

FIRST_DAYS = (
    same("learn_rate", "learning_rate.unet"),
    turned("steps", "intervals.max_steps", read.max_steps),
    turned("steps", "intervals.epochs", read.no_epochs),
    same("batch_size", "batch.batch_size"),
    same("class_batch_size", "batch.class_batch_size"),
    same("grad_acc_steps", "batch.gradient_accumulation_steps"),
    same("warmup_steps", "learning_rate.warmup_steps"),
    turned("use_adam", "optimizer.name", read.eight_bit),
    turned("use_adam", "optimizer.beta2", read.beta2),
)
"""What settings were called in the first week of November 2022."""

ROWS: tuple[Row, ...] = (
    *LENGTH,
    *BATCH,
    *RATES,
    *OPTIMIZER,
    *NETWORKS,
    *LORA,
    *LOSS,
    *PRECISION,
    *PICTURES,
    *CAPTIONS,
    *SAVING,
    *PREVIEWS,
    *NO_SETTINGS,
    *FIRST_DAYS,
)
