"""Records what ESRGAN's network and Real-ESRGAN's compact one make of pictures. Both are written here, after the papers (arXiv:1809.00219
and arXiv:2107.10833) and the names and shapes of the published files; weights follow from the formula of synth.py.

    python upscale.py            writes upscale
    python upscale.py --check    compares with the committed files instead of writing them
    python upscale.py --health   does every weight count, and are the pictures neither black nor white?
"""

import argparse
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import generate
import given
import goldenfile
import synth

LEAK, SHARE = 0.2, 0.2


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class Dense(nn.Module):
    """Five convolutions, where each reads what came in and what all before it gave."""

    def __init__(self, features: int, growth: int):
        super().__init__()
        for i in range(1, 6):
            setattr(self, f"conv{i}", conv(features + (i - 1) * growth, features if i == 5 else growth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [x]
        for i in range(1, 5):
            found.append(F.leaky_relu(getattr(self, f"conv{i}")(torch.cat(found, 1)), LEAK))
        return self.conv5(torch.cat(found, 1)) * SHARE + x


class Block(nn.Module):
    """Three of these, in a residue."""

    def __init__(self, features: int, growth: int):
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (Dense(features, growth) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rdb3(self.rdb2(self.rdb1(x))) * SHARE + x


class Esrgan(nn.Module):
    """The picture may be folded first, so that the network makes it twice as large, or no larger."""

    def __init__(self, features: int, growth: int, blocks: int, factor: int = 4, doublings: int = 2):
        super().__init__()
        self.fold, self.factor, self.doublings = 2**doublings // factor, factor, doublings
        self.conv_first = conv(3 * self.fold**2, features)
        self.body = nn.Sequential(*(Block(features, growth) for _ in range(blocks)))
        self.conv_body = conv(features, features)
        for i in range(1, doublings + 1):
            setattr(self, f"conv_up{i}", conv(features, features))
        self.conv_hr, self.conv_last = conv(features, features), conv(features, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_first(F.pixel_unshuffle(x, self.fold))
        x = x + self.conv_body(self.body(x))
        for i in range(1, self.doublings + 1):
            x = F.leaky_relu(getattr(self, f"conv_up{i}")(F.interpolate(x, scale_factor=2, mode="nearest")), LEAK)
        return self.conv_last(F.leaky_relu(self.conv_hr(x), LEAK))


class Compact(nn.Module):
    """Convolutions with a PReLU between them; what they give is unfolded, and added to the enlarged picture."""

    fold = 1

    def __init__(self, features: int, convolutions: int, factor: int):
        super().__init__()
        layers, inputs = [], 3
        for _ in range(convolutions + 1):
            layers += [conv(inputs, features), nn.PReLU(features)]
            inputs = features
        self.body, self.factor = nn.Sequential(*layers, conv(features, 3 * factor**2)), factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.body(x), self.factor) + F.interpolate(x, scale_factor=self.factor, mode="nearest")


# Sizes that no published network has, among them widths that no kernel's lanes divide; and the published ones in small.
NETWORKS = {
    "x4": (Esrgan, {"features": 20, "growth": 7, "blocks": 2}),
    "x2": (Esrgan, {"features": 16, "growth": 8, "blocks": 1, "factor": 2}),
    "x1": (Esrgan, {"features": 12, "growth": 5, "blocks": 3, "factor": 1}),
    "x8": (Esrgan, {"features": 8, "growth": 4, "blocks": 1, "factor": 8, "doublings": 3}),
    "compact_x4": (Compact, {"features": 24, "convolutions": 3, "factor": 4}),
    "compact_x3": (Compact, {"features": 9, "convolutions": 2, "factor": 3}),
}
# Width and height of the pictures: even, odd, of one pixel's height.
PICTURES = {"x4": [(17, 13), (6, 1)], "x2": [(18, 14), (15, 11)], "x1": [(19, 14), (21, 23)], "x8": [(7, 5)], "compact_x4": [(13, 9)], "compact_x3": [(11, 16)]}


def filled(name: str) -> tuple[nn.Module, list]:
    """A network, and its tensors as a golden's header has them."""
    kind, sizes = NETWORKS[name]
    model, tensors = kind(**sizes).eval(), []
    state = model.state_dict()
    last = next(reversed([key for key in state if key.endswith("weight")]))
    for key in sorted(state):
        shape = list(state[key].shape)
        if len(shape) == 1 and key.endswith("weight"):
            scale, offset = 0.2, 0.2  # slopes
        elif key.endswith("bias"):
            at_end = key == last.replace("weight", "bias") and kind is Esrgan
            scale, offset = 0.4 if ".rdb" in key else 0.05, 0.5 if at_end else 0.0
        else:
            # Of what dense blocks make, a fifth of a fifth is left.
            gain = 0.35 if key == last else 2.2 if ".rdb" in key else 1.25
            scale, offset = round(float(gain * (3 / np.prod(shape[1:])) ** 0.5), 6), 0.0
        state[key].copy_(torch.from_numpy(synth.values(name, key, shape, scale, offset)))
        tensors.append([key, shape, scale, offset])
    return model, tensors


def samples(size: tuple[int, int]) -> torch.Tensor:
    """A picture, from 0 to 1."""
    return torch.from_numpy(np.asarray(given.picture(*size)).astype(np.float32) / 255).permute(2, 0, 1)[None]


def upscale(model: nn.Module, picture: torch.Tensor) -> torch.Tensor:
    """Of a picture that cannot be folded, the last rows and columns are mirrored, and what becomes of them is cut off."""
    height, width = picture.shape[2:]
    right, below = -width % model.fold, -height % model.fold
    larger = model(F.pad(picture, (0, right, 0, below), mode="reflect") if right or below else picture)
    return larger[:, :, : height * model.factor, : width * model.factor]


def rounded(larger: torch.Tensor) -> np.ndarray:
    """As bytes."""
    return (larger[0].clamp(0, 1) * 255).round().permute(1, 2, 0).numpy().astype(np.uint8)


def health(name: str, model: nn.Module) -> list[str]:
    """What is wrong with a network: weights that do not count, and pictures that are black or white."""
    problems = []
    for size in PICTURES[name]:
        larger = upscale(model, samples(size))
        inside = ((larger > 0) & (larger < 1)).float().mean().item()
        if not (inside > 0.5 and larger.std() > 0.05):
            problems.append(f"{name}: {inside:.2f} of the samples are inside, std {larger.std():.2f}")
    for key, weight in model.named_parameters():
        kept = weight.clone()
        weight.mul_(1 + 0.1 * torch.rand(weight.shape, generator=generate.generator(1)))
        moved = goldenfile.nmse(upscale(model, samples(size)).numpy(), larger.numpy())
        if not moved > 2e-10:
            problems.append(f"{name}: {key} moves the samples by {moved:.1e}")
        weight.copy_(kept)
    return problems


def write_pickle() -> None:
    """A file as Real-ESRGAN's training leaves it: the weights, and their running average, which counts."""
    model, _ = filled("compact_x3")
    average = {key: weight.clone() for key, weight in model.state_dict().items()}
    weights = {key: weight + 0.01 for key, weight in average.items()}
    torch.save({"params": weights, "params_ema": average}, goldenfile.DIRECTORY / "pickles" / "upscaler.pth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    parser.add_argument("--health", action="store_true", help="check the networks instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    problems, components, tensors = [], {}, {}
    for name, sizes in PICTURES.items():
        model, described = filled(name)
        components[name] = {"tensors": described}
        if options.health:
            problems += health(name, model)
            continue
        for width, height in sizes:
            larger = upscale(model, samples((width, height)))
            tensors[f"{name}.{width}x{height}.samples"] = larger[0].numpy()
            tensors[f"{name}.{width}x{height}.picture"] = rounded(larger)
    if not options.health:
        if not options.check:
            write_pickle()
        body = {"made_by": "tests/reference/upscale.py", "components": components, "pictures": PICTURES}
        problems = goldenfile.compare("upscale", body, tensors) if options.check else goldenfile.write("upscale", body, tensors)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
