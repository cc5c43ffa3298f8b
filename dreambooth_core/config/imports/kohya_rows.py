"""kohya's settings (sd-scripts, and the page kohya_ss), and what each is here."""

from __future__ import annotations

from dreambooth_core.config.imports import kohya_learning as learning
from dreambooth_core.config.imports import kohya_readers as read
from dreambooth_core.config.imports.mapping import (
    Row,
    all_dropped,
    changed,
    dropped,
    revived,
    same,
    told,
    turned,
)

MACHINE = "It says how the program runs on that computer."
ALWAYS_BUCKETS = "Pictures always keep their shape here; Show plan lists the shapes."
MODEL = "What a model is, is read from its weights here."
SECRET = "Keys are not taken over."
NOT_HERE = "There is nothing like it here."
LORA_PARTS = "A LoRA has one rank and one alpha for all of its layers here, and no dropout."
ENDLESS = "Checkpoints are never deleted here."
HUB = "Nothing is sent to Hugging Face."
BY_PLAN = "Captions stand in files beside the pictures, or in their names."

LENGTH = (
    turned("epoch", "intervals.epochs", learning.plain_epochs),
    turned("max_train_epochs", "intervals.epochs", learning.epochs),
    turned("max_train_steps", "intervals.max_steps", learning.steps),
    turned("max_train_steps", "intervals.epochs", learning.no_epochs),
    turned("seed", "seed", learning.seed),
)

BATCH = (
    changed(
        "train_batch_size",
        "batch.batch_size",
        "Here it counts instance images alone; class images come with them.",
    ),
    same("gradient_accumulation_steps", "batch.gradient_accumulation_steps"),
    same("gradient_checkpointing", "batch.gradient_checkpointing"),
    same("max_grad_norm", "batch.max_grad_norm"),
)

RATES = (
    turned("learning_rate", "learning_rate.unet", learning.shared_rate(of_lora=False)),
    turned(
        "learning_rate",
        "learning_rate.text_encoder",
        learning.shared_rate("learning_rate_te", "learning_rate_te1", of_lora=False),
    ),
    turned(
        "learning_rate", "lora.unet_learning_rate", learning.shared_rate("unet_lr", of_lora=True)
    ),
    turned(
        "learning_rate",
        "lora.text_encoder_learning_rate",
        learning.shared_rate("text_encoder_lr", of_lora=True),
    ),
    turned("learning_rate_te", "learning_rate.text_encoder", learning.te_rate),
    turned("learning_rate_te1", "learning_rate.text_encoder", learning.te_rate),
    dropped("learning_rate_te2", "Both text encoders share one rate here."),
    turned("unet_lr", "lora.unet_learning_rate", learning.unet_rate),
    turned("text_encoder_lr", "lora.text_encoder_learning_rate", learning.te_rate),
    turned("text_encoder_lr", "text_encoder.train_ratio", learning.te_ratio_of_rate),
    turned("learning_rate_te", "text_encoder.train_ratio", learning.te_ratio_of_rate),
    turned("lr_scheduler", "learning_rate.schedule", learning.schedule),
    turned("lr_warmup", "learning_rate.warmup_steps", learning.warmup_percent),
    turned("lr_warmup_steps", "learning_rate.warmup_steps", learning.warmup),
    same("lr_scheduler_num_cycles", "learning_rate.cycles"),
    same("lr_scheduler_power", "learning_rate.power"),
    same("lr_scheduler_min_lr_ratio", "learning_rate.min_factor"),
    turned("lr_decay_steps", "learning_rate.decay_share", learning.decay_share),
    dropped("lr_scheduler_args", NOT_HERE),
    dropped("lr_scheduler_type", "Schedules of other packages cannot be used here."),
    dropped("lr_scheduler_timescale", NOT_HERE),
)

OPTIMIZER = (
    turned("optimizer", "optimizer.name", learning.optimizer),
    turned("optimizer", "optimizer.beta2", learning.beta2),
    turned("optimizer", "optimizer.scale_parameter", learning.scaled_steps),
    turned("optimizer_type", "optimizer.name", learning.optimizer),
    turned("optimizer_type", "optimizer.scale_parameter", learning.scaled_steps),
    turned("optimizer_type", "optimizer.beta2", learning.beta2),
    turned("optimizer_args", "optimizer.weight_decay", learning.argument("weight_decay")),
    turned(
        "optimizer_args", "optimizer.text_encoder_weight_decay", learning.argument("weight_decay")
    ),
    turned("optimizer_args", "optimizer.beta1", learning.argument("betas", 0)),
    turned("optimizer_args", "optimizer.beta2", learning.argument("betas", 1)),
    turned("optimizer_args", "optimizer.epsilon", learning.argument("eps")),
    turned("optimizer_args", "optimizer.scale_parameter", learning.argument("scale_parameter")),
    turned("optimizer_args", "optimizer.d0", learning.argument("d0")),
    turned("optimizer_args", "optimizer.d_coef", learning.argument("d_coef")),
    turned("optimizer_args", "optimizer.bias_correction", learning.argument("use_bias_correction")),
    turned("optimizer_args", "optimizer.safeguard_warmup", learning.argument("safeguard_warmup")),
    turned("optimizer_args", "optimizer.momentum", learning.argument("momentum")),
    dropped("use_8bit_adam", "The optimizer is named elsewhere in newer files."),
    dropped("use_lion_optimizer", "The optimizer is named elsewhere in newer files."),
    dropped("fused_backward_pass", NOT_HERE),
    dropped("fused_optimizer_groups", NOT_HERE),
    dropped("optimizer_schedulefree_wrapper", NOT_HERE),
    dropped("schedulefree_wrapper_args", NOT_HERE),
)

NETWORKS = (
    turned("stop_text_encoder_training", "text_encoder.train_ratio", learning.te_stop),
    turned("stop_text_encoder_training_pct", "text_encoder.train_ratio", learning.te_stop),
    turned("train_text_encoder", "text_encoder.train_ratio", learning.train_te),
    turned("network_train_unet_only", "text_encoder.train_ratio", learning.off_leaves_it),
    turned("network_train_text_encoder_only", "unet.train", learning.without_unet),
    turned("clip_skip", "text_encoder.clip_skip", read.clip_skip),
    dropped("block_lr", LORA_PARTS),
)

LORA = (
    turned("network_module", "lora.enabled", learning.lora),
    turned("LoRA_type", "lora.enabled", learning.lora),
    turned("network_dim", "lora.enabled", learning.is_true),
    same("network_dim", "lora.rank"),
    same("network_alpha", "lora.alpha"),
    same("conv_dim", "lora.conv_rank"),
    same("conv_alpha", "lora.conv_alpha"),
    turned("network_args", "lora.conv_rank", learning.argument("conv_dim")),
    turned("network_args", "lora.conv_alpha", learning.argument("conv_alpha")),
    dropped("network_dropout", LORA_PARTS),
    dropped("rank_dropout", LORA_PARTS),
    dropped("module_dropout", LORA_PARTS),
    dropped("scale_weight_norms", LORA_PARTS),
    dropped("network_weights", "Here a LoRA goes on from the model's training states."),
    dropped("lora_network_weights", "Here a LoRA goes on from the model's training states."),
    dropped("dim_from_weights", LORA_PARTS),
    dropped("base_weights", "Bake a LoRA into the checkpoint first."),
    dropped("base_weights_multiplier", "Bake a LoRA into the checkpoint first."),
    dropped("training_comment", "What a file says of itself is written by this program."),
    *all_dropped(
        LORA_PARTS,
        "block_alphas block_dims block_lr_zero_threshold conv_block_alphas conv_block_dims"
        " down_lr_weight mid_lr_weight up_lr_weight decompose_both factor use_cp unit"
        " train_on_input use_scalar use_tucker constrain rescaled bypass_mode full_matrix"
        " dora_wd rank_dropout_scale train_norm LyCORIS_preset",
    ),
)

LOSS = (
    revived(
        "prior_loss_weight",
        "loss.prior_loss_weight",
        "For whole SDXL models it was not read there.",
        before=read.prior_weight_there,
    ),
    turned("noise_offset", "loss.offset_noise", read.offset),
    same("min_snr_gamma", "loss.min_snr_gamma"),
    turned("multires_noise_iterations", "loss.multires_noise_iterations", read.multires),
    same("multires_noise_discount", "loss.multires_noise_discount"),
    same("ip_noise_gamma", "loss.input_perturbation"),
    same("debiased_estimation_loss", "loss.debiased_estimation"),
    turned("loss_type", "loss.loss_type", read.loss_type),
    turned("huber_c", "loss.huber_delta", read.of_huber),
    turned("huber_schedule", "loss.huber_schedule", read.of_huber),
    dropped("huber_scale", NOT_HERE),
    same("zero_terminal_snr", "loss.zero_terminal_snr"),
    same("min_timestep", "loss.min_timestep"),
    turned("max_timestep", "loss.max_timestep", read.last_timestep),
    turned("masked_loss", "images.masks", read.masks),
    turned("alpha_mask", "images.masks", read.alpha),
    turned("alpha_mask", "loss.unmasked_weight", read.unmasked),
    dropped("noise_offset_type", "It is seen to with the noise settings."),
    dropped("noise_offset_random_strength", NOT_HERE),
    dropped("adaptive_noise_scale", NOT_HERE),
    dropped("perlin_noise", NOT_HERE),
    dropped("ip_noise_gamma_random_strength", NOT_HERE),
    dropped("scale_v_pred_loss_like_noise_pred", NOT_HERE),
    dropped("v_pred_like_loss", NOT_HERE),
    dropped("weighted_captions", "Emphasis in captions is read as the letters it is made of."),
)

PRECISION = (
    turned("mixed_precision", "precision.mixed_precision", read.precision),
    turned("full_bf16", "precision.weights", read.bf16_weights),
    dropped("full_fp16", "Weights in fp16 lose small steps: here they stay in 32 bits."),
    turned("xformers", "precision.attention", read.attention),
    turned("sdpa", "precision.attention", read.attention_flag),
    turned("mem_eff_attn", "precision.attention", read.attention_flag),
    turned("cache_latents", "images.cache_latents", read.cached),
    turned("cache_latents_to_disk", "images.cache_latents", read.on_disk),
    dropped("no_half_vae", "The VAE always works in 32 bits here."),
    dropped("sdxl_no_half_vae", "The VAE always works in 32 bits here."),
    dropped("vae_batch_size", "The VAE takes one picture at a time."),
    dropped("fp8_base", NOT_HERE),
    dropped("fp8_base_unet", NOT_HERE),
    dropped("lowram", NOT_HERE),
    dropped("highvram", NOT_HERE),
)

PICTURES = (
    turned("max_resolution", "images.resolution", read.resolution),
    turned("resolution", "images.resolution", read.resolution),
    same("flip_aug", "images.horizontal_flip"),
    turned("random_crop", "images.crop", read.crop),
    dropped("enable_bucket", ALWAYS_BUCKETS),
    dropped("min_bucket_reso", ALWAYS_BUCKETS),
    dropped("max_bucket_reso", ALWAYS_BUCKETS),
    dropped("bucket_reso_steps", ALWAYS_BUCKETS),
    dropped("bucket_no_upscale", ALWAYS_BUCKETS),
    dropped("color_aug", NOT_HERE),
    dropped("face_crop_aug_range", NOT_HERE),
    dropped("resize_interpolation", NOT_HERE),
    dropped("skip_cache_check", "What is kept is always checked here."),
)

CAPTIONS = (
    same("shuffle_caption", "captions.shuffle_tags"),
    same("keep_tokens", "captions.keep_tags"),
    same("caption_dropout_rate", "captions.dropout"),
    turned("max_token_length", "captions.max_token_length", read.token_length),
    turned("no_token_padding", "captions.pad_tokens", read.inverted),
    dropped("caption_extension", "Captions are the .txt file beside a picture, else .caption."),
    dropped("caption_extention", "Captions are the .txt file beside a picture, else .caption."),
    dropped("caption_dropout_every_n_epochs", NOT_HERE),
    dropped("caption_tag_dropout_rate", NOT_HERE),
    dropped("caption_separator", "Tags are the parts between commas."),
    dropped("secondary_separator", "Tags are the parts between commas."),
    dropped("keep_tokens_separator", "Keep first tags is a number here."),
    dropped("caption_prefix", "Write it into the instance prompt before [filewords]."),
    dropped("caption_suffix", "Write it into the instance prompt after [filewords]."),
    dropped("enable_wildcard", "Captions are read as they stand."),
    dropped("token_warmup_min", NOT_HERE),
    dropped("token_warmup_step", NOT_HERE),
    dropped("in_json", BY_PLAN),
    dropped("cache_info", "Pictures are read anew."),
)

SAVING = (
    same("save_every_n_epochs", "saving.save_every_epochs"),
    same("save_every_n_steps", "saving.save_every_steps"),
    turned("save_precision", "saving.dtype", read.dtype),
    turned("output_name", "saving.name", read.file_name),
    dropped("save_model_as", "Files are .safetensors here."),
    dropped("use_safetensors", "Files are .safetensors here."),
    dropped("save_n_epoch_ratio", "Give the number of epochs between two."),
    dropped("save_last_n_epochs", ENDLESS),
    dropped("save_last_n_steps", ENDLESS),
    dropped("save_last_n_epochs_state", "See Training states to keep."),
    dropped("save_last_n_steps_state", "See Training states to keep."),
    dropped("save_state", "A state to go on from is written at the end and when stopped."),
    dropped("save_state_on_train_end", "A state to go on from is always written at the end."),
    dropped("no_metadata", "Files always say what they were made with."),
)

PREVIEWS = (
    same("sample_every_n_epochs", "previews.every_epochs"),
    same("sample_every_n_steps", "previews.every_steps"),
    turned("sample_sampler", "previews.sampler", read.sampler),
    turned("sample_prompts", "previews.prompts", read.prompts),
    dropped("sample_at_first", "Press Sample before training."),
)

NO_SETTINGS = (
    told("pretrained_model_name_or_path", "Choose the checkpoint on the Create tab."),
    told("vae", "A VAE is chosen when the model is made, on Create."),
    told("train_data_dir", "The pictures stand with the concepts below."),
    told("reg_data_dir", "The class images stand with the concepts below."),
    told("dataset_config", "The pictures stand in another file. Import that one too."),
    told("datasets", "The pictures stand with the concepts below.", hidden=True),
    told("general", "Its settings are those of every folder.", hidden=True),
    told("sdxl", MODEL),
    told("sdxl_checkbox", MODEL),
    told("model_type", MODEL),
    told("v2", MODEL),
    told("v_parameterization", MODEL),
    told("train_inpainting", MODEL),
    told("huggingface_token", SECRET, hidden=True),
    told("wandb_api_key", SECRET, hidden=True),
    told("additional_parameters", "Look through it: it is not read.", hidden=True),
    *all_dropped(
        MACHINE,
        "num_cpu_threads_per_process max_data_loader_n_workers persistent_data_loader_workers"
        " dynamo_backend dynamo_mode dynamo_use_fullgraph dynamo_use_dynamic num_processes"
        " num_machines multi_gpu gpu_ids main_process_port extra_accelerate_launch_args"
        " accelerate_extra_args torch_compile ddp_timeout ddp_gradient_as_bucket_view"
        " ddp_static_graph disable_mmap_load_safetensors output_dir logging_dir log_with"
        " log_prefix log_tracker_name log_tracker_config log_config wandb_run_name model_list"
        " tokenizer_cache_dir console_log_level debug_dataset config_file output_config resume"
        " use_shell save_as_bool text_encoder_batch_size deepspeed config_dir",
    ),
    *all_dropped(
        HUB,
        "huggingface_repo_id huggingface_repo_type huggingface_path_in_repo async_upload"
        " huggingface_repo_visibility save_state_to_huggingface resume_from_huggingface",
    ),
    *all_dropped(
        "What a file says of itself is written by this program.",
        "metadata_author metadata_description metadata_license metadata_tags metadata_title",
    ),
    *all_dropped(
        NOT_HERE,
        "conditioning_data_dir dataset_class network_multiplier validation_seed"
        " validation_split validate_every_n_steps validate_every_n_epochs"
        " max_validation_steps skip_until_initial_step initial_epoch initial_step"
        " cpu_offload_checkpointing cache_text_encoder_outputs"
        " cache_text_encoder_outputs_to_disk sdxl_cache_text_encoder_outputs"
        " diffusers_xformers",
    ),
    *all_dropped(
        NOT_HERE,
        "lowvram mem_eff_save loraplus_lr_ratio loraplus_text_encoder_lr_ratio"
        " loraplus_unet_lr_ratio conv_dims conv_alphas train_lora_ggpo ggpo_beta ggpo_sigma"
        " enable_all_linear split_qkv",
    ),
    *all_dropped(
        "It prepared the files that the program was to read.",
        "full_path use_latent_files create_buckets create_caption caption_metadata_filename"
        " generate_caption_database generate_image_buckets image_folder latent_metadata_filename"
        " train_dir batch_size dataset_repeats file_path",
    ),
)

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
)
