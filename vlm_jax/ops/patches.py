"""Images as sequences of square patches, and back."""

from jaxtyping import Array, Shaped

from vlm_jax.errors import InputError


def patchify(images: Shaped[Array, "b h w c"], patch_size: int) -> Shaped[Array, "b n p"]:
    """Cuts images in patches: row-major over the image, and row, column, channel within a patch.

    p = patch_size^2 c, so that a product with a kernel [p, d] is the convolution with kernel and stride `patch_size`
    whose kernel [patch_size, patch_size, c, d] is reshaped to [p, d].

    Raises:
      InputError: the patch does not divide the image.
    """
    b, h, w, c = images.shape
    rows, columns = grid(h, w, patch_size)
    x = images.reshape(b, rows, patch_size, columns, patch_size, c)
    return x.swapaxes(2, 3).reshape(b, rows * columns, patch_size * patch_size * c)


def unpatchify(patches: Shaped[Array, "b n p"], patch_size: int, height: int, width: int) -> Shaped[Array, "b h w c"]:
    """The images [b, height, width, c] of which `patchify` made these patches.

    Raises:
      InputError: the patch does not divide the image.
    """
    rows, columns = grid(height, width, patch_size)
    x = patches.reshape(patches.shape[0], rows, columns, patch_size, patch_size, -1)
    return x.swapaxes(2, 3).reshape(patches.shape[0], height, width, -1)


def grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of patches.

    Raises:
      InputError: the patch does not divide the image.
    """
    for size in (height, width):
        if size % patch_size:
            nearest = max(size - size % patch_size, patch_size)
            raise InputError(
                f"patch_size {patch_size} does not divide image_size {size}: use a multiple, such as {nearest}"
            )
    return height // patch_size, width // patch_size
