"""Small images of many kinds, encoded: plain ones, which DALI may see, and rarer ones."""

import io

import numpy as np
from PIL import Image


def picture(mode="RGB", size=(40, 30)):
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    rgb = np.stack([x * 6, y * 8, (x + y) * 3], -1).astype(np.uint8)
    return Image.fromarray(rgb).convert(mode)


def saved(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


EXIF = Image.Exif()
EXIF[0x0112] = 6
PLAIN = {
    "baseline": saved(picture(), "JPEG"),
    "progressive": saved(picture(), "JPEG", progressive=True),
    "grey": saved(picture("L"), "JPEG"),
    "4:4:4": saved(picture(), "JPEG", subsampling=0),
    "exif and comment": saved(picture(), "JPEG", exif=EXIF, comment=b"\xff\xd9" * 9),
    "png": saved(picture(), "PNG"),
    "png with text": saved(picture(), "PNG", exif=EXIF),
    "grey png": saved(picture("L"), "PNG"),
    "palette": saved(picture("P"), "PNG"),
    "rgba": saved(picture("RGBA"), "PNG"),
    "webp": saved(picture(), "WEBP", quality=80),
    "lossless webp": saved(picture(), "WEBP", lossless=True),
    "webp with exif": saved(picture(), "WEBP", exif=EXIF),
}
RARE = {
    "cmyk": saved(picture("CMYK"), "JPEG"),
    "gif": saved(picture("P"), "GIF"),
    "bmp": saved(picture(), "BMP"),
    "tiff": saved(picture(), "TIFF"),
    "16 bit png": saved(Image.fromarray((np.arange(1200) * 50).reshape(30, 40).astype(np.uint16)), "PNG"),
    "1 bit png": saved(picture("1"), "PNG"),
    "animated png": saved(picture(), "PNG", save_all=True, append_images=[picture("L").convert("RGB")]),
    "animated webp": saved(picture(), "WEBP", save_all=True, append_images=[picture("L").convert("RGB")]),
    "webp with alpha": saved(Image.merge("RGBA", (*picture().split(), picture("L"))), "WEBP"),
    "text": b"no picture at all",
    "nothing": b"",
    "two bytes": b"\xff\xd8",
}
