"""Records what diffusers' AutoencoderTiny makes of latents: those of a seed, and those that other goldens end with.

    python tiny_vae.py            writes tiny_vae
    python tiny_vae.py --check    compares with the committed files instead of writing them
    python tiny_vae.py --health   are the models fit for it?
"""

import argparse
import sys

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.image_processor import VaeImageProcessor
from safetensors.numpy import load_file

import generate
import goldenfile
import models
import synth

# By the golden whose model each is for: one as published for Stable Diffusion and one for XL, whose sizes are the same, and one of other
# sizes with the latents of FLUX.1.
MODELS = {
    "sd1": {"latent_channels": 4},
    "sdxl": {"latent_channels": 4},
    "flux_control": {
        "latent_channels": 16,
        "encoder_block_out_channels": (24, 24, 24, 24),
        "decoder_block_out_channels": (24, 24, 24, 24),
        "num_encoder_blocks": (1, 1, 1, 1),
        "num_decoder_blocks": (1, 2, 0, 3),
        "scaling_factor": 0.75,
        "shift_factor": 0.125,
    },
}
# The request of that golden whose latents are decoded, and the extents [h, w] of the seed's.
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
        print(f"{golden}: picture std {np.asarray(picture).std():.0f}", flush=True)
    if not options.health:
        body = {"made_by": "tests/reference/tiny_vae.py", "components": components, "cases": {g: c for g, (c, _) in LATENTS.items()}}
        problems = goldenfile.compare("tiny_vae", body, tensors) if options.check else goldenfile.write("tiny_vae", body, tensors)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
