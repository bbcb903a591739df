"""Pictures of one image: heat maps, coloured masks, edges; (H, W, 3) uint8 arrays."""

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from PIL import Image, ImageDraw

from misc.files.camfile import MAP_STRIDE
from misc.files.instancefile import Detections
from misc.imutils import IGNORE_LABEL
from misc.report.fonts import font

HEAT_OPACITY, MASK_OPACITY = 0.55, 0.6
UNSURE_COLOUR = (190, 190, 190)
STRIP_ROWS = 64
THUMBNAIL_SIDE, SHEET_HEIGHT, SHEET_WIDTH, SHEET_GAP, CAPTION_HEIGHT = 300, 130, 520, 8, 16
JPEG_QUALITY = 85

TEXT_SHARE, SMALLEST_TEXT, LARGEST_TEXT = 1 / 32, 13, 44
"""Height of the text beside a picture: a share of its width, in pixels at least and at most this."""

Captioned = tuple[str, np.ndarray]


def heat_overlay(image: np.ndarray, high_res: np.ndarray) -> np.ndarray:
    """The strongest class's CAM, (K, H, W) in [0, 1], as a heat map over the image; stronger is redder and denser."""

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


def maps_overlay(image: np.ndarray, high_res: np.ndarray, keys: Sequence[int], palette: np.ndarray) -> np.ndarray:
    """The strongest of the CAMs (K, H, W) of the classes `keys`, in its class's colour, denser where it is stronger."""
    if len(keys) == 0:
        return image
    colours = palette[np.asarray(keys) + 1][high_res.argmax(axis=0)]
    opacity = MASK_OPACITY * high_res.max(axis=0).clip(0, 1)[..., None]
    return (image * (1 - opacity) + colours * opacity).astype(np.uint8)


def _text_size(width: int) -> int:
    return int(np.clip(width * TEXT_SHARE, SMALLEST_TEXT, LARGEST_TEXT))


def with_legend(picture: np.ndarray, colours: Mapping[str, Sequence[int]]) -> np.ndarray:
    """The picture, and below it the names and their colours in as many lines as they take; no names: the picture alone.

    The picture's pixels stay as they are; one that is too narrow for a name gets a white margin on its right.
    """
    if not colours:
        return picture
    height, width = picture.shape[:2]
    size = _text_size(width)
    line = round(1.6 * size)
    lengths = {name: line + round(font(name, size).getlength(name)) + size for name in colours}
    width = max(width, *lengths.values())
    places, left, row = {}, 0, 0
    for name, length in lengths.items():
        if left + length > width:
            left, row = 0, row + 1
        places[name] = left, height + row * line
        left += length
    canvas = Image.new("RGB", (width, height + (row + 1) * line), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw, margin = ImageDraw.Draw(canvas), round(0.3 * size)
    for name, (x, y) in places.items():
        box = (x + margin, y + margin, x + margin + size, y + margin + size)
        draw.rectangle(box, fill=tuple(map(int, colours[name])), outline="black")
        draw.text((x + line, y + line // 2), name, fill="black", font=font(name, size), anchor="lm")
    return np.asarray(canvas)


def side_by_side(pictures: Sequence[Captioned]) -> np.ndarray:
    """Captioned pictures of one size in a row, each with its caption above it."""
    height, width = pictures[0][1].shape[:2]
    size = _text_size(width)
    top = round(1.6 * size)
    canvas = Image.new("RGB", ((width + SHEET_GAP) * len(pictures) - SHEET_GAP, top + height), "white")
    draw = ImageDraw.Draw(canvas)
    for number, (caption, picture) in enumerate(pictures):
        left = number * (width + SHEET_GAP)
        draw.text((left, top // 2), caption, fill="black", font=font(caption, size), anchor="lm")
        canvas.paste(Image.fromarray(picture), (left, top))
    return np.asarray(canvas)


def instance_colours(detections: Detections, palette: np.ndarray) -> np.ndarray:
    """Instances (N, H, W), each in the colour of its rank, on black; fragments with score 0 in grey."""
    picture = np.zeros((*detections.masks.shape[1:], 3), dtype=np.uint8)
    for rank, index in enumerate(np.argsort(-detections.scores, kind="stable")):
        colour = palette[1 + rank % (IGNORE_LABEL - 1)] if detections.scores[index] > 0 else UNSURE_COLOUR
        picture[detections.masks[index]] = colour
    return picture


def edge_picture(edge: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Edges (h, w) in [0, 1] at stride 4 as a grey picture of `size`, dark where the edge is strong."""
    full = np.kron(edge, np.ones((MAP_STRIDE, MAP_STRIDE), dtype=edge.dtype))[: size[0], : size[1]]
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


def _sized(picture: Image.Image) -> Image.Image:
    scale = min(SHEET_HEIGHT / picture.height, SHEET_WIDTH / picture.width)
    return picture.resize((max(1, round(picture.width * scale)), max(1, round(picture.height * scale))))


def contact_sheet(rows: Sequence[Sequence[Captioned]]) -> bytes:
    """Rows of captioned pictures as one PNG, all of one height but for those that would be wider than `SHEET_WIDTH`."""
    sized = [[(caption, _sized(Image.fromarray(picture))) for caption, picture in row] for row in rows]
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
