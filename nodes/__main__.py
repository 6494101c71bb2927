"""The `runnel` command: runs `nodes.cli` and turns every error into one line and an exit code.

Entry point of the console script and of ``python -m nodes``. What a command needs is imported inside it, so that
``runnel --help`` is quick.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from cluster.errors import ClusterError
from nodes.exitcodes import ExitCode, NodeError, exit_code
from storage.errors import StorageError


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command line (None: this process's) and exit. No traceback reaches the user but for our own faults."""
    given = sys.argv[1:] if arguments is None else arguments
    if given[:1] == ["health"]:
        from nodes.cli.health import quick

        if (code := quick(given[1:])) is not None:
            raise SystemExit(code)
    from nodes.cli.app import app

    try:
        app(args=arguments, prog_name="runnel")
    except (NodeError, StorageError, ClusterError) as error:
        fail(str(error), exit_code(error))
    except BrokenPipeError:
        # The reader of our output has seen enough (`runnel sql ... | head`); Python must not flush it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(ExitCode.OK) from None
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}", exit_code(error))
    raise SystemExit(ExitCode.OK)


def fail(message: str, code: ExitCode) -> NoReturn:
    """Say one line on standard error and exit."""
    sys.stderr.write(f"runnel: {message}\n")
    raise SystemExit(code)


if __name__ == "__main__":
    main()
