"""Records what diffusers' AutoencoderKLWan makes of films with two small synthetic models: one as in Wan 2.1, and one as in Wan 2.2's 5B.

    python wan_vae.py            writes wan_vae
    python wan_vae.py --check    compares with the committed file instead of writing it

A film of nine frames is recorded. That shorter ones are its beginning is checked here.
"""

import argparse
import sys

import diffusers
import torch

import cases
import generate
import goldenfile
import health
import models
from cases import Component
from goldenfile import nmse
from recipes import NORM, Around, Gain

RULES = [
    (r"gamma$", NORM),
    (r"to_qkv\.bias$", Around(0.6)),
    (r"\.bias$", Around(0.25)),
    (r"to_qkv\.weight$", Gain(1.2)),
    (r"proj\.weight$", Gain(2.0)),
    (r"\.conv[12]\.weight$", Gain(1.6)),
    (r"time_conv\.weight$", Gain(1.2)),
    (r"^decoder\.conv_out\.weight$", Gain(0.6)),
    (r"^encoder\.conv_out\.weight$", Gain(1.6)),
    (r"\.weight$", Gain(1.0)),
]
SHARED = {"num_res_blocks": 1, "dim_mult": [1, 2, 4, 4], "temperal_downsample": [False, True, True]}
CONFIGS = {
    # Channels that are no multiples of 16, and latents of as many that are not the usual ones.
    "wan_2_1": {"base_dim": 12, "z_dim": 6},
    "wan_2_2": {
        "base_dim": 10,
        "decoder_base_dim": 16,
        "z_dim": 7,
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
    },
}
# Columns and rows of the latents. Neither has sides that are alike.
SIZES = {"wan_2_1": (5, 3), "wan_2_2": (3, 2)}
FRAMES = 9
LATENT_FRAMES = 1 + (FRAMES - 1) // 4


def component(name: str) -> Component:
    config = SHARED | CONFIGS[name]
    z = config["z_dim"]
    means = [round(0.3 * ((7 * i) % 5 - 2), 2) for i in range(z)]
    deviations = [round(0.6 + 0.35 * ((3 * i) % 4), 2) for i in range(z)]
    return Component("diffusers", "AutoencoderKLWan", config | {"latents_mean": means, "latents_std": deviations}, RULES)


def decode(vae, latents: torch.Tensor) -> torch.Tensor:
    """The film of latents in the denoiser's space, as WanPipeline decodes it."""
    shape = (1, -1, 1, 1, 1)
    mean, std = (torch.tensor(vae.config[key]).view(shape) for key in ("latents_mean", "latents_std"))
    return vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0]


def encode(vae, film: torch.Tensor) -> torch.Tensor:
    """Means and logarithms of variances, in the autoencoder's space."""
    return vae.encode(film).latent_dist.parameters


def check(name: str, vae, latents: torch.Tensor, film: torch.Tensor) -> list[str]:
    """What is wrong with a model: numbers that do not count, or a film that is black or white."""
    both = lambda: torch.cat([decode(vae, latents).flatten(), encode(vae, film).flatten()])
    problems = health.check_weights(name, vae, both) + health.check_rounding(name, vae, both)
    problems += health.check_ranges(name, vae, both)
    inside = (film.abs() < 1).float().mean().item()
    if inside < 0.8 or not 0.1 < film.std():
        problems.append(f"{name}: {inside:.2f} of the samples are inside, std {film.std():.2f}")
    # Frames look back, and not ahead.
    moments = encode(vae, film)
    for count in range(1, LATENT_FRAMES):
        short = nmse(decode(vae, latents[:, :, :count]).numpy(), film[:, :, : 4 * count - 3].numpy())
        short = max(short, nmse(encode(vae, film[:, :, : 4 * count - 3]).numpy(), moments[:, :, :count].numpy()))
        if short > 1e-12:
            problems.append(f"{name}: the first {count} latent frames differ by {short:.1e}")
    for frame in range(LATENT_FRAMES - 1):
        other = latents.clone()
        other[:, :, frame] += 0.5
        later = decode(vae, other)[:, :, 4 * frame + 1 :]
        if not nmse(later.numpy(), film[:, :, 4 * frame + 1 :].numpy()) > 1e-4:
            problems.append(f"{name}: no frame sees latent frame {frame} before it")
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    models.DIFFUSERS["AutoencoderKLWan"] = diffusers.AutoencoderKLWan
    networks, components = models.synthesise(cases.Case(components={name: component(name) for name in CONFIGS}))
    problems, tensors = [], {}
    for name, vae in networks.items():
        (width, height), channels = SIZES[name], vae.config.z_dim
        latents = torch.randn(1, channels, LATENT_FRAMES, height, width, generator=generate.generator(7))
        film = decode(vae, latents)
        problems += check(name, vae, latents, film)
        tensors[f"{name}.latents"], tensors[f"{name}.film"] = latents[0].numpy(), film[0].numpy()
        tensors[f"{name}.moments"] = encode(vae, film)[0].numpy()
        print(f"{name}: film std {film.std():.2f}, moments std {tensors[f'{name}.moments'].std():.2f}", flush=True)
    body = {"made_by": "tests/reference/wan_vae.py", "components": components}
    problems += (goldenfile.compare("wan_vae", body, tensors) if options.check else goldenfile.write("wan_vae", body, tensors)) or []
    print("\n".join(problems), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
