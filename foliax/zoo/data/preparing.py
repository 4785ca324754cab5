"""Preparing data sets with TensorFlow Datasets: by download, or from files that are there."""

import gzip
import hashlib
import importlib.util
import os
import shutil
import socket
import urllib.parse
import urllib.request
import zlib
from pathlib import Path
from typing import Any, Final

from foliax.zoo.data import tfds as reading

# SHA-256 of what is in the compressed files: an archive that somebody packed anew, such as that of
# the Debian package dataset-fashion-mnist, differs from the original while its contents do not.
_CONTENTS: Final = {
    "fashion_mnist": {
        "train-images-idx3-ubyte.gz": (
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
        ),
        "train-labels-idx1-ubyte.gz": (
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
        ),
        "t10k-images-idx3-ubyte.gz": (
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
        ),
        "t10k-labels-idx1-ubyte.gz": (
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
        ),
    }
}
_MANUAL: Final = {"imagenet2012": ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")}
_BLOCK = 1 << 20


def prepare(
    name: str, *, files: str | os.PathLike | None = None, data_dir: str | os.PathLike | None = None
) -> Path:
    """Prepare a data set with TensorFlow Datasets, so that `load` finds it.

    The command line is `python -m foliax.zoo.prepare NAME --files FOLDER --data-dir FOLDER`.

    Args:
        name: The data set, e.g. "fashion_mnist".
        files: Folder with the original files, for a machine without the network; see
            `seed_downloads`. None to download them.
        data_dir: Where it goes; None for the folder of TensorFlow Datasets.

    Returns:
        The folder of the prepared data set.

    Raises:
        ValueError: If the name is unknown, or a file is not the original.
        ImportError: If TensorFlow or TensorFlow Datasets is not installed.
        FileNotFoundError: If a file is missing; that of ImageNet must be got by hand.
        ConnectionError: If the download fails.
    """
    _check_name(name)
    tfds, root = reading.import_tfds(name), reading.folder_of_data(data_dir)
    if importlib.util.find_spec("tensorflow") is None:
        raise ImportError(
            f"preparing {name!r} needs TensorFlow (reading it then does not); "
            "run: pip install 'foliax[tfds]'"
        )
    if files is not None:
        seed_downloads(name, files, data_dir)
    builder = _builder(tfds, name, root, data_dir)
    if not builder.is_prepared():
        _check_sources(tfds, name, root, data_dir)
        # What Google keeps prepared is in another format than the one we read.
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        try:
            builder.download_and_prepare(download_config=config)
        except OSError as error:
            if type(error).__module__.partition(".")[0] not in ("requests", "urllib3"):
                raise
            raise ConnectionError(_no_network(tfds, name, data_dir)) from error
    reading.read(name, data_dir=data_dir)  # shows that it can be read, and keeps the arrays
    return Path(builder.data_path)


def seed_downloads(
    name: str, folder: str | os.PathLike, data_dir: str | os.PathLike | None = None
) -> list[Path]:
    """Copy the original files of a data set to where TensorFlow Datasets looks before downloading.

    Each file must be the original, by its checksum; a file compressed anew is taken where foliax
    knows the checksum of its contents (Fashion-MNIST, e.g. of Debian's dataset-fashion-mnist).

    Args:
        name: The data set, e.g. "fashion_mnist".
        folder: Where the files are, under their original names.
        data_dir: Where data sets are prepared; None for the folder of TensorFlow Datasets.

    Returns:
        The copies.

    Raises:
        ValueError: If the data set is unknown or is not downloaded, or a file is not the original.
        FileNotFoundError: If a file is missing.
    """
    _check_name(name)
    root, folder = reading.folder_of_data(data_dir), Path(folder).expanduser()
    if name in _MANUAL:
        raise ValueError(
            f"{name!r} is not downloaded by TensorFlow Datasets: put {' and '.join(_MANUAL[name])} "
            f"in {root / 'downloads' / 'manual'} and run: {reading.prepare_command(name, data_dir)}"
        )
    infos = _downloads(reading.import_tfds(name), name)
    missing = {file: url for url, (file, _) in infos.items() if not (folder / file).is_file()}
    if missing:
        listed = "".join(f"\n  {file} from {url}" for file, url in missing.items())
        raise FileNotFoundError(f"{folder} lacks files of {name!r}:{listed}")
    for url, (file, info) in infos.items():
        _check_file(name, folder / file, info.checksum, url)
    return [
        _place(root / "downloads", name, url, folder / file, info)
        for url, (file, info) in infos.items()
    ]


def _check_name(name: str) -> None:
    if name not in reading.TFDS:
        choices = ", ".join(map(repr, reading.TFDS))
        raise ValueError(f"name must be one of {choices}, got {name!r}")


def _downloads(tfds: Any, name: str) -> dict[str, tuple[str, Any]]:
    """Return by address the original file name and size and checksum."""
    infos = tfds.builder_cls(name.partition("/")[0]).url_infos
    return {url: (info.filename or url.rpartition("/")[2], info) for url, info in infos.items()}


def _builder(tfds: Any, name: str, root: Path, data_dir: str | os.PathLike | None) -> Any:
    try:
        return tfds.builder(name, data_dir=root, file_format="array_record")
    except ValueError as error:
        if "format" not in str(error):
            raise
        raise ValueError(
            f"{name!r} is already prepared under {root} in a format that cannot be read at random "
            f"places; remove {root / name}, or choose another data_dir, and run: "
            f"{reading.prepare_command(name, data_dir)}"
        ) from error


def _check_sources(tfds: Any, name: str, root: Path, data_dir: str | os.PathLike | None) -> None:
    """Refuse at once what would fail after minutes: tar files or the network that are not there."""
    if name in _MANUAL:
        manual = root / "downloads" / "manual"
        missing = [file for file in _MANUAL[name] if not (manual / file).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{name!r} must be downloaded by hand: register at "
                f"https://image-net.org/download-images, put {' and '.join(missing)} in {manual} "
                f"and run: {reading.prepare_command(name, data_dir)}"
            )
        return
    if urllib.request.getproxies():
        return  # names are then resolved elsewhere
    for url, (_, info) in _downloads(tfds, name).items():
        if not _cache_path(root / "downloads", url, info).exists():
            try:
                socket.getaddrinfo(urllib.parse.urlsplit(url).hostname, 443)
            except OSError as error:
                raise ConnectionError(_no_network(tfds, name, data_dir)) from error


def _no_network(tfds: Any, name: str, data_dir: str | os.PathLike | None) -> str:
    listed = "".join(f"\n  {url}" for url in _downloads(tfds, name))
    return (
        f"the files of {name!r} cannot be downloaded here. Get them on another machine:{listed}\n"
        f"put them in a folder and run: {reading.prepare_command(name, data_dir)} --files FOLDER"
    )


def _check_file(name: str, path: Path, checksum: str, url: str) -> None:
    """Refuse a file that is neither the original nor the original packed anew."""
    with path.open("rb") as file:
        if _sha256(file) == checksum:
            return
    contents = _CONTENTS.get(name, {}).get(path.name)
    if contents is None:
        why = f"its SHA-256 is not {checksum}"
    else:
        try:
            with gzip.open(path) as file:
                found = _sha256(file)
        except (OSError, EOFError, zlib.error) as error:
            why = f"it cannot be decompressed ({error})"
        else:
            if found == contents:
                return
            why = f"the SHA-256 of its contents is {found}, not {contents}"
    raise ValueError(f"{path} is not the original file of {name!r}: {why}; get it anew from {url}")


def _sha256(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK):
        digest.update(block)
    return digest.hexdigest()


def _cache_path(downloads: Path, url: str, info: Any) -> Path:
    from tensorflow_datasets.core.download import resource

    return downloads / resource.get_dl_fname(url, info.checksum)


def _place(downloads: Path, name: str, url: str, source: Path, info: Any) -> Path:
    from etils import epath
    from tensorflow_datasets.core.download import resource

    downloads.mkdir(parents=True, exist_ok=True)
    target = _cache_path(downloads, url, info)
    part = target.with_name(target.name + ".part")
    shutil.copyfile(source, part)
    os.replace(part, target)
    # The file with the address is what makes it a finished download to TensorFlow Datasets.
    resource.write_info_file(
        url=url,
        path=epath.Path(target),
        dataset_name=name.partition("/")[0],
        original_fname=source.name,
        url_info=info,
    )
    return target
