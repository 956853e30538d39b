"""Records what diffusers' WanPipeline and WanImageToVideoPipeline draw with small synthetic models: one network and two experts, from a
text and from pictures.

    python wan.py            writes wan
    python wan.py --check    compares with the committed file instead of writing it

The text encoder's tokenizer is the miniature's.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial

import diffusers
import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, UniPCMultistepScheduler
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

import cases
import generate
import given
import goldenfile
import health
import models
import recipes
from cases import Component
from goldenfile import nmse
from image_prompts import VISION
from qwen_image import VAE
from recipes import NORM, Around, Gain

AFTER_ACTIVATION = Gain(1.6)
TRANSFORMER = [
    # Most tokens of a prompt are padding, all alike: what looks at them has to look closely to tell the others.
    (r"attn2\.norm_(added_)?[qk]\.weight$", Around(0.3, 1.6)),
    (r"\.norm_(added_)?[qk]\.weight$", Around(0.3, 1.2)),
    (r"norm\d\.weight$", NORM),
    (r"scale_shift_table$", Around(0.4)),
    (r"pos_embed$", Around(0.5)),
    (r"time_proj\.bias$", Around(0.3)),
    (r"time_proj\.weight$", Gain(0.35)),
    (r"(to|add)_[qk](_proj)?\.bias$", Around(0.8)),
    (r"\.bias$", Around(0.2)),
    (r"time_embedder\.linear_1\.weight$", Gain(1.4)),
    (r"(linear_2|net\.2)\.weight$", AFTER_ACTIVATION),
    (r"to_out\.0\.weight$", Gain(2.0)),
    (r"\.weight$", Gain(1.0)),
]
UMT5 = [
    (r"^shared\.weight$", Around(1.7)),
    (r"relative_attention_bias\.weight$", Around(1.5)),
    (r"norm\.weight$", NORM),
    (r"\.q\.weight$", Gain(round(1.4 / 16**0.5, 4))),
    (r"\.weight$", Gain(1.0)),
]
# Heads as wide as those of the published models, so that shapes alone tell the sizes.
SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 128,
    "ffn_dim": 320,
    "num_layers": 2,
    "text_dim": 96,
    "freq_dim": 64,
}
# Vision: pictures of 4 x 4 patches, and CLIP's own token.
SEEN = 17


def transformer(**config) -> Component:
    return Component("diffusers", "WanTransformer3DModel", SIZES | {"in_channels": 16, "out_channels": 16} | config, TRANSFORMER)


LOOKING = {"in_channels": 36, "image_dim": 64, "added_kv_proj_dim": 256}
COMPONENTS = {
    "text_encoder": Component(
        "transformers",
        "UMT5EncoderModel",
        {
            "vocab_size": 256,
            "d_model": 96,
            "d_kv": 16,
            "d_ff": 160,
            "num_heads": 4,
            "num_layers": 3,
            "feed_forward_proj": "gated-gelu",
            "is_encoder_decoder": False,
            "use_cache": False,
            "dropout_rate": 0.0,
            "pad_token_id": 0,
            "eos_token_id": 1,
        },
        UMT5,
    ),
    "transformer": transformer(),
    "transformer_2": transformer(),
    # Other shapes of heads: of 24 numbers each axis has 8, of 40 it has 16, 12 and 12.
    "narrow": transformer(num_attention_heads=5, attention_head_dim=24, ffn_dim=136),
    "i2v": transformer(in_channels=36),
    "i2v_2": transformer(in_channels=36),
    "looking": transformer(**LOOKING),
    "first_last": transformer(**LOOKING, pos_embed_seq_len=2 * SEEN),
    "image_encoder": Component(
        "transformers",
        "CLIPVisionModel",
        {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "image_size": 32,
            "patch_size": 8,
            "hidden_act": "gelu",
        },
        VISION,
        prefix="vision_model.",
    ),
    "vae": Component(
        "diffusers",
        "AutoencoderKLWan",
        {"base_dim": 16, "z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 1, "temperal_downsample": [False, True, True]},
        VAE,
    ),
}
UNIPC = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
SCHEDULERS = {
    "unipc": lambda shift: UniPCMultistepScheduler(**UNIPC | {"flow_shift": shift}),
    "euler": lambda shift: FlowMatchEulerDiscreteScheduler(shift=shift),
    "lcm": lambda shift: FlowMatchLCMScheduler(shift=shift),
    "dpm++2m": lambda shift: DPMSolverMultistepScheduler(**UNIPC | {"flow_shift": shift}),
}
# For each kind of model, its transformers, and the settings of its pipeline.
MODELS = {
    "t2v": (["transformer"], {}),
    "narrow": (["narrow"], {}),
    "t2v_pair": (["transformer", "transformer_2"], {"boundary_ratio": 0.875}),
    "ti2v": (["transformer"], {"expand_timesteps": True}),
    "i2v_pair": (["i2v", "i2v_2"], {"boundary_ratio": 0.9}),
    "i2v": (["looking"], {}),
    "flf2v": (["first_last"], {}),
}


@dataclass(frozen=True)
class Case:
    """A request. Without a negative prompt there is no guidance."""

    model: str = "t2v"
    width: int = 112
    height: int = 80
    frames: int = 9
    steps: int = 4
    seed: int = 11
    prompt: str = "a large purple ring above a black cross"
    negative_prompt: str | None = None
    cfg_scale: float = 1.0
    cfg_scale_2: float | None = None
    sampler: str = "unipc"
    shift: float = 3.0
    max_sequence_length: int = 512
    image: bool = False
    last_image: bool = False
    batch: int = 1
    decoded: bool = False


GUIDED = {"cfg_scale": 4.0, "negative_prompt": "two tiny moons, &amp;lt;blurry&gt;"}
GOLDEN = {
    # 7 x 5 tokens in each of three frames: all sides are odd.
    "plain": Case(decoded=True),
    "one_frame": Case(frames=1, width=64, height=48, steps=3),
    "cfg": Case(width=48, height=80, frames=13, **GUIDED),
    "euler": Case(width=80, height=48, frames=5, sampler="euler", shift=5.0, **GUIDED),
    "dpm": Case(width=80, height=48, frames=5, sampler="dpm++2m", shift=5.0, steps=5),
    "batch": Case(width=48, height=32, frames=5, batch=2, seed=2**64 - 1, **GUIDED),
    "cut": Case(width=48, height=32, frames=5, steps=2, max_sequence_length=9, prompt="a ring &amp; a  cross\n above, below, left and right"),
    "narrow": Case(model="narrow", width=48, height=80, frames=5, **GUIDED),
    "pair": Case(model="t2v_pair", width=80, height=48, frames=5, steps=5, cfg_scale_2=2.5, **GUIDED),
    "pair_plain": Case(model="t2v_pair", width=48, height=32, frames=5, steps=3),
    "ti2v": Case(model="ti2v", width=80, height=48, image=True, **GUIDED),
    "ti2v_text": Case(model="ti2v", width=80, height=48, frames=5, steps=3),
    "ti2v_batch": Case(model="ti2v", width=48, height=32, frames=5, image=True, batch=2, steps=3),
    "i2v_pair": Case(model="i2v_pair", width=80, height=48, image=True, steps=5, cfg_scale_2=2.5, **GUIDED),
    "i2v_pair_last": Case(model="i2v_pair", width=48, height=80, frames=5, image=True, last_image=True, steps=3),
    "i2v": Case(model="i2v", width=80, height=48, image=True, **GUIDED),
    "i2v_batch": Case(model="i2v", width=48, height=32, frames=5, image=True, batch=2, steps=2),
    "flf2v": Case(model="flf2v", width=80, height=48, image=True, last_image=True, shift=16.0, **GUIDED),
}
TEXTS = ["", "a red star", "  Don't\n\n  stop, &amp;quot;1234&quot; times!"]


def pipeline(networks: dict, case: Case):
    """diffusers' own pipeline."""
    names, settings = MODELS[case.model]
    pictures = case.image or "i2v" in case.model or case.model == "flf2v"
    parts = {"tokenizer": PreTrainedTokenizerFast.from_pretrained(goldenfile.DIRECTORY / "tokenizers" / "t5")}
    parts |= {name: networks[name] for name in ("text_encoder", "vae")}
    parts |= {slot: networks[name] for slot, name in zip(("transformer", "transformer_2"), names)}
    parts["scheduler"] = SCHEDULERS[case.sampler](case.shift)
    # Without a picture, a TI2V model is a WanPipeline's.
    if pictures and (case.image or case.model != "ti2v"):
        if "image_encoder" in networks:
            processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
            parts |= {"image_encoder": networks["image_encoder"], "image_processor": processor}
        made = diffusers.WanImageToVideoPipeline(**parts, **settings)
    else:
        made = diffusers.WanPipeline(**parts, **settings)
    made.set_progress_bar_config(disable=True)
    return made


def last_picture(width: int, height: int):
    """Another one than the first."""
    return given.picture(width, height).transpose(1)


def draw(networks: dict, case: Case) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, F, h, w], and the frames of the first video. Every video of a batch is a run with its own seed."""
    found, frames = [], []
    for i in range(case.batch):
        pipe, generator = pipeline(networks, case), generate.generator((case.seed + i) % 2**64)
        if case.sampler == "lcm":
            # The pipeline does not tell it where its noise comes from.
            pipe.scheduler.step = partial(pipe.scheduler.step, generator=generator)
        arguments = {"image": given.picture(case.width + 16, case.height)} if case.image else {}
        arguments |= {"last_image": last_picture(case.width, case.height + 8)} if case.last_image else {}
        made = pipe(
            prompt=case.prompt,
            negative_prompt=case.negative_prompt,
            guidance_scale=case.cfg_scale,
            guidance_scale_2=case.cfg_scale_2,
            width=case.width,
            height=case.height,
            num_frames=case.frames,
            num_inference_steps=case.steps,
            max_sequence_length=case.max_sequence_length,
            generator=generator,
            output_type="latent",
            **arguments,
        )
        found.append(made.frames[0].numpy())
        if case.decoded:
            latents, config = made.frames, pipe.vae.config
            shape = (1, config.z_dim, 1, 1, 1)
            mean, std = (torch.tensor(numbers).view(shape) for numbers in (config.latents_mean, config.latents_std))
            video = pipe.vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0]
            frames.append((pipe.video_processor.postprocess_video(video, output_type="np")[0] * 255).round().astype(np.uint8))
    return np.stack(found), frames[0] if frames else np.zeros(0)


def forward(network, latents, time, text, seen=None) -> torch.Tensor:
    """The transformer's velocity."""
    return network(hidden_states=latents, timestep=time, encoder_hidden_states=text, encoder_hidden_states_image=seen, return_dict=False)[0]


def check(networks: dict) -> list[str]:
    """Every input of the transformers, and every weight, has an effect."""
    problems = []
    g = generate.generator
    text = torch.randn(1, 512, 96, generator=g(3)) * (torch.arange(512) < 40)[None, :, None]
    for name in ("transformer", "narrow", "i2v", "looking", "first_last"):
        network = networks[name]
        channels, looks = network.config.in_channels, network.config.image_dim is not None
        latents = torch.randn(1, channels, 3, 10, 14, generator=g(1))
        count = 2 if network.config.pos_embed_seq_len else 1
        seen = torch.randn(count, SEEN, 64, generator=g(2)) if looks else None
        run = lambda x=latents, t=torch.tensor([300]), c=text, s=seen: forward(network, x, t, c, s)
        reference = run()
        changes = {"latents": run(x=latents.roll(1, -1)), "frames": run(x=latents.roll(1, 2)), "time": run(t=torch.tensor([400]))}
        changes |= {"text": run(c=text.flip(2)), "padding": run(c=torch.where(text == 0, text.std(), text))}
        if looks:
            changes["seen"] = run(s=seen.flip(2))
        effects = {what: nmse(changed.numpy(), reference.numpy()) for what, changed in changes.items()}
        print(f"{name}: effect of inputs: " + ", ".join(f"{what} {effect:.1e}" for what, effect in effects.items()))
        problems += [f"{name}: {what} has an effect of {effect:.1e} only" for what, effect in effects.items() if not effect > 1e-4]
        problems += health.check_ranges(name, network, run)
        if name != "narrow":
            problems += health.check_weights(name, network, run) + health.check_rounding(name, network, run)
    return problems


def check_text_encoder(pipe) -> list[str]:
    """Every weight of the text encoder has an effect, and so have its layers' own biases."""
    encoder, text = pipe.text_encoder, GOLDEN["plain"].prompt
    run = lambda: pipe._get_t5_prompt_embeds(text, max_sequence_length=64)
    reference, g, effects = run(), generate.generator(0), {}
    for name, weight in encoder.named_parameters():
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.randn(weight.shape, generator=g))
        effects[name] = nmse(run().numpy(), reference.numpy())
        weight.copy_(kept)
    least = min(effects, key=effects.get)
    print(f"text_encoder: effect of 10% of a weight: least {effects[least]:.1e} ({least})")
    return [f"text_encoder.{name} has an effect of {effect:.1e} only" for name, effect in effects.items() if not effect > 1e-7]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    models.CONFIGS["UMT5EncoderModel"] = (UMT5EncoderModel, UMT5Config)
    models.CONFIGS["CLIPVisionModel"] = (CLIPVisionModel, CLIPVisionConfig)
    models.DIFFUSERS["WanTransformer3DModel"] = diffusers.WanTransformer3DModel
    models.DIFFUSERS["AutoencoderKLWan"] = diffusers.AutoencoderKLWan
    tensors, described, texts = {}, {}, []
    networks, components = models.synthesise(cases.Case(components=COMPONENTS))
    with torch.no_grad():
        pipe = pipeline(networks, GOLDEN["plain"])
        problems = check(networks) + check_text_encoder(pipe)
        for i, text in enumerate(TEXTS):
            cleaned = diffusers.pipelines.wan.pipeline_wan.prompt_clean(text)
            texts.append({"text": text, "ids": pipe.tokenizer(cleaned).input_ids})
            used = len(texts[-1]["ids"])
            tensors[f"hidden.{i}"] = pipe._get_t5_prompt_embeds(text, max_sequence_length=64)[0, :used].numpy()
        latents = torch.randn(1, 16, 3, 10, 14, generator=generate.generator(1))
        text = pipe._get_t5_prompt_embeds("a red star", max_sequence_length=512)
        tensors["forward"] = forward(networks["transformer"], latents, torch.tensor([300]), text)[0].numpy()
        for name, case in GOLDEN.items():
            latents, frames = draw(networks, case)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            if case.decoded:
                tensors[f"{name}.frames"] = frames
            print(f"{name}: {latents.shape}, rms {np.sqrt(np.square(latents).mean()):.2f}", flush=True)
    body = {"made_by": "tests/reference/wan.py", "components": components}
    body |= {"models": {name: {"transformers": names, **settings} for name, (names, settings) in MODELS.items()}}
    body |= {"scheduler": {"_class_name": "UniPCMultistepScheduler", **UNIPC}, "texts": texts, "cases": described}
    problems += (goldenfile.compare("wan", body, tensors) if options.check else goldenfile.write("wan", body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
