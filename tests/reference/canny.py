"""Records the edges that OpenCV finds in the pictures of given.py.

    python canny.py            writes canny
    python canny.py --check    compares with the committed files instead of writing them
"""

import argparse
import sys

import cv2
import numpy as np

import given
import goldenfile

# Pixels across and down, and the thresholds.
CASES = {
    "usual": (112, 80, 100.0, 200.0),
    "tall": (48, 131, 50.0, 200.0),
    "fractions": (61, 57, 20.7, 90.2),
    "all": (40, 33, 0.0, 0.0),
    "few": (72, 64, 250.0, 400.0),
    "none": (40, 40, 3000.0, 4000.0),
    "column": (1, 29, 10.0, 30.0),
    "row": (31, 1, 10.0, 30.0),
    "pixel": (1, 1, 0.0, 0.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files")
    options = parser.parse_args()
    tensors, described = {}, {}
    for name, (width, height, low, high) in CASES.items():
        picture = np.asarray(given.picture(width, height))
        edges = cv2.Canny(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), low, high)
        tensors[name], described[name] = edges, {"width": width, "height": height, "low": low, "high": high}
        print(f"{name}: {np.count_nonzero(edges)} of {edges.size} pixels")
    body = {"made_by": "tests/reference/canny.py", "opencv": cv2.__version__, "cases": described}
    problems = goldenfile.compare("canny", body, tensors) if options.check else goldenfile.write("canny", body, tensors)
    print("\n".join(problems or []), end="\n" if problems else "")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
