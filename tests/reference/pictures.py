"""Pictures, decoded and resized by Pillow and prepared by diffusers, for tests/pictures.rs.

    pictures.py [--check]

Writes small files of many kinds to `tests/goldens/pictures`, what Pillow reads in the lossy ones to `pictures.safetensors`, and to
`pictures.json` sums (the beginning of SHA-256) of the others, of resized pictures, samples and masks. The pictures that are resized
follow from a formula.
"""

import argparse
import hashlib
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps, features
from safetensors.numpy import load_file

import goldenfile

FILES = goldenfile.DIRECTORY / "pictures"
ORIENTATION = 0x0112
FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}

# From and to (width, height).
SIZES = [
    ((1, 1), (7, 5)),
    ((7, 5), (1, 1)),
    ((23, 17), (23, 17)),
    ((23, 17), (23, 40)),
    ((23, 17), (64, 17)),
    ((37, 61), (64, 32)),
    ((64, 64), (128, 128)),
    ((128, 96), (32, 24)),
    ((301, 199), (48, 80)),
    ((2000, 3), (16, 64)),
    ((3, 2000), (64, 16)),
    ((640, 1), (33, 9)),
    ((5, 4), (401, 303)),
]
# A picture and what it is made for, both multiples of 16.
PREPARED = [((23, 17), (48, 32)), ((301, 199), (64, 80)), ((64, 48), (64, 48))]


def formula(width: int, height: int, pattern: str) -> np.ndarray:
    """`[height, width, 3]`: noise, or hard edges, at which the filters overshoot."""
    if pattern == "noise":
        i = np.arange(width * height * 3, dtype=np.uint64)
        return ((i * 2654435761 % 2**32) >> 24).astype(np.uint8).reshape(height, width, 3)
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return np.where((x // (3 + c) + y // (2 + c)) % 2 == 1, 255, 0).astype(np.uint8)


def checksum(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def resized() -> list[dict]:
    cases = []
    for size, to in SIZES:
        for pattern in ("noise", "edges"):
            picture = Image.fromarray(formula(*size, pattern))
            sums = {name: checksum(np.asarray(picture.resize(to, code))) for name, code in FILTERS.items()}
            cases.append({"from": size, "to": to, "pattern": pattern, "sums": sums})
    return cases


def prepared() -> list[dict]:
    """What diffusers' inpainting pipelines make of a picture and a mask (the second pattern)."""
    pictures = VaeImageProcessor(vae_scale_factor=16)
    masks = VaeImageProcessor(vae_scale_factor=16, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    cases = []
    for size, (width, height) in PREPARED:
        samples = pictures.preprocess(Image.fromarray(formula(*size, "noise")), height=height, width=width)
        for pattern in ("noise", "edges"):
            mask = masks.preprocess(Image.fromarray(formula(*size, pattern)), height=height, width=width)
            hidden = samples * (mask < 0.5)
            latents = torch.nn.functional.interpolate(mask, size=(height // 8, width // 8))
            # -0.0 and 0.0 are one number.
            sums = {"samples": samples, "mask": mask, "hidden": hidden + 0.0, "latents": latents}
            sums = {name: checksum(tensor.numpy()) for name, tensor in sums.items()}
            assert 0 < float(mask.mean()) < 1
            cases.append({"from": size, "to": (width, height), "pattern": pattern, "sums": sums})
    return cases


def scene(width: int, height: int) -> Image.Image:
    """Smooth colours with a few hard shapes, none of them symmetric."""
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = 255 * x / (width - 1), 255 * y / (height - 1), 127 + 120 * np.sin(x / 5 + y / 3)
    picture = np.stack([red, green, blue], axis=-1)
    picture[2:6, 3:12] = (250, 20, 30)
    picture[9:13, 15:18] = (10, 240, 90)
    return Image.fromarray(picture.round().astype(np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples: np.ndarray, color: int) -> bytes:
    """16-bit samples, which Pillow cannot write except in gray."""
    height, width = samples.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def saved(picture: Image.Image, kind: str, **options) -> bytes:
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[ORIENTATION] = orientation
    return data


def files() -> dict[str, bytes]:
    picture = scene(23, 17)
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 23).round().astype(np.uint8), (17, 1)))
    alpha = picture.copy()
    alpha.putalpha(ramp)
    palette = picture.quantize(16)
    deep = np.asarray(picture).astype(np.uint16) * 256 + np.arange(17 * 23 * 3, dtype=np.uint16).reshape(17, 23, 3) % 256
    deep_alpha = np.concatenate([deep, (np.asarray(ramp).astype(np.uint16) * 257)[..., None]], axis=-1)
    cmyk = Image.merge("CMYK", [*picture.split(), ramp])
    other = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    made = {
        "rgb.png": saved(picture, "PNG"),
        "gray.png": saved(picture.convert("L"), "PNG"),
        "one_bit.png": saved(picture.convert("1"), "PNG"),
        "palette.png": saved(palette, "PNG"),
        "palette_transparent.png": saved(palette, "PNG", transparency=bytes([0, 85, 170] + [255] * 13)),
        "rgb_transparent.png": saved(picture, "PNG", transparency=(250, 20, 30)),
        "gray_alpha.png": saved(alpha.convert("LA"), "PNG"),
        "rgba.png": saved(alpha, "PNG"),
        "gray_16.png": png(deep[..., :1], 0),
        "rgb_16.png": png(deep, 2),
        "rgba_16.png": png(deep_alpha, 6),
        "pixel.png": saved(picture.crop((4, 3, 5, 4)), "PNG"),
        "animated.png": saved(picture, "PNG", save_all=True, append_images=[other]),
        "turned.png": saved(picture, "PNG", exif=exif(6)),
        "gray.jpg": saved(picture.convert("L"), "JPEG", quality=90),
        "444.jpg": saved(picture, "JPEG", quality=90, subsampling="4:4:4"),
        "420.jpg": saved(picture, "JPEG", quality=90, subsampling="4:2:0"),
        "422.jpg": saved(picture, "JPEG", quality=90, subsampling="4:2:2"),
        "progressive.jpg": saved(picture, "JPEG", quality=90, subsampling="4:4:4", progressive=True),
        "cmyk.jpg": saved(cmyk, "JPEG", quality=90),
        "lossless.webp": saved(picture, "WEBP", lossless=True),
        "lossy.webp": saved(picture, "WEBP", quality=90),
        "alpha.webp": saved(alpha, "WEBP", lossless=True),
        "animated.webp": saved(picture, "WEBP", lossless=True, save_all=True, append_images=[other]),
        "turned.webp": saved(picture, "WEBP", lossless=True, exif=exif(8)),
    }
    for orientation in range(2, 9):
        data = saved(picture, "JPEG", quality=90, subsampling="4:4:4", exif=exif(orientation))
        made[f"orientation_{orientation}.jpg"] = data
    return made


def decoded(data: bytes) -> np.ndarray:
    """The picture upright, over white: `[height, width, 3]`."""
    picture = Image.open(io.BytesIO(data))
    if picture.mode == "I;16":
        # Pillow's convert("RGB") clips 16-bit gray to 255.
        high = (np.asarray(picture) >> 8).astype(np.uint8)
        return np.stack([high] * 3, axis=-1)
    picture = ImageOps.exif_transpose(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        white = Image.new("RGB", picture.size, (255, 255, 255))
        white.paste(picture, mask=picture.getchannel("A"))
        picture = white
    return np.asarray(picture.convert("RGB")).copy()


def is_lossy(name: str) -> bool:
    """Whether another decoder may round otherwise."""
    return name.endswith(".jpg") or name == "lossy.webp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check = parser.parse_args().check
    if check:
        # The encoders may write other bytes elsewhere: the committed files are read.
        made = {path.name: path.read_bytes() for path in sorted(FILES.iterdir())}
    else:
        made = files()
    also = {"pillow": Image.__version__} | {name: features.version(name) for name in ("libjpeg_turbo", "webp")}
    body = {"made_by": "tests/reference/pictures.py", "also_made_with": also}
    pixels = {name: decoded(data) for name, data in made.items()}
    tensors = {name: array for name, array in pixels.items() if is_lossy(name)}
    exact = {name: {"width": array.shape[1], "height": array.shape[0], "sum": checksum(array)}
             for name, array in pixels.items() if not is_lossy(name)}
    body |= {"exact": exact, "resized": resized(), "prepared": prepared()}
    if check:
        recorded = json.loads((goldenfile.DIRECTORY / "pictures.json").read_text())
        for key in ("exact", "resized", "prepared"):
            assert json.loads(json.dumps(body[key])) == recorded[key], key
        before = load_file(goldenfile.DIRECTORY / "pictures.safetensors")
        assert before.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert np.array_equal(before[name], tensor), name
        print("equal")
        return
    FILES.mkdir(exist_ok=True)
    for name, data in made.items():
        (FILES / name).write_bytes(data)
    goldenfile.write("pictures", body, tensors)


if __name__ == "__main__":
    main()
