"""What is recorded of an autoencoder by itself."""

import torch

import synth


def test_picture(width: int, height: int) -> torch.Tensor:
    """A picture [1, 3, height, width] in -1..1: slopes and an edge, which strips and padding would show, under noise."""
    x = torch.linspace(-1, 1, width)[None, None, :]
    y = torch.linspace(-1, 1, height)[None, :, None]
    slope = torch.tensor([0.6, -0.5, 0.1])[:, None, None] * x + torch.tensor([-0.2, 0.4, 0.7])[:, None, None] * y
    edge = torch.where(x + 0.5 * y > 0.2, 0.25, -0.25)
    grain = torch.from_numpy(synth.values("picture", "grain", [3, height, width], 0.1, 0.0))
    return (slope + edge + grain).clamp(-1, 1)[None]


def encoder(vae, width: int, height: int) -> dict[str, torch.Tensor]:
    """The encoder's moments for the test picture: before the scaling and shift of the denoiser's space."""
    picture = test_picture(width, height)
    moments = vae.encode(picture).latent_dist
    return {"encoder.input": picture[0], "encoder.mean": moments.mean[0], "encoder.logvar": moments.logvar[0]}


def decoder(vae, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """The decoder by itself, in the autoencoder's own space."""
    return {"decoder.input": latents[0], "decoder.output": vae.decode(latents, return_dict=False)[0][0]}
