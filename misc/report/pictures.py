"""Pictures of one image: heat maps, coloured masks, edges; (H, W, 3) uint8 arrays."""

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from misc.files.instancefile import Detections
from misc.imutils import IGNORE_LABEL

HEAT_OPACITY, MASK_OPACITY = 0.55, 0.6
UNSURE_COLOUR = (190, 190, 190)
STRIP_ROWS = 64
THUMBNAIL_SIDE, SHEET_HEIGHT, SHEET_GAP, CAPTION_HEIGHT = 300, 130, 8, 16
JPEG_QUALITY = 85

Captioned = tuple[str, np.ndarray]


def heat_overlay(image: np.ndarray, high_res: np.ndarray) -> np.ndarray:
    """The strongest class's CAM, (K, H, W) in [0, 1], as a heat map over the image; stronger is redder and denser."""
    from matplotlib import colormaps  # here, since steps that show pictures only where a flag asks for it import this

    strongest = high_res.max(axis=0) if len(high_res) else np.zeros(image.shape[:2], dtype=np.float32)
    strongest = strongest.clip(0, 1)
    heat = colormaps["turbo"](strongest)[..., :3] * 255
    opacity = HEAT_OPACITY * (0.25 + 0.75 * strongest[..., None])
    return (image * (1 - opacity) + heat * opacity).astype(np.uint8)


def mask_colours(mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Class ids (H, W) as plain colours, black background; unsure pixels (255) in grey."""
    colours = palette[mask]
    colours[mask == IGNORE_LABEL] = UNSURE_COLOUR
    return colours


def mask_overlay(image: np.ndarray, mask: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """Class ids (H, W) as colours over the darkened image; unsure pixels (255) in grey."""
    picture = np.empty_like(image)
    # In strips: blending takes many bytes a pixel, and a photograph has millions of pixels
    for top in range(0, len(image), STRIP_ROWS):
        rows = slice(top, top + STRIP_ROWS)
        part, colours = image[rows], mask_colours(mask[rows], palette)
        blended = part * (1 - MASK_OPACITY) + colours * MASK_OPACITY
        picture[rows] = np.where((mask[rows] != 0)[..., None], blended, part * 0.55)
    return picture


def instance_colours(detections: Detections, palette: np.ndarray) -> np.ndarray:
    """Instances (N, H, W), each in the colour of its rank, on black; fragments with score 0 in grey."""
    picture = np.zeros((*detections.masks.shape[1:], 3), dtype=np.uint8)
    for rank, index in enumerate(np.argsort(-detections.scores, kind="stable")):
        colour = palette[1 + rank % (IGNORE_LABEL - 1)] if detections.scores[index] > 0 else UNSURE_COLOUR
        picture[detections.masks[index]] = colour
    return picture


def edge_picture(edge: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Edges (h, w) in [0, 1] at stride 4 as a grey picture of `size`, dark where the edge is strong."""
    stride = -(-size[0] // edge.shape[0])
    full = np.kron(edge, np.ones((stride, stride), dtype=edge.dtype))[: size[0], : size[1]]
    return np.repeat(((1 - full.clip(0, 1)) * 255).astype(np.uint8)[..., None], 3, axis=2)


def data_uri(content: bytes, kind: str) -> str:
    """Bytes of an image file of a kind (`png`, `jpeg`), to be put into a page."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thumbnail_uri(picture: np.ndarray) -> str:
    """A picture, at most 300 pixels a side, as a JPEG to be put into a page."""
    image = Image.fromarray(picture)
    image.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return data_uri(buffer.getvalue(), "jpeg")


def contact_sheet(rows: Sequence[Sequence[Captioned]]) -> bytes:
    """Rows of captioned pictures, all of one height, as one PNG."""
    sized = []
    for row in rows:
        pictures = [(caption, Image.fromarray(picture)) for caption, picture in row]
        sized.append(
            [(c, i.resize((max(1, round(i.width * SHEET_HEIGHT / i.height)), SHEET_HEIGHT))) for c, i in pictures]
        )
    width = max(sum(image.width + SHEET_GAP for _, image in row) for row in sized) + SHEET_GAP
    step = SHEET_HEIGHT + CAPTION_HEIGHT + SHEET_GAP
    sheet = Image.new("RGB", (width, step * len(sized) + SHEET_GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(sized):
        left, top = SHEET_GAP, SHEET_GAP + number * step
        for caption, image in row:
            sheet.paste(image, (left, top))
            draw.text((left, top + SHEET_HEIGHT + 2), caption, fill="black")
            left += image.width + SHEET_GAP
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
