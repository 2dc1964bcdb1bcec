"""`python -m engines COMMAND`: what a board does with numpy alone, without torch and click."""

from __future__ import annotations

import logging
import sys
from typing import List, Optional, Sequence, Tuple

from engines.commands.mistakes import exit_code_of
from engines.commands.parsing import Command, parsed
from engines.errors import ConfigError
from engines.progress import Progress, text_progress


def commands() -> Tuple[Command, ...]:
    """Every command of the board, in the order of the help."""
    from engines.commands.bench import COMMAND as bench
    from engines.commands.build import COMMAND as build
    from engines.commands.doctor import COMMAND as doctor
    from engines.commands.report import COMMAND as report
    from engines.commands.trt_eval import COMMAND as evaluate

    return build, evaluate, bench, report, doctor


def main(arguments: Optional[Sequence[str]] = None, *, prog: str = "python -m engines") -> int:
    """Run one command; the exit code is 0, 1 for a failed gate, 2 for a user's mistake."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return exit_code_of(lambda: _run(given, prog))


def _run(given: List[str], prog: str) -> int:
    verbose = given[:1] in (["-v"], ["--verbose"])
    if verbose:
        given = given[1:]
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    if not given or given[0] in ("-h", "--help"):
        print(_help(prog))
        return 0
    command = _command(given[0], prog)
    options = parsed(command, f"{prog} {command.name}", given[1:])
    return command.run(options, text_progress(sys.stderr))


def run_command(command: Command, arguments: Sequence[str], progress: Progress) -> int:
    """One command for a caller that has its own error texts and progress display."""
    code = command.run(parsed(command, f"riceseg {command.name}", arguments), progress)
    sys.stdout.flush()  # a full disk is told while the caller still listens
    return code


def _command(name: str, prog: str) -> Command:
    known = {command.name: command for command in commands()}
    if name not in known:
        raise ConfigError(
            f"the command {name!r}",
            expected=f"one of {', '.join(known)}",
            do=f"see `{prog} --help`; export, segment and inspect need riceseg[export]",
        )
    return known[name]


def _help(prog: str) -> str:
    lines = [f"usage: {prog} [-v] COMMAND ...", "", "Commands:"]
    lines += [f"  {command.name:<10}{command.summary}" for command in commands()]
    return "\n".join([*lines, "", f"`{prog} COMMAND --help` tells more."])


if __name__ == "__main__":
    sys.exit(main())
