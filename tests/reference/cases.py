"""The synthetic models and what is asked of them. Between them they vary everything that pinhole must not assume."""

from dataclasses import dataclass, field

import recipes


@dataclass(frozen=True)
class Component:
    """One network: its class, the arguments of its configuration, and the sizes of its weights."""

    library: str
    class_name: str
    config: dict
    rules: list
    # Put before the names in the file. CLIP checkpoints have "text_model.", which transformers 5 no longer writes.
    prefix: str = ""


@dataclass(frozen=True)
class Request:
    """The arguments of one FluxPipeline call."""

    prompt: str
    width: int
    height: int
    steps: int
    seed: int
    max_sequence_length: int
    guidance_scale: float = 3.5
    true_cfg_scale: float = 1.0
    negative_prompt: str | None = None


@dataclass(frozen=True)
class Case:
    """A model with its scheduler and one request. `request` is None where there is only an autoencoder."""

    components: dict[str, Component]
    scheduler: dict = field(default_factory=dict)
    request: Request | None = None
    # The sigma of the single transformer forward that is recorded with all its intermediate results.
    forward_sigma: float = 0.0
    # Width and height of the picture that the encoder is given, and of the latents where no request makes them.
    encoder_size: tuple[int, int] = (88, 56)


# As published beside FLUX.1-dev and FLUX.1-schnell.
DEV_SCHEDULER = {
    "base_image_seq_len": 256,
    "base_shift": 0.5,
    "max_image_seq_len": 4096,
    "max_shift": 1.15,
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
}
SCHNELL_SCHEDULER = DEV_SCHEDULER | {"shift": 1.0, "use_dynamic_shifting": False}


def transformer(**config) -> Component:
    """A FLUX transformer."""
    config = {"patch_size": 1, "in_channels": 64} | config
    return Component("diffusers", "FluxTransformer2DModel", config, recipes.TRANSFORMER)


def clip(prefix: str = "", **config) -> Component:
    """A CLIP text encoder over the miniature's vocabulary."""
    config = {"vocab_size": 698, "max_position_embeddings": 77} | config
    return Component("transformers", "CLIPTextModel", config, recipes.CLIP, prefix)


def t5(**config) -> Component:
    """A T5 v1.1 encoder over the miniature's vocabulary."""
    fixed = {"vocab_size": 256, "feed_forward_proj": "gated-gelu", "is_encoder_decoder": False, "use_cache": False}
    fixed |= {"dropout_rate": 0.0, "pad_token_id": 0, "eos_token_id": 1}
    return Component("transformers", "T5EncoderModel", fixed | config, recipes.t5(config["d_kv"]))


def autoencoder(**config) -> Component:
    """An AutoencoderKL with a level for each of `block_out_channels`."""
    levels = len(config["block_out_channels"])
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels}
    return Component("diffusers", "AutoencoderKL", blocks | config, recipes.VAE)


CASES = {
    # FLUX.1-dev's kind: guidance embedded, sigmas shifted by size, CLIP configured the old way (eos_token_id 2), names
    # as in the published files. 13 x 9 image tokens and 37 text tokens.
    "dev": Case(
        components={
            "text_encoder": clip(
                prefix="text_model.",
                hidden_size=256,
                intermediate_size=512,
                num_hidden_layers=3,
                num_attention_heads=4,
                hidden_act="quick_gelu",
                projection_dim=256,
                bos_token_id=0,
                eos_token_id=2,
                pad_token_id=1,
            ),
            "text_encoder_2": t5(d_model=256, d_kv=64, num_heads=4, d_ff=512, num_layers=2),
            "transformer": transformer(
                num_layers=2,
                num_single_layers=2,
                num_attention_heads=2,
                attention_head_dim=128,
                axes_dims_rope=[16, 56, 56],
                joint_attention_dim=256,
                pooled_projection_dim=256,
                guidance_embeds=True,
            ),
            "vae": autoencoder(
                block_out_channels=[32, 64, 128, 128],
                layers_per_block=2,
                latent_channels=16,
                norm_num_groups=8,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
        },
        scheduler=DEV_SCHEDULER,
        # "##" holds the token 2: a reader that looks for eos_token_id literally would take the pooled vector there.
        request=Request(
            prompt="a large purple ring above a ##2 cross, two tiny moons on the left",
            width=208,
            height=144,
            steps=3,
            seed=42,
            max_sequence_length=37,
        ),
        forward_sigma=0.7,
    ),
    # FLUX.1-schnell's kind, with other sizes everywhere, widths that differ from one component to the next, true CFG and
    # a seed above 32 bits. 5 x 7 image tokens and 32 text tokens.
    "schnell": Case(
        components={
            "text_encoder": clip(
                hidden_size=512,
                intermediate_size=768,
                num_hidden_layers=2,
                num_attention_heads=8,
                hidden_act="gelu",
                projection_dim=512,
                bos_token_id=696,
                eos_token_id=697,
                pad_token_id=697,
            ),
            "text_encoder_2": t5(
                d_model=256,
                d_kv=64,
                num_heads=8,
                d_ff=768,
                num_layers=3,
                relative_attention_num_buckets=16,
                relative_attention_max_distance=24,
            ),
            "transformer": transformer(
                num_layers=1,
                num_single_layers=3,
                num_attention_heads=4,
                attention_head_dim=64,
                axes_dims_rope=[8, 28, 28],
                joint_attention_dim=256,
                pooled_projection_dim=512,
                guidance_embeds=False,
            ),
            "vae": autoencoder(
                block_out_channels=[32, 32, 64, 64],
                layers_per_block=1,
                latent_channels=16,
                norm_num_groups=4,
                scaling_factor=0.5737,
                shift_factor=-0.0388,
                use_quant_conv=True,
                use_post_quant_conv=True,
            ),
        },
        scheduler=SCHNELL_SCHEDULER,
        request=Request(
            prompt="a pink flower on a green background",
            negative_prompt="a black cross, the quick brown fox",
            true_cfg_scale=2.5,
            width=80,
            height=112,
            steps=4,
            seed=2**32 + 5,
            max_sequence_length=32,
            guidance_scale=0.0,
        ),
        forward_sigma=0.5,
    ),
    # What its weights' shapes and published values say: the files of other tools carry no settings. A T5 with more rows
    # than tokens and more heads than its width has room for, and a prompt that its tokenizer has to normalise. 7 x 5
    # image tokens and 29 text tokens.
    "loose": Case(
        components={
            "text_encoder": clip(
                hidden_size=256,
                intermediate_size=768,
                num_hidden_layers=2,
                num_attention_heads=4,
                hidden_act="quick_gelu",
                projection_dim=256,
                bos_token_id=0,
                eos_token_id=2,
                pad_token_id=1,
            ),
            "text_encoder_2": t5(d_model=256, d_kv=64, num_heads=6, d_ff=512, num_layers=2, vocab_size=160),
            "transformer": transformer(
                num_layers=1,
                num_single_layers=2,
                num_attention_heads=4,
                attention_head_dim=64,
                axes_dims_rope=[8, 28, 28],
                joint_attention_dim=256,
                pooled_projection_dim=256,
                guidance_embeds=False,
            ),
            "vae": autoencoder(
                block_out_channels=[64, 64, 128, 128],
                layers_per_block=1,
                latent_channels=16,
                norm_num_groups=32,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
            ),
        },
        scheduler=SCHNELL_SCHEDULER,
        request=Request(
            prompt="a \ufb01ne yellow \uff53\uff54\uff41\uff52 above \ufb01ve rings, the moon on the left",
            width=112,
            height=80,
            steps=3,
            seed=7,
            max_sequence_length=29,
            guidance_scale=0.0,
        ),
        forward_sigma=0.6,
    ),
    # An autoencoder with three levels, four latent channels, no attention and no shift.
    "odd_vae": Case(
        components={
            "vae": autoencoder(
                block_out_channels=[32, 64, 96],
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=16,
                scaling_factor=0.18215,
                use_quant_conv=False,
                use_post_quant_conv=True,
                mid_block_add_attention=False,
            ),
        },
        encoder_size=(60, 44),
    ),
}

# Noise: (seed, how many numbers). Fewer than 16 numbers, a tail that is no multiple of 16, and whole groups.
NOISE_SEEDS = [0, 42, 2**32 + 5, 2**63, 2**64 - 1]
NOISE_COUNTS = [5, 17, 64]
NOISE_LARGE = 262144
NOISE_STRIDE = 1021  # prime, so that every lane of the generator's groups is met

# Sigma schedules: name, scheduler configuration, and (steps, image tokens) pairs.
SCHEDULES = [
    ("dev", DEV_SCHEDULER, [(1, 117), (3, 117), (20, 256), (28, 1024), (50, 4096), (28, 6144), (8, 64)]),
    ("schnell", SCHNELL_SCHEDULER, [(1, 35), (4, 35), (4, 4096), (20, 64), (7, 256)]),
    ("static_shift", SCHNELL_SCHEDULER | {"shift": 3.0}, [(4, 256), (28, 4096)]),
]
