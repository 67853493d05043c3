# SPDX-License-Identifier: Apache-2.0
"""Brings open weights of Wan and SkyReels-V2 here: into a bundle that Pipeline.load reads, or the parts that are there.

Every key must find its place, or the command fails with what is missing and unused. Arrays go over one by one, so that
memory need not hold the files, in the type that they have.
"""

from __future__ import annotations

import os
import pathlib
import resource
import sys
import time

from jaxvid.cli import main
from jaxvid.cli.generate import parse_size
from jaxvid.types import InputError


def arguments(parser):
    parser.add_argument(
        "source",
        metavar="PATH|hf:OWNER/NAME",
        help="a folder in diffusers' layout or the authors', or a file",
    )
    parser.add_argument("--to", metavar="DIR", required=True, help="the directory to make")
    parser.add_argument(
        "--verify", metavar="REF.npz", action="append", default=[], help="hold the result against references"
    )
    parser.add_argument(
        "--family", help="what the weights are, where that cannot be seen: wan21-1.3b, skyreels, ..."
    )
    parser.add_argument(
        "--size", action="append", default=[], help="HEIGHTxWIDTH to be served instead of the family's"
    )
    parser.add_argument(
        "--partial", action="store_true", help="accept missing and unused keys of the networks"
    )
    parser.add_argument("--revision", help="of an hf: repository")


def run(options) -> None:
    """Prints a report per part, the licence, and the directory on the last line of standard output."""
    from jaxvid.cli.verify import load_reference
    from jaxvid.imports import import_repo
    from jaxvid.io.wan_repo import FAMILIES, open_repo

    if options.family is not None and options.family not in FAMILIES:
        raise InputError(f"family {options.family!r} is unknown; choose one of {', '.join(FAMILIES)}")
    start = time.perf_counter()
    target = pathlib.Path(options.to)
    repo = open_repo(fetched(options.source, options.revision), options.family)
    for file in options.verify:
        _speaks_of(load_reference(file), file)  # what is no reference is told before anything is written
    sizes = [list(parse_size(size)) for size in options.size]
    for line in import_repo(repo, target, sizes or None, options.partial):
        print(line)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << (20 if sys.platform != "darwin" else 30)
    )
    print(
        f"{time.perf_counter() - start:.1f} s, at most {peak:.2f} GB of memory (pages of the files included)"
    )
    if options.verify:
        main.use_compilation_cache()
        verify(target, options.verify)
    print(target)


def fetched(source: str, revision: str | None) -> pathlib.Path:
    """The folder or file itself, or the download of an ``hf:`` repository."""
    if not source.startswith("hf:"):
        return pathlib.Path(os.path.expanduser(source))
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError("hf: needs the package huggingface_hub; pip install 'jaxvid[hf]'") from None
    wanted = ["*.json", "*.safetensors", "*.pth", "*.model", "LICEN[CS]E*", "README.md"]
    try:
        return pathlib.Path(
            snapshot_download(source.removeprefix("hf:"), revision=revision, allow_patterns=wanted)
        )
    except Exception as error:  # noqa: BLE001 (the hub has dozens)
        said = " ".join(str(error).split())[:200]
        raise InputError(
            f"{source} cannot be fetched ({type(error).__name__}: {said}); check the name and the network, or give a"
            " folder that it was downloaded to"
        ) from None


def verify(target: pathlib.Path, files: list[str]) -> None:
    """Prints the largest difference per case and output. Raises InputError above the tolerance."""
    from jaxvid.cli.verify import differences, load_reference
    from jaxvid.imports import load_part

    failed = []
    for file in files:
        cases = load_reference(file)
        part, model, variables = load_part(target, _speaks_of(cases, file))
        for case, what, difference, limit in differences(part, model, variables, cases):
            good = difference <= limit
            failed += [] if good else [f"{case} {what} {difference:.2e}"]
            print(
                f"{case:<18} {what:<44} {difference:.2e}{'' if good else '  ABOVE ' + format(limit, '.0e')}"
            )
    if failed:
        raise InputError(
            f"{len(failed)} outputs differ from the references, {failed[0]} the first; see above"
        )


def _speaks_of(cases, file) -> str:
    """Which part references are of, by the names of their inputs."""
    given = {name for case in cases.values() for name in case["in"]}
    for part, sign in (("dit", "context"), ("vae", "z2"), ("umt5", "ids"), ("clip", "picture")):
        if sign in given:
            return part
    raise InputError(
        f"{file} holds no references of a dit, a vae or a umt5; its inputs are {', '.join(sorted(given))}"
    )
