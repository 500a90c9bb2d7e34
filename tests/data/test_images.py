import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageEnhance, JpegImagePlugin

from vlm_jax import errors
from vlm_jax.data import colours, decoding, images, pipeline, records, text


def smooth(height: int, width: int) -> np.ndarray:
    """An image that JPEG keeps nearly as it is: red grows downwards, green to the right."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 255 // height, x * 255 // width, np.full_like(x, 128)], -1).astype(np.uint8)


def png_of_zeros(width: int, height: int) -> bytes:
    """A file of kilobytes with as many black and white pixels as asked for."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    squeezed = zlib.compressobj(9)
    data = b"".join(squeezed.compress(bytes(1 + width // 8)) for _ in range(height)) + squeezed.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("form", ["PNG", "WEBP", "BMP", "TIFF"])
def test_lossless_formats_decode_exactly(form, encode_image, noise):
    pixels = noise(0, 5, 7)
    np.testing.assert_array_equal(images.decode(encode_image(pixels, form, **{"lossless": True} if form == "WEBP" else {})), pixels)


def test_grey_and_bilevel_become_rgb(encode_image):
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    np.testing.assert_array_equal(images.decode(encode_image(grey)), np.repeat(grey[..., None], 3, -1))
    bilevel = Image.fromarray(grey > 150)
    np.testing.assert_array_equal(images.decode(encode_image(bilevel))[..., 0], [[0, 0], [255, 255]])


def test_sixteen_bit_grey_keeps_its_upper_byte(encode_image):
    grey = np.array([[0, 255, 256], [0x1234, 0x8000, 0xFFFF]], np.uint16)
    for form in ("PNG", "TIFF"):
        decoded = images.decode(encode_image(grey, form))
        np.testing.assert_array_equal(decoded, np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, -1))


def test_alpha_is_laid_on_white(encode_image):
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 0, 0, 51]]], np.uint8)
    np.testing.assert_array_equal(images.decode(encode_image(rgba)), [[[10, 20, 30], [255, 255, 255], [204, 204, 204]]])
    grey_alpha = Image.fromarray(np.array([[[100, 255], [100, 0]]], np.uint8), "LA")
    np.testing.assert_array_equal(images.decode(encode_image(grey_alpha))[..., 0], [[100, 255]])


def test_a_palette_with_a_transparent_colour_is_laid_on_white(encode_image):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    data = encode_image(image, transparency=1)
    np.testing.assert_array_equal(images.decode(data), [[[10, 20, 30], [255, 255, 255], [70, 80, 90]]])
    np.testing.assert_array_equal(images.decode(encode_image(image, "GIF"))[0, 1], [40, 50, 60])


def test_a_transparent_colour_of_an_rgb_png_is_white(encode_image):
    pixels = np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)
    np.testing.assert_array_equal(images.decode(encode_image(pixels, transparency=(4, 5, 6))), [[[1, 2, 3], [255] * 3]])


def test_cmyk_jpeg_has_its_colours(encode_image):
    cmyk = Image.fromarray(smooth(32, 32)).convert("CMYK")
    decoded = images.decode(encode_image(cmyk, "JPEG", quality=95)).astype(int)
    assert np.abs(decoded - smooth(32, 32)).max() < 12


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_exif_orientation_is_undone(form, orientation, encode_image):
    upright = smooth(32, 48)
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.swapaxes(0, 1),
        6: np.rot90(upright), 7: upright[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(upright, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95} if form == "JPEG" else {"lossless": True} if form == "WEBP" else {}
    data = encode_image(np.ascontiguousarray(turned[orientation]), form, exif=exif, **options)
    decoded = images.decode(data).astype(int)
    assert decoded.shape == (32, 48, 3)
    assert np.abs(decoded - upright).max() < 12


def test_floating_point_images_are_refused(encode_image):
    with pytest.raises(records.RecordError, match="floating point"):
        images.decode(encode_image(np.zeros((2, 2), np.float32), "TIFF"))


def test_a_bomb_is_refused_before_it_is_decoded():
    for side in (12000, 20000):
        bomb = png_of_zeros(side, side)
        assert len(bomb) < 100_000
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(records.RecordError, match="pixels"):
                images.decode(bomb)
    with pytest.raises(records.RecordError, match="16 x 16 pixels, more than the limit of 255"):
        images.decode(png_of_zeros(16, 16), max_pixels=255)
    assert images.decode(png_of_zeros(16, 16), max_pixels=256).shape == (16, 16, 3)


def test_a_strip_that_would_become_enormous_is_refused(encode_image):
    strip = encode_image(np.zeros((1, 40_000, 3), np.uint8))
    with pytest.raises(records.RecordError, match="too long for its width"):
        images.Transform(size=224)(strip)


def test_what_is_no_image_is_refused(encode_image, noise):
    whole = encode_image(noise(0, 64, 64), "JPEG")
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n"
    ppm = b"P6 1 1 255 abc"  # Pillow reads it, and many formats more; fewer decoders are fewer ways in
    for data in (b"", b"not an image", whole[: len(whole) // 2], whole[:20], eps, ppm):
        with pytest.raises(records.RecordError, match="cannot be decoded"):
            images.decode(data)


@pytest.mark.parametrize("height,width", [(30, 50), (50, 30), (20, 20), (7, 9), (100, 101)])
@pytest.mark.parametrize("resize", ["shortest", "squash"])
@pytest.mark.parametrize("crop", ["center", "random", "random_resized"])
def test_every_transform_gives_the_size_asked_for(height, width, resize, crop, encode_image, noise):
    transform = images.Transform(size=16, resize=resize, resize_to=20, crop=crop, flip=0.5, min_scale=0.3)
    pixels = transform(encode_image(noise(1, height, width)), np.random.default_rng(0))
    assert pixels.shape == (16, 16, 3)
    assert pixels.dtype == np.uint8


def test_the_size_itself_passes_unchanged(encode_image, noise):
    pixels = noise(2, 16, 16)
    np.testing.assert_array_equal(images.Transform(size=16)(encode_image(pixels)), pixels)


def test_shortest_keeps_the_aspect_ratio_and_squash_does_not(encode_image):
    pixels = smooth(40, 80)
    data = encode_image(pixels)
    shortest = images.Transform(size=20)(data)
    squash = images.Transform(size=20, resize="squash")(data)
    reference = np.asarray(Image.fromarray(pixels).resize((40, 20), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(shortest, reference[:, 10:30])
    np.testing.assert_array_equal(squash, np.asarray(Image.fromarray(pixels).resize((20, 20), Image.Resampling.BICUBIC)))


def test_shrinking_is_antialiased(encode_image):
    lines = np.zeros((64, 64, 3), np.uint8)
    lines[:, ::2] = 255
    for interpolation in ("bicubic", "bilinear"):
        shrunk = images.Transform(size=16, interpolation=interpolation)(encode_image(lines)).astype(int)
        assert np.abs(shrunk[:, 2:-2] - 127).max() <= 4


def test_random_crops_are_windows_of_the_resized_image_and_all_occur(encode_image, noise):
    pixels = noise(3, 6, 6)
    transform = images.Transform(size=4, resize_to=6, crop="random")
    data = encode_image(pixels)
    windows = {pixels[y : y + 4, x : x + 4].tobytes() for y in range(3) for x in range(3)}
    seen = {transform(data, np.random.default_rng(seed)).tobytes() for seed in range(100)}
    assert seen == windows


def test_random_resized_takes_the_share_it_is_told(encode_image):
    data = encode_image(smooth(255, 255))
    small = images.Transform(size=32, crop="random_resized", min_scale=0.05)
    spans = []
    for seed in range(60):
        pixels = small(data, np.random.default_rng(seed)).astype(int)
        height, width = pixels[-1, 0, 0] - pixels[0, 0, 0], pixels[0, -1, 1] - pixels[0, 0, 1]
        spans.append(height * width / 255**2)
    assert min(spans) < 0.2
    assert max(spans) > 0.7
    whole = images.Transform(size=32, crop="random_resized", min_scale=1.0)(data, np.random.default_rng(0)).astype(int)
    assert whole[-1, 0, 0] - whole[0, 0, 0] > 235


def test_flip_happens_as_often_as_asked(encode_image, noise):
    pixels = noise(4, 8, 8)
    data = encode_image(pixels)
    for flip, expected in ((0.0, 0), (1.0, 200), (0.5, 100)):
        transform = images.Transform(size=8, flip=flip)
        count = sum(
            np.array_equal(transform(data, np.random.default_rng(seed)), pixels[:, ::-1]) for seed in range(200)
        )
        assert abs(count - expected) <= 30 * (flip == 0.5)


def test_a_transform_is_a_function_of_the_generator(encode_image, noise):
    data = encode_image(noise(5, 40, 30))
    transform = images.Transform(size=16, resize_to=20, crop="random_resized", min_scale=0.2, flip=0.5)
    first = [transform(data, np.random.default_rng(seed)).tobytes() for seed in range(8)]
    assert first == [transform(data, np.random.default_rng(seed)).tobytes() for seed in range(8)]
    assert len(set(first)) == 8


@pytest.mark.parametrize("crop", ["center", "random", "random_resized"])
def test_evaluation_keeps_the_resize_and_crops_the_center(crop, encode_image, noise):
    pixels = noise(6, 20, 26)
    transform = images.Transform(size=16, resize_to=20, crop=crop, flip=0.5)
    expected = pixels[2:18, 5:21]
    np.testing.assert_array_equal(transform.evaluation()(encode_image(pixels)), expected)
    np.testing.assert_array_equal(transform.evaluation()(encode_image(pixels), np.random.default_rng(0)), expected)
    np.testing.assert_array_equal(transform(encode_image(pixels)), expected)


def test_jpegs_far_larger_than_wanted_are_decoded_small_and_nearly_the_same(encode_image, noise, monkeypatch):
    """Noise of eight pixels a grain: much of it is lost when fewer pixels than wanted are decoded."""
    grains = Image.fromarray(noise(7, 64, 96)).resize((768, 512), Image.Resampling.BICUBIC)
    data = encode_image(grains, "JPEG", quality=95)
    drafts = []
    draft = JpegImagePlugin.JpegImageFile.draft
    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "draft", lambda *a: drafts.append(draft(*a)))
    for size, scale in ((300, 1), (100, 2), (40, 4)):
        fast = images.Transform(size=size)(data).astype(int)
        whole = Image.fromarray(images.decode(data)).resize((round(768 * size / 512), size), Image.Resampling.BICUBIC)
        left = (whole.width - size) // 2
        assert np.abs(fast - np.asarray(whole)[:, left : left + size].astype(int)).mean() < 2.5
        assert (drafts.pop() or ("", (0, 0, 768, 512)))[1][2] == pytest.approx(768 / scale)
    assert not drafts


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"size": 0}, "image.size 0"),
        ({"size": 64, "resize_to": 48}, "image.resize_to 48 is below image.size 64"),
        ({"min_scale": 0.0}, "image.min_scale 0.0"),
        ({"flip": 1.5}, "image.flip 1.5"),
        ({"max_pixels": 0}, "image.max_pixels 0"),
        ({"grayscale": -0.1}, "image.grayscale -0.1"),
        ({"aspect": (1.3, 0.7)}, "image.aspect .* the smaller ratio first"),
        ({"fill": (0, 0, 256)}, "image.fill"),
    ],
)
def test_fields_that_cannot_work_are_refused_by_name(fields, message):
    with pytest.raises(errors.InputError, match=message):
        images.Transform(**fields)


def test_the_longer_side_is_rounded_down_as_torchvision_does():
    """640 x 480 at 32 is 42 x 32, not 43."""
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    resized = Image.fromarray(pixels).resize((42, 32), Image.Resampling.BICUBIC).crop((5, 0, 37, 32))
    np.testing.assert_array_equal(images.Transform(size=32)(buffer.getvalue()), np.asarray(resized))


def test_longest_keeps_the_whole_image_in_the_middle_of_its_fill(encode_image):
    pixels = smooth(30, 47)
    whole = np.asarray(Image.fromarray(pixels).resize((20, 13), Image.Resampling.BICUBIC))  # 30 x 20 / 47 = 12.8
    transform = images.Transform(size=20, resize="longest", fill=(1, 2, 3), crop="random", flip=0.5)
    for padded in (transform(encode_image(pixels)), transform.evaluation()(encode_image(pixels), np.random.default_rng(0))):
        np.testing.assert_array_equal(padded[3:16], whole)
        assert (padded[:3] == (1, 2, 3)).all() and (padded[16:] == (1, 2, 3)).all()
    upright = images.Transform(size=20, resize="longest")(encode_image(pixels.swapaxes(0, 1).copy()))
    assert not upright[:, :3].any() and not upright[:, 16:].any() and upright[:, 3:16].any((0, 2)).all()
    assert images.Transform(size=8, resize="longest")(encode_image(np.full((1, 500, 3), 255, np.uint8))).any()


def test_a_random_crop_of_longest_moves_the_image_in_its_padding(encode_image):
    white = encode_image(np.full((10, 20, 3), 255, np.uint8))
    transform = images.Transform(size=12, resize="longest", crop="random")
    tops = {int(transform(white, np.random.default_rng(seed)).any((1, 2)).argmax()) for seed in range(80)}
    assert tops == set(range(7))  # 12 x 6 in 12 x 12


def test_what_is_not_asked_for_draws_nothing(encode_image, noise):
    """The draws of a transform are those of its crop and its flip, in this order: older runs go on with the same pixels."""
    pixels = noise(8, 20, 20)
    transform = images.Transform(size=16, resize_to=20, crop="random", flip=0.5)
    for seed in range(20):
        rng, mine = np.random.default_rng(seed), np.random.default_rng(seed)
        found = transform(encode_image(pixels), rng)
        left, top = int(mine.integers(5)), int(mine.integers(5))
        expected = pixels[top : top + 16, left : left + 16]
        np.testing.assert_array_equal(found, expected[:, ::-1] if mine.random() < 0.5 else expected)
        assert rng.bit_generator.state == mine.bit_generator.state


def test_aspect_limits_the_part_that_is_taken(encode_image):
    """Red grows downwards, green to the right: how much of each is seen gives the shape of the part."""
    data = encode_image(smooth(255, 255))
    transform = images.Transform(size=32, crop="random_resized", min_scale=0.2, aspect=(2.0, 3.0))
    for seed in range(20):
        pixels = transform(data, np.random.default_rng(seed)).astype(int)
        assert 1.7 < np.ptp(pixels[0, :, 1]) / np.ptp(pixels[:, 0, 0]) < 3.4


@pytest.mark.parametrize(
    "field,enhance",
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_jitter_is_an_enhancement_by_a_factor_around_one(field, enhance, encode_image, noise):
    pixels = noise(9, 16, 16)
    transform = images.Transform(size=16, jitter=colours.Jitter(**{field: 0.4}))
    for seed in range(5):
        rng = np.random.default_rng(seed)
        rng.random(), rng.permutation(4)
        expected = enhance(Image.fromarray(pixels)).enhance(rng.uniform(0.6, 1.4))
        np.testing.assert_array_equal(transform(encode_image(pixels), np.random.default_rng(seed)), np.asarray(expected))
    np.testing.assert_array_equal(transform(encode_image(pixels)), pixels)
    np.testing.assert_array_equal(transform.evaluation()(encode_image(pixels), np.random.default_rng(0)), pixels)


def test_hue_turns_around_the_circle():
    wheel = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], np.uint8))
    turned = np.asarray(colours.turn_hue(wheel, 1 / 3)).astype(int)
    assert np.abs(turned - [[[0, 255, 0], [0, 0, 255], [255, 0, 0], [90, 90, 90]]]).max() <= 6  # 85 of 256 steps
    back = np.asarray(colours.turn_hue(wheel, -1 / 3)).astype(int)
    assert np.abs(back - [[[0, 0, 255], [255, 0, 0], [0, 255, 0], [90, 90, 90]]]).max() <= 6


def test_jitter_and_loss_of_colours_happen_as_often_as_asked(encode_image, noise):
    pixels = noise(10, 8, 8)
    data = encode_image(pixels)
    grey = np.repeat(np.asarray(Image.fromarray(pixels).convert("L"))[..., None], 3, -1)
    rngs = [np.random.default_rng(seed) for seed in range(100)]
    rare = images.Transform(size=8, jitter=colours.Jitter(brightness=0.5, hue=0.1, probability=0.3))
    assert 15 <= sum(not np.array_equal(rare(data, rng), pixels) for rng in rngs) <= 45
    lost = images.Transform(size=8, grayscale=0.3)
    assert 15 <= sum(np.array_equal(lost(data, rng), grey) for rng in rngs) <= 45


class TestSimplejpeg:
    """The faster decoder gives the pixels of the other."""

    fast = pytest.fixture(lambda self: pytest.importorskip("simplejpeg"))

    @pytest.mark.parametrize("options", [{"quality": 60}, {"quality": 90, "subsampling": 0}, {"quality": 80, "progressive": True}])
    @pytest.mark.parametrize("side", [(64, 96), (333, 500), (257, 129)])
    def test_pixels_are_equal_at_every_scale(self, options, side, encode_image, fast):
        data = encode_image(smooth(*side), "JPEG", **options)
        for draft in (0, 16, 40, 100, 400):
            ours, theirs = (np.asarray(decoding.load(data, draft=draft, decoder=name)) for name in ("simplejpeg", "pillow"))
            np.testing.assert_array_equal(ours, theirs)

    def test_it_decodes_in_training_only(self, encode_image, fast, monkeypatch):
        calls, decode = [], fast.decode_jpeg
        monkeypatch.setattr(fast, "decode_jpeg", lambda *a, **k: calls.append(1) or decode(*a, **k))
        data = encode_image(smooth(40, 40), "JPEG")
        transform = images.Transform(size=16, decoder="simplejpeg")
        transform(data), transform.evaluation()(data, np.random.default_rng(0))
        assert not calls
        transform(data, np.random.default_rng(0))
        assert calls

    def test_grey_cmyk_turned_and_damaged_files_are_as_with_pillow(self, encode_image, fast):
        exif = Image.Exif()
        exif[0x0112] = 6
        turned = encode_image(smooth(32, 48), "JPEG", exif=exif)
        grey = encode_image(smooth(32, 48)[..., 0].copy(), "JPEG")
        cmyk = encode_image(Image.fromarray(smooth(32, 48)).convert("CMYK"), "JPEG")
        for data in (turned, grey, cmyk, grey[:-2] + b"\0\0\0" + grey[-2:]):
            ours, theirs = (np.asarray(decoding.load(data, decoder=name)) for name in ("simplejpeg", "pillow"))
            np.testing.assert_array_equal(ours, theirs)
        assert np.asarray(decoding.load(turned, decoder="simplejpeg")).shape == (48, 32, 3)
        for data in (turned[: len(turned) // 2], turned[:30], b"\xff\xd8\xff"):
            with pytest.raises(records.RecordError, match="cannot be decoded"):
                decoding.load(data, decoder="simplejpeg")

    def test_the_limit_of_pixels_holds_before_decoding(self, encode_image, fast, monkeypatch):
        monkeypatch.setattr(fast, "decode_jpeg", lambda *a, **k: pytest.fail("decoded"))
        with pytest.raises(records.RecordError, match="more than the limit of 1023"):
            decoding.load(encode_image(smooth(32, 32), "JPEG"), 1023, decoder="simplejpeg")


def test_the_decoder_is_settled_at_the_start_and_part_of_the_data(monkeypatch):
    monkeypatch.setattr(decoding, "simplejpeg", object())
    settled = images.Transform(decoder="auto").prepared()
    assert settled.decoder == "simplejpeg" and settled.fingerprint == ", decoded by simplejpeg"
    assert images.Transform().prepared().fingerprint == "" and settled.evaluation().decoder == "pillow"
    monkeypatch.setattr(decoding, "simplejpeg", None)
    assert images.Transform(decoder="auto").prepared().decoder == "pillow"
    with pytest.raises(errors.InputError, match=r"image.decoder simplejpeg: not installed; pip install 'vlm_jax\[fast\]'"):
        settled.prepared()


@pytest.mark.parametrize(
    "fields,message",
    [({"brightness": -1.0}, "jitter.brightness -1.0"), ({"hue": 0.6}, "jitter.hue 0.6"), ({"probability": 2.0}, "jitter.probability 2.0")],
)
def test_jitter_that_cannot_work_is_refused_by_name(fields, message):
    with pytest.raises(errors.InputError, match=message):
        colours.Jitter(**fields)


def test_data_decoded_otherwise_are_other_data(pair_tars, piece_model, monkeypatch):
    monkeypatch.setattr(decoding, "simplejpeg", object())

    def described(decoder):
        stream = pipeline.Pairs(pair_tars, pair_tars, text.Tokenizer(piece_model, 16), images.Transform(16, decoder=decoder))
        return stream.prepared().describe().fingerprint

    assert described("auto") == described("simplejpeg") == described("pillow") + ", decoded by simplejpeg"
    monkeypatch.setattr(decoding, "simplejpeg", None)
    assert described("auto") == described("pillow"), "a run that began with the other is told so when it goes on"
