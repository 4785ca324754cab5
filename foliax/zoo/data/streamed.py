"""Data sets too large for memory: images are read, cut to one size and normalised on demand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8
from PIL import Image

from foliax.zoo.data.dataset import Constant, Normalised, check_split, normalise

_CROP = 0.875  # side of the crop over the shorter side, as ImageNet networks are evaluated


@dataclass(frozen=True, eq=False, repr=False)
class StreamedDataset(Normalised):
    """Colour images that stay on disk, and labels, split into training and test.

    Images are scaled so that the crop is 0.875 of their shorter side, and cut to the square in the
    middle; nothing is done at random. A network with a normalisation of its own takes
    `dataclasses.replace(dataset, mean=..., std=...)`.

    Attributes:
        name: The name that `load` knows.
        sources: For "train" and "test" what gives examples by index: mappings with "image", bytes
            (H, W, channels), and "label".
        size: Side of the square images.
        mean: What is subtracted of pixels in [0, 1], one a channel.
        std: What is divided by, one a channel.
        num_classes: C.
        class_names: C names.
        limits: The least and the greatest value before normalisation.
    """

    name: str
    sources: Mapping[str, Sequence[Any]] = field(repr=False)
    size: int
    mean: Constant
    std: Constant
    num_classes: int
    class_names: tuple[str, ...]
    limits: tuple[float, float] = (0.0, 1.0)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image."""
        return (self.size, self.size, 3)

    def length(self, split: str = "train") -> int:
        """Return how many images the split has."""
        check_split(split)
        return len(self.sources[split])

    def take(
        self, indices: Sequence[int] | Int[np.ndarray, " b"], *, split: str = "train"
    ) -> tuple[Float[np.ndarray, "b ..."], Int[np.ndarray, " b"]]:
        """Return the images at these places of the split, normalised, and their labels."""
        check_split(split)
        examples = [self.sources[split][int(index)] for index in indices]
        images = [centre_crop(np.asarray(example["image"]), self.size) for example in examples]
        labels = np.array([int(example["label"]) for example in examples], np.int32)
        if not images:
            return np.zeros((0, *self.shape), np.float32), labels
        return normalise(np.stack(images), self.mean, self.std), labels

    def __repr__(self) -> str:
        return (
            f"StreamedDataset({self.name!r}, {self.length('train')} training and "
            f"{self.length('test')} test images of shape {self.shape}, {self.num_classes} classes)"
        )


def centre_crop(
    image: Shaped[np.ndarray, "h w c"] | Shaped[np.ndarray, "h w"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Return the middle of an image of bytes as a square of the given side, in three channels.

    Args:
        image: (H, W), (H, W, 1) or (H, W, 3) bytes.
        size: Side of the square.

    Returns:
        Bytes (size, size, 3).

    Example:
        >>> import numpy as np
        >>> centre_crop(np.zeros((40, 60, 3), np.uint8), 32).shape
        (32, 32, 3)
    """
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    picture = Image.fromarray(image).convert("RGB")
    width, height = picture.size
    side = min(width, height) * _CROP
    left, top = (width - side) / 2, (height - side) / 2
    window = (left, top, left + side, top + side)
    picture = picture.resize((size, size), Image.Resampling.BICUBIC, box=window, reducing_gap=3.0)
    return np.asarray(picture)
