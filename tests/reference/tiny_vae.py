"""Records what diffusers' AutoencoderTiny makes of latents, those of a seed and those that other goldens end with, and of pictures; and what
requests that begin with a picture draw if it encodes that.

    python tiny_vae.py            writes tiny_vae
    python tiny_vae.py --check    compares with the committed files instead of writing them
    python tiny_vae.py --health   are the models fit for it?
"""

import argparse
import sys

from dataclasses import asdict, replace

import diffusers
import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from safetensors.numpy import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import generate
import given
import goldenfile
import models
import pictures_in
import stable_diffusion as sd
import stable_diffusion_xl as xl
import synth

# By the golden whose model each is for: one as published for Stable Diffusion and one for XL, whose sizes are the same, and one of other
# sizes with the latents of FLUX.1.
MODELS = {
    "sd1": {"latent_channels": 4},
    "sdxl": {"latent_channels": 4},
    "flux_control": {
        "latent_channels": 16,
        "encoder_block_out_channels": (32, 32, 32, 32),
        "decoder_block_out_channels": (24, 24, 24, 24),
        "num_encoder_blocks": (2, 1, 0, 3),
        "num_decoder_blocks": (1, 2, 0, 3),
        "scaling_factor": 0.75,
        "shift_factor": 0.125,
    },
}
# The request of that golden whose latents are decoded, and the extents [h, w] of the seed's.
# Requests that begin with a picture, by the golden's model.
BEGUN = {
    "sd1": {
        "img2img": sd.Case(sampler="euler", strength=0.75, width=88, height=56, steps=5),
        # A sampler with fresh noise shows how much was drawn before.
        "inpaint": sd.Case(sampler="euler_a", strength=0.7, masked=True, width=72, height=88, steps=5),
        "img2img_batch": sd.Case(sampler="euler", strength=0.6, width=40, height=56, steps=4, batch=2, seed=2**64 - 1),
    },
    "sdxl": {"img2img": xl.Case(strength=0.75, width=56, height=72, steps=5)},
    # With FLUX.1 as it is: diffusers' pipeline of control pictures takes no tiny autoencoder.
    "flux_control": {"img2img": replace(pictures_in.DEV, width=80, height=48, picture=(80, 48), steps=4)},
}
LATENTS = {"sd1": ("euler", (9, 13)), "sdxl": ("text", (6, 11)), "flux_control": ("control", (5, 7))}


def described(golden: str, config: dict) -> tuple[AutoencoderTiny, dict]:
    """The network, filled from the formula, and its component as a golden's header has it."""
    model = AutoencoderTiny(**config).float().eval()
    state, tensors = model.state_dict(), []
    key = f"tiny_vae of {golden}"
    last = max(int(name.split(".")[2]) for name in state if name.startswith("decoder."))
    for name in sorted(state):
        shape = list(state[name].shape)
        if name.endswith("bias"):
            scale, offset = 0.1, 0.5 if name == f"decoder.layers.{last}.bias" else 0.02
        else:
            gain = 0.25 if name == f"decoder.layers.{last}.weight" else 1.0
            scale, offset = round(float(gain * (3 / np.prod(shape[1:])) ** 0.5), 6), 0.0
        state[name].copy_(torch.from_numpy(synth.values(key, name, shape, scale, offset)))
        tensors.append([name, shape, scale, offset])
    about = {"file": "diffusion_pytorch_model.safetensors", "config": dict(model.config), "tensors": tensors}
    about["config"].pop("_use_default_values", None)
    return model, {key: about}


def decode(model: AutoencoderTiny, latents: torch.Tensor) -> torch.Tensor:
    """The picture's samples, as diffusers' pipelines decode latents in the denoiser's space."""
    return model.decode(latents / model.config.scaling_factor + model.config.shift_factor, return_dict=False)[0]


def encode(model: AutoencoderTiny, width: int, height: int) -> torch.Tensor:
    """The latents of a picture, in the autoencoder's space."""
    return model.encode(VaeImageProcessor().preprocess(given.picture(width, height)), return_dict=False)[0]


def begun(golden: str, model: AutoencoderTiny) -> dict[str, np.ndarray]:
    """The last latents of each request that begins with a picture."""
    module = {"sd1": sd, "sdxl": xl, "flux_control": pictures_in}[golden]
    pipes = module.pipelines("dev") if module is pictures_in else module.pipelines()[0]
    for pipe in pipes.values():
        pipe.vae = model
        pipe.set_progress_bar_config(disable=True)
    drawn = {}
    for name, case in BEGUN[golden].items():
        latents, _ = module.draw(pipes, case)
        drawn[name] = latents
        print(f"{golden} {name}: rms {np.sqrt(np.square(latents).mean()):.2f}", flush=True)
    return drawn


def health(golden: str, model: AutoencoderTiny, latents: torch.Tensor) -> list[str]:
    """What is wrong with a model: a weight or a channel of the latents that does not count, pictures that are black or white."""
    samples, problems = decode(model, latents), []
    inside = ((samples > -1) & (samples < 1)).float().mean().item()
    if not (inside > 0.7 and samples.std() > 0.1):
        problems.append(f"{golden}: {inside:.2f} of the samples are inside, std {samples.std():.2f}")
    moved = lambda: goldenfile.nmse(decode(model, latents).numpy(), samples.numpy())
    for name, weight in model.decoder.named_parameters():
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.rand(weight.shape, generator=generate.generator(1)))
        if not moved() > 1e-7:
            problems.append(f"{golden}: {name} moves the samples by {moved():.1e}")
        weight.copy_(kept)
    encoded = encode(model, 88, 56)
    for name, weight in model.encoder.named_parameters():
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.rand(weight.shape, generator=generate.generator(1)))
        far = goldenfile.nmse(encode(model, 88, 56).numpy(), encoded.numpy())
        if not far > 1e-7:
            problems.append(f"{golden}: {name} moves the latents by {far:.1e}")
        weight.copy_(kept)
    if not 0.2 < encoded.std() < 5:
        problems.append(f"{golden}: latents of a picture have std {encoded.std():.2f}")
    for channel in range(latents.shape[1]):
        other = latents.clone()
        other[:, channel] += 0.5
        if not goldenfile.nmse(decode(model, other).numpy(), samples.numpy()) > 1e-4:
            problems.append(f"{golden}: channel {channel} does not count")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="check the models instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    models.DIFFUSERS["UNet2DConditionModel"] = diffusers.UNet2DConditionModel
    models.CONFIGS["CLIPTextModelWithProjection"] = (CLIPTextModelWithProjection, CLIPTextConfig)
    problems, components, tensors = [], {}, {}
    for golden, config in MODELS.items():
        model, about = described(golden, config)
        components |= about
        case, extents = LATENTS[golden]
        # Some are far out, where the decoder softens them.
        latents = 2 * torch.randn(1, config["latent_channels"], *extents, generator=generate.generator(7))
        if options.health:
            problems += health(golden, model, latents)
            continue
        tensors[f"{golden}.latents"], tensors[f"{golden}.samples"] = latents.numpy(), decode(model, latents).numpy()
        drawn = torch.from_numpy(load_file(goldenfile.DIRECTORY / f"{golden}.safetensors")[f"{case}.latents"])
        picture = VaeImageProcessor().postprocess(decode(model, drawn), output_type="pil")[0]
        tensors[f"{golden}.picture"] = np.asarray(picture)
        # Of each width, the half, the quarter and the eighth are odd somewhere.
        tensors[f"{golden}.encoded"] = encode(model, 8 * extents[1], 8 * extents[0]).numpy()
        tensors |= {f"{golden}.{name}.latents": latents for name, latents in begun(golden, model).items()}
        print(f"{golden}: picture std {np.asarray(picture).std():.0f}", flush=True)
    if not options.health:
        body = {"made_by": "tests/reference/tiny_vae.py", "components": components, "cases": {g: c for g, (c, _) in LATENTS.items()},
                "begun": {g: {name: asdict(case) for name, case in all_cases.items()} for g, all_cases in BEGUN.items()}}
        problems = goldenfile.compare("tiny_vae", body, tensors) if options.check else goldenfile.write("tiny_vae", body, tensors)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
