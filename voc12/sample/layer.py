"""A transparent layer on which one object is drawn in its own coordinates."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

from voc12.sample.paint import SUPERSAMPLE, noise, polygon, uniform

# Thinner strokes could cover less than half of every pixel and so drop out of the mask.
_THINNEST_STROKE = 1.4 * SUPERSAMPLE


class Layer:
    """Draws shapes given in a local frame (x right, y down, the object's foot at the origin, length about 1).

    rgb: float32 (height, width, 3) in [0, 1]; alpha: uint8 (height, width), 1 where something was drawn.
    Drawing methods take `inside`, a uint8 mask (such as `alpha`): only pixels where it is 1 are painted.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        origin: tuple[float, float],
        scale: float,
        angle: float = 0.0,
        flip: bool = False,
        shear: float = 0.0,
    ) -> None:
        self.rgb = np.zeros((*shape, 3), np.float32)
        self.alpha = np.zeros(shape, np.uint8)
        self.scale = scale
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]])
        self._matrix = matrix @ np.diag([-1.0 if flip else 1.0, 1.0]) * scale
        self._origin = np.array(origin, float)

    def drawn(self) -> np.ndarray:
        """A copy of the present alpha, to use as `inside` when more has been drawn."""
        return self.alpha.copy()

    def polygon(self, points: Sequence, colour: np.ndarray, inside: np.ndarray | None = None) -> None:
        """Filled polygon."""
        pixels = self._pixels(points)
        if inside is None:
            polygon(self.rgb, pixels, colour)
            polygon(self.alpha, pixels, 1.0)
            return
        # Only the bounding box is touched: clipped details are many and small.
        height, width = self.alpha.shape
        x0, y0 = np.clip(np.floor(pixels.min(0)).astype(int), 0, (width, height))
        x1, y1 = np.clip(np.ceil(pixels.max(0)).astype(int) + 1, 0, (width, height))
        if x0 >= x1 or y0 >= y1:
            return
        window = slice(y0, y1), slice(x0, x1)
        shape = np.zeros((y1 - y0, x1 - x0), np.uint8)
        polygon(shape, pixels - (x0, y0), 1.0)
        shape &= inside[window]
        self.rgb[window][shape > 0] = np.clip(colour, 0, 1)
        self.alpha[window] |= shape

    def ellipse(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        colour: np.ndarray,
        angle: float = 0.0,
        inside: np.ndarray | None = None,
    ) -> None:
        """Filled ellipse, turned by `angle` radians."""
        self.polygon(_on_ellipse(centre, radii, angle), colour, inside)

    def within_ellipse(self, centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> np.ndarray:
        """The mask of an ellipse, uint8 (height, width), to use as `inside`; draws nothing."""
        mask = np.zeros_like(self.alpha)
        polygon(mask, self._pixels(_on_ellipse(centre, radii, angle)), 1.0)
        return mask

    def box(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        colour: np.ndarray,
        radius: float = 0.0,
        inside: np.ndarray | None = None,
    ) -> None:
        """Filled rectangle, its corners rounded by `radius`."""
        if radius <= 0:
            self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour, inside)
            return
        quarter = np.linspace(0, math.pi / 2, 6)
        corners = (
            (x1 - radius, y1 - radius, 0.0),
            (x0 + radius, y1 - radius, math.pi / 2),
            (x0 + radius, y0 + radius, math.pi),
            (x1 - radius, y0 + radius, 1.5 * math.pi),
        )
        points = [
            (cx + radius * math.cos(a + turn), cy + radius * math.sin(a + turn))
            for cx, cy, turn in corners
            for a in quarter
        ]
        self.polygon(points, colour, inside)

    def line(
        self,
        start: Sequence,
        end: Sequence,
        width: float,
        colour: np.ndarray,
        end_width: float | None = None,
        inside: np.ndarray | None = None,
    ) -> None:
        """Straight stroke, tapering to `end_width`; parts of the outline never get too thin for the mask."""
        p, q = np.array(start, float), np.array(end, float)
        end_width = width if end_width is None else end_width
        if inside is None:
            thinnest = _THINNEST_STROKE / self.scale
            width, end_width = max(width, thinnest), max(end_width, thinnest)
        along = q - p
        across = np.array([-along[1], along[0]]) / (np.hypot(*along) + 1e-9) / 2
        self.polygon(
            [p + across * width, q + across * end_width, q - across * end_width, p - across * width],
            colour,
            inside,
        )

    def blend(self, weight: np.ndarray, colour: np.ndarray, inside: np.ndarray) -> None:
        """Mix a colour into the pixels of `inside` by `weight`, float (height, width) in [0, 1]."""
        strength = (weight * inside)[..., None]
        self.rgb += (colour - self.rgb) * strength

    def noise(
        self,
        rng: np.random.Generator,
        cell: float,
        octaves: int = 2,
        stretch: tuple[float, float] = (1.0, 1.0),
    ) -> np.ndarray:
        """Value noise over the layer, `cell` in local units."""
        return noise(rng, *self.alpha.shape, max(self.scale * cell, 2.0), octaves, stretch)

    def finish(self, rng: np.random.Generator, sun: tuple[float, float], grain: float, relief: float = 0.35) -> None:
        """Drop loose pieces, then shade: darker towards the rim, lighter on the sunny side, a grainy surface.

        `sun` is the direction the light comes from as (x, y), y negative for light from above.
        """
        self._keep_largest_piece()
        # The blur is wide and smooth, so a quarter of the resolution is enough for it.
        height, width = self.alpha.shape
        small = cv2.resize(self.alpha.astype(np.float32), (width // 4, height // 4), interpolation=cv2.INTER_AREA)
        sigma = max(1.0, self.scale * 0.04 / 4)
        small = cv2.GaussianBlur(small, (0, 0), sigma)
        slope = sun[0] * cv2.Sobel(small, cv2.CV_32F, 1, 0) + sun[1] * cv2.Sobel(small, cv2.CV_32F, 0, 1)
        light = 1 - relief + relief * np.clip(small * 1.35 - 0.2, 0, 1)
        light -= 0.22 * np.clip(slope * sigma, -1, 1)
        light = cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
        light *= 1 + grain * 2 * (noise(rng, height, width, uniform(rng, 4, 10), 2) - 0.5)
        self.rgb = np.clip(self.rgb * light[..., None], 0, 1)

    def _pixels(self, points: Sequence) -> np.ndarray:
        """Local points as pixel positions, float (n, 2)."""
        return np.asarray(points, float) @ self._matrix.T + self._origin

    def _keep_largest_piece(self) -> None:
        """Make the alpha one connected piece: what the picture shows is exactly what the mask will say."""
        count, labels, stats, _ = cv2.connectedComponentsWithStats(self.alpha, connectivity=8)
        if count > 2:
            largest = 1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))
            self.alpha = (labels == largest).astype(np.uint8)


def _on_ellipse(centre: tuple[float, float], radii: tuple[float, float], angle: float) -> np.ndarray:
    """Points on an ellipse turned by `angle` radians, float (32, 2)."""
    t = np.linspace(0, 2 * math.pi, 32, endpoint=False)
    x, y = radii[0] * np.cos(t), radii[1] * np.sin(t)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.stack([centre[0] + cos * x - sin * y, centre[1] + sin * x + cos * y], 1)
