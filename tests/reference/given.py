"""The picture and the mask that requests begin with, by a formula of whole numbers: tests/support/given.rs is the same one."""

import numpy as np
from PIL import Image


def picture(width: int, height: int) -> Image.Image:
    """Waves of another length for each colour, and a rectangle with hard edges."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    waves = np.abs((x * (5 + 2 * c) + y * (3 + 4 * c) + 90 * c) % 510 - 255)
    inside = (x >= width // 5) & (x < width // 2) & (y >= height // 4) & (y < height * 3 // 5)
    return Image.fromarray(np.where(inside, 250 - 110 * c, waves).astype(np.uint8))


def mask(width: int, height: int) -> Image.Image:
    """White in a rectangle, whose edges do not lie between two latents. Its left and its upper part are the darkest gray that counts as
    white, and around it lies the lightest that counts as black."""
    left, right, top, bottom = width * 4 // 11 | 1, width * 8 // 9 | 1, height // 7 | 1, height * 5 // 8 | 1
    y, x, _ = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    ring = (x >= left - 5) & (x < right + 5) & (y >= top - 5) & (y < bottom + 5)
    inside = (x >= left) & (x < right) & (y >= top) & (y < bottom)
    deep = (x >= left + 9) & (x < right) & (y >= top + 9) & (y < bottom)
    return Image.fromarray(np.select([deep, inside, ring], [255, 128, 127], 0).astype(np.uint8))
