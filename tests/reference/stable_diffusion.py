"""Records what diffusers' pipelines of Stable Diffusion 1 draw with a small synthetic model.

    python stable_diffusion.py            writes sd1
    python stable_diffusion.py --check    compares with the committed files instead of writing them
    python stable_diffusion.py --health   says how far the latents move when something of the request or of the model does

The model has what files without settings cannot say and the published one has: 8 heads at every level, 32 groups, CLIP's heads of 64.
Weights follow from the formula of synth.py, pictures and masks from that of given.py, so that the last latents alone are stored.
"""

import argparse
import contextlib
import json
import sys
from dataclasses import asdict, dataclass, field, replace

import diffusers
import numpy as np
import torch
from transformers import CLIPTextModel, CLIPTokenizer

import cases
import generate
import given
import goldenfile
import models
import samplers
from cases import Component
from unet import DOWN, UNET, UP

COMPONENTS = {
    "text_encoder": cases.clip(
        prefix="text_model.",
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=3,
        num_attention_heads=2,
        hidden_act="quick_gelu",
        projection_dim=128,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    ),
    # Heads of 8, 12 and 20. 13 x 9 latents become 7 x 5 and 4 x 3, and back.
    "unet": Component(
        "diffusers",
        "UNet2DConditionModel",
        {
            "sample_size": 64,
            "block_out_channels": [64, 96, 160],
            "down_block_types": [DOWN, DOWN, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", UP, UP],
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 128,
            "norm_num_groups": 32,
        },
        UNET,
    ),
    "vae": cases.autoencoder(
        block_out_channels=[32, 64, 64, 96],
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        scaling_factor=0.18215,
        use_quant_conv=True,
        use_post_quant_conv=True,
    ),
}
# As published beside Stable Diffusion 1.5, with PNDM's defaults written out, so that every sampler spaces its timesteps in this way.
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "trained_betas": None,
    "skip_prk_steps": True,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "prediction_type": "epsilon",
    "timestep_spacing": "leading",
    "steps_offset": 1,
}
# By pinhole's names, with and without a schedule: the class, and what it is told beside the model's own configuration.
SAMPLERS = {name: (kind, samplers.FORCED.get(name, {})) for name, kind in samplers.CLASSES.items()}
SAMPLERS |= {
    f"{name}_{schedule}": (kind, samplers.FORCED.get(name, {}) | samplers.SCHEDULES[schedule])
    for name, kind in samplers.CLASSES.items()
    for schedule in samplers.schedules(name)
}
SAMPLERS["edm_euler"] = ("EDMEulerScheduler", {})
# Those with the whole set of checks.
FIRST = ("euler", "euler_a", "ddim", "pndm", "dpm++_2m", "dpm++_2m_karras")
V_PREDICTION = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


@dataclass(frozen=True)
class Case:
    """A request."""

    width: int = 104
    height: int = 72
    steps: int = 7
    seed: int = 5
    sampler: str = "pndm"
    prompt: str = "a large purple ring above a ##2 cross"
    negative_prompt: str | None = "a black cross, the quick brown fox"
    cfg_scale: float = 7.5
    clip_skip: int | None = None
    # Of a request that begins with a picture: what the picture and the mask measure.
    strength: float | None = None
    masked: bool = False
    batch: int = 1
    eta: float = 0.0
    rescale_cfg: float = 0.0
    sigmas: list | None = None
    # What the model's scheduler is told beside its configuration.
    scheduler: dict = field(default_factory=dict)
    # Whether the picture that comes out is stored, too.
    decoded: bool = False


# Samplers over small pictures: what they do step by step is in the golden `samplers`.
SMALL = ("dpm++_2m_sde_karras", "dpm++_2s", "dpm++_sde_karras", "ddpm", "lms_karras", "heun_exponential", "kdpm2_karras", "kdpm2_a",
         "deis", "unipc_karras", "lcm", "tcd", "euler_sgm_uniform", "dpm++_2m_lu")
CASES = {sampler: Case(sampler=sampler, decoded=sampler == "pndm") for sampler in FIRST} | {
    "without_cfg": Case(width=40, height=56, cfg_scale=1.0, negative_prompt=None, sampler="euler", steps=4),
    # A negative prompt that is not given is the empty one.
    "empty_negative": Case(width=40, height=56, negative_prompt=None, sampler="ddim", steps=4),
    "v_prediction": Case(sampler="ddim", scheduler=V_PREDICTION),
    "v_prediction_euler": Case(sampler="euler", scheduler={"prediction_type": "v_prediction"}),
    "img2img": Case(strength=0.75),
    "img2img_euler_a": Case(strength=0.6, sampler="euler_a", width=56, height=88),
    "img2img_karras": Case(strength=0.75, sampler="dpm++_2m_karras", width=88, height=56),
    "inpaint": Case(strength=1.0, masked=True, sampler="euler_a"),
    "inpaint_0.7": Case(strength=0.7, masked=True, sampler="euler_a"),
    "inpaint_pndm": Case(strength=0.75, masked=True, width=72, height=88),
    "clip_skip": Case(clip_skip=1, width=56, height=40, steps=4),
    "clip_skip_without_cfg": Case(clip_skip=1, width=56, height=40, steps=4, cfg_scale=1.0, negative_prompt=None),
    "batch": Case(batch=2, sampler="euler_a", width=56, height=40, steps=4, seed=2**64 - 1),
    "batch_sde": Case(batch=2, sampler="dpm++_sde", width=56, height=40, steps=3),
    "img2img_heun": Case(strength=0.6, sampler="heun", width=40, height=56),
    "inpaint_kdpm2_a": Case(strength=0.75, masked=True, sampler="kdpm2_a", width=40, height=56, steps=6),
    "tcd_eta": Case(sampler="tcd", eta=0.3, width=40, height=56, batch=2, steps=4),
    "rescaled": Case(sampler="ddim", scheduler=V_PREDICTION, eta=0.5, rescale_cfg=0.7, width=40, height=56),
    "sigmas": Case(sampler="euler", sigmas=[14.5, 6.0, 2.0, 0.75, 0.25], steps=5, width=40, height=56),
    "edm": Case(sampler="edm_euler", scheduler={"sigma_max": 20.0, "sigma_min": 0.05}, width=40, height=56),
} | {sampler: Case(sampler=sampler, width=40, height=56) for sampler in SMALL}


def pipelines(components=COMPONENTS, scheduler=SCHEDULER, **tokenizer) -> tuple[dict, dict]:
    """The three pipelines over a model, whose tokenizer is told what is given, and the `components` entry of the header."""
    models.DIFFUSERS["UNet2DConditionModel"] = diffusers.UNet2DConditionModel
    networks, components = models.synthesise(cases.Case(components=components))
    for component in components.values():
        component["checksum"] = f"{sum(int(tensor['checksum'], 16) for tensor in component['tensors']) % 2**64:016x}"
        component["tensors"] = [[tensor[key] for key in ("name", "shape", "scale", "offset")] for tensor in component["tensors"]]
    made = getattr(diffusers, scheduler["_class_name"]).from_config(scheduler)
    read = CLIPTokenizer.from_pretrained(goldenfile.DIRECTORY / "tokenizers" / "clip", **tokenizer)
    parts = networks | {"tokenizer": read, "scheduler": made}
    parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    classes = {"text": "StableDiffusionPipeline", "picture": "StableDiffusionImg2ImgPipeline", "mask": "StableDiffusionInpaintPipeline"}
    made = {kind: getattr(diffusers, name)(**parts) for kind, name in classes.items()}
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made, components


def schedule(case: Case):
    """The scheduler of a case: the model's configuration, read by the class of the sampler."""
    name, told = SAMPLERS[case.sampler]
    made = getattr(diffusers, name).from_config(SCHEDULER, **told, **case.scheduler)
    if name == "DPMSolverSDEScheduler":
        made.noise_sampler_seed = [case.seed]
    return made


def drawn(pipe, case: Case, schedule, arguments: dict) -> tuple[np.ndarray, np.ndarray]:
    """What `draw` returns, of a pipeline called with `arguments`; `schedule` makes the scheduler of a case."""
    found, pictures = [], []
    for i in range(case.batch):
        pipe.scheduler, last = schedule(replace(case, seed=(case.seed + i) % 2**64)), []

        def keep(_pipe, _step, _timestep, tensors):
            last[:] = [tensors["latents"].clone()]
            return {}

        # The noise of a Brownian tree jumps where a time that is off by the last digit is rounded to the next millionth.
        exact = isinstance(pipe.scheduler, diffusers.DPMSolverSDEScheduler)
        with samplers.rounding_once() if exact else contextlib.nullcontext():
            made = pipe(
                prompt=case.prompt,
                negative_prompt=None if "negative_prompt_embeds" in arguments else case.negative_prompt,
                **({"sigmas": [*case.sigmas, 0.0]} if getattr(case, "sigmas", None) else {"num_inference_steps": case.steps}),
                guidance_scale=case.cfg_scale,
                clip_skip=case.clip_skip,
                generator=generate.generator((case.seed + i) % 2**64),
                callback_on_step_end=keep,
                **arguments,
            )
        found.append(last[0][0].numpy())
        pictures.append(np.asarray(made.images[0]))
    return np.stack(found), pictures[0]


def draw(pipes: dict, case: Case, schedule=schedule, **changed) -> tuple[np.ndarray, np.ndarray]:
    """The last latents [batch, C, h, w] and the picture of the first. Every picture of a batch is a run with its own seed."""
    pipe = pipes["text" if case.strength is None else "mask" if case.masked else "picture"]
    size = (case.width, case.height)
    arguments = {} if case.strength is None else {"image": given.picture(*size), "strength": case.strength}
    if case.masked:
        arguments["mask_image"] = given.mask(*size)
    if case.strength is None or case.masked:
        arguments |= {"width": case.width, "height": case.height}
    if case.eta:
        arguments["eta"] = case.eta
    if case.rescale_cfg:
        arguments["guidance_rescale"] = case.rescale_cfg
    if case.clip_skip and case.cfg_scale > 1:
        # By itself, diffusers sends the negative prompt through all layers.
        negative = pipe.encode_prompt(case.negative_prompt, "cpu", 1, False, clip_skip=case.clip_skip)[0]
        arguments["negative_prompt_embeds"] = negative
    return drawn(pipe, case, schedule, arguments | changed)


def health(name: str, pipes: dict, case: Case) -> None:
    """Prints how far the latents move (NMSE) when one thing of the request does, and when every weight moves by 1e-6."""
    latents, picture = draw(pipes, case)
    cases = {"prompt": replace(case, prompt="a yellow star"), "seed": replace(case, seed=case.seed ^ 1)}
    cases["clip_skip"] = replace(case, clip_skip=None if case.clip_skip else 1)
    if case.cfg_scale > 1:
        cases |= {"negative prompt": replace(case, negative_prompt="the moon"), "cfg": replace(case, cfg_scale=case.cfg_scale + 0.1)}
    for sampler in set(FIRST) - {case.sampler}:
        cases[sampler] = replace(case, sampler=sampler)
    if case.strength is not None:
        cases["strength"] = replace(case, strength=case.strength / 2)
    moved = {what: draw(pipes, other)[0] for what, other in cases.items()}
    size = (case.width, case.height)
    if case.strength is not None:
        moved["picture"] = draw(pipes, case, image=given.picture(*size).transpose(0))[0]
    if case.masked:
        moved["mask"] = draw(pipes, case, mask_image=given.mask(*size).transpose(0))[0]
    weights = [weight for key in COMPONENTS for weight in pipes["text"].components[key].parameters()]
    kept, g = [weight.clone() for weight in weights], generate.generator(3)
    for weight in weights:
        weight.mul_(1 + 1e-6 * (torch.rand(weight.shape, generator=g) - 0.5).sign())
    moved["weights by 1e-6"] = draw(pipes, case)[0]
    for weight, before in zip(weights, kept, strict=True):
        weight.copy_(before)
    figures = ", ".join(f"{what} {goldenfile.nmse(changed, latents):.1e}" for what, changed in moved.items())
    clipped = np.isin(picture, (0, 255)).mean()
    print(f"{name}: rms {np.sqrt(np.square(latents).mean()):.2f}, picture std {picture.std():.0f}, {clipped:.0%} clipped; moved by {figures}", flush=True)


def check_layers(pipes: dict) -> None:
    """Stops unless `hidden_states` are what the layers give, one after the other: `clip_skip` counts them."""
    encoder, given_by_layers, hooks = pipes["text"].text_encoder, [], []
    for layer in next(module for name, module in encoder.named_modules() if name.endswith("encoder.layers")):
        take = lambda _m, _i, output: given_by_layers.append(output[0] if isinstance(output, tuple) else output)
        hooks.append(layer.register_forward_hook(take))
    states = encoder(torch.tensor([[696, 5, 9, 697]]), output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    if len(states) != len(given_by_layers) + 1 or not torch.equal(states[-2], given_by_layers[-2]):
        raise SystemExit("the hidden states of CLIP are not those of its layers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", nargs="*", metavar="CASE", help="say how far the latents move; all cases by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if not hasattr(CLIPTextModel, "text_model"):
        # transformers 5 has no such layer between, and diffusers asks it for the last norm if there is a clip_skip.
        CLIPTextModel.text_model = property(lambda encoder: encoder)
    tensors, described = {}, {}
    with torch.no_grad():
        pipes, components = pipelines()
        check_layers(pipes)
        if options.health is not None:
            for name in options.health or CASES:
                health(name, pipes, CASES[name])
            return
        for name, case in CASES.items():
            latents, picture = draw(pipes, case)
            tensors[f"{name}.latents"], described[name] = latents, asdict(case)
            described[name]["scheduler"] = json.loads(schedule(case).to_json_string()) if case.scheduler else None
            if case.decoded:
                tensors[f"{name}.picture"] = picture
    body = {"made_by": "tests/reference/stable_diffusion.py", "components": components, "scheduler": SCHEDULER, "cases": described}
    problems = goldenfile.compare("sd1", body, tensors) if options.check else goldenfile.write("sd1", body, tensors)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
