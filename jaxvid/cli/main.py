# SPDX-License-Identifier: Apache-2.0
"""`jaxvid COMMAND`: finds the command, and turns what goes wrong into one line and an exit code.

Exit codes: 0 done, 1 something failed, 2 the input cannot be used, 130 interrupted. With JAXVID_TRACEBACK=1 the whole
traceback is shown.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import keyword
import os
import sys

import jaxvid
from jaxvid.cli import stop
from jaxvid.types import InputError, did_you_mean

INTERRUPTED = 130

# command -> what it does; each lives in the module of its name, as `arguments(parser)` and `run(options)`;
# `spelled(argv)`, where there is one, rewrites what was typed
COMMANDS = {
    "demo": "make a minute of video from a built-in story and let the reader judge it",
    "generate": "make a video from a sentence or a story",
    "methods": "list the ways to generate: what they need, cost, and where they come from",
    "train": "train from a config file (the same as python -m experiments.run)",
    "plan": "tell what a config needs on devices that need not be here, and whether it fits",
    "info": "tell what a checkpoint is and serves",
    "reconstruct": "send a video through the autoencoder and measure what is lost",
    "decode": "turn kept latents into a video",
    "recipe": "print the command that made a video",
    "studio": "a page in the browser, on this machine: stories, progress, the videos made so far",
    "read": "read a video of the shapes world: what is seen in every second, as JSON",
    "import": "bring open weights of Wan or SkyReels-V2 here",
    "export": "write imported weights back in diffusers' layout or the authors'",
    "doctor": "show devices, versions, memory and codecs",
}


class Parser(argparse.ArgumentParser):
    """Complains by `InputError`, in one line."""

    def error(self, message: str):
        kind, _, rest = message.partition("unrecognized arguments: ")
        if not kind and rest.startswith("-"):
            asked = rest.split()[0].partition("=")[0]
            message += did_you_mean(
                asked, [name for name in self._option_string_actions if name[:2] == "--"], 0.75
            )
        raise InputError(f"{message}; see {self.prog} --help")


def main(argv: list[str] | None = None) -> None:
    """The console script. Leaves by SystemExit with the exit code, unless that is 0."""
    code = call(sys.argv[1:] if argv is None else list(argv))
    if (
        code == INTERRUPTED
    ):  # all is closed and said; jaxlib crashes in the interpreter's end where compiling was interrupted
        os._exit(code)
    if code:
        sys.exit(code)


def call(argv: list[str]) -> int:
    """Runs a command line; returns its exit code."""
    # a process may be begun without either
    sys.stdout, sys.stderr = (s or open(os.devnull, "w") for s in (sys.stdout, sys.stderr))
    try:
        with stop.listening():
            dispatch(argv)
            sys.stdout.flush()
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt as end:
        return _complain(end, f"interrupted{_what_was_kept(end)}", INTERRUPTED)
    except InputError as error:
        return _complain(error, str(error), 2)
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        return _complain(error, f"{name}{error.strerror or error}", 2)
    except MemoryError as error:
        return _complain(
            error, "out of memory; ask for fewer seconds, a smaller batch, or --method rollout", 1
        )
    except Exception as error:  # noqa: BLE001
        return _complain(error, f"{type(error).__name__}: {error}; JAXVID_TRACEBACK=1 shows where", 1)
    finally:
        _let_go(sys.stdout)
        _let_go(sys.stderr)
    return 0


def dispatch(argv: list[str]) -> None:
    """Runs a command line and lets errors through."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: jaxvid COMMAND [options]\n\nA minute of video from a sentence.\n")
        print(*(f"  {name:<12} {said}" for name, said in COMMANDS.items()), sep="\n")
        print("\njaxvid COMMAND --help tells more; jaxvid --version the version.")
        return
    if argv[0] == "--version":
        print(f"jaxvid {jaxvid.__version__}")
        return
    command, *rest = argv
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS) or f"; the commands are {', '.join(COMMANDS)}"
        raise InputError(f"no command {command[:40]!r}{hint}")
    module = importlib.import_module(f"jaxvid.cli.{command + '_' * keyword.iskeyword(command)}")
    if command == "train":  # absl reads this command's flags, for the sake of --config.x=y
        module.main(["jaxvid train", *rest])
        return
    about = module.__doc__.split("\n")[0]
    parser = Parser(prog=f"jaxvid {command}", description=about, allow_abbrev=False)
    module.arguments(parser)
    module.run(parser.parse_args(getattr(module, "spelled", list)(rest)))


def use_compilation_cache() -> str | None:
    """Keeps compiled programs in the user's cache directory, so that a second run starts at once. None: no place for it."""
    import jax

    if jax.config.jax_compilation_cache_dir:
        return jax.config.jax_compilation_cache_dir
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    place = os.path.join(base, "jaxvid", f"xla-{jax.__version__}")
    try:
        os.makedirs(place, exist_ok=True)
    except OSError:
        return None
    if not os.access(place, os.W_OK | os.X_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", place)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_raise_persistent_cache_errors", False)
    return place


def _complain(error: BaseException, text: str, code: int) -> int:
    if os.environ.get("JAXVID_TRACEBACK", "") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    line = " ".join(str(text).split())
    with contextlib.suppress(BrokenPipeError):
        print(
            f"jaxvid: error: {line if len(line) <= 600 else line[:597] + '...'}", file=sys.stderr, flush=True
        )
    return code


def _let_go(stream) -> None:
    """Where nobody listens any more, what is left goes nowhere, so that the exit does not complain."""
    try:
        stream.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _what_was_kept(end: KeyboardInterrupt) -> str:
    kept = getattr(end, "__notes__", None)
    return f"; {'; '.join(kept)}" if kept else ""


if __name__ == "__main__":
    main()
