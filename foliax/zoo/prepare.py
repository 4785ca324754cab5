"""Command line that prepares a data set once: python -m foliax.zoo.prepare fashion_mnist.

Preparing needs TensorFlow and TensorFlow Datasets, `pip install 'foliax[tfds]'`; reading what is
prepared does not need TensorFlow. Without the network, `--files` names a folder with the original
files, e.g. that of the Debian package dataset-fashion-mnist:

    python -m foliax.zoo.prepare fashion_mnist --files /usr/share/datasets/fashion-mnist
"""

from pathlib import Path
from typing import Annotated

import tyro

from foliax.zoo import data


def main(
    name: Annotated[str, tyro.conf.Positional],
    files: Path | None = None,
    data_dir: Path | None = None,
) -> None:
    """Prepare a data set with TensorFlow Datasets, so that foliax.zoo.load_dataset finds it.

    Args:
        name: mnist, fashion_mnist, kmnist, emnist/letters, cifar10, cifar100 or imagenet2012.
        files: Folder with the original files, instead of a download.
        data_dir: Where it goes; by default the folder of TensorFlow Datasets.
    """
    try:
        folder = data.prepare(name, files=files, data_dir=data_dir)
    except (ValueError, ImportError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    print(f"{data.load(name, data_dir=data_dir)!r} in {folder}")


if __name__ == "__main__":
    tyro.cli(main)
