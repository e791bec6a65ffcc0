"""The command line: `python -m lab results` runs the sections' notebooks and makes the pages."""

import sys

from lab.errors import LabError

COMMANDS = {"results": "run the sections' notebooks and make the pages"}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m lab COMMAND ...\n\n" + "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items()))
        return 0 if arguments else 2
    try:
        if arguments[0] == "results":
            from lab import runs

            return runs.main(arguments[1:])
        raise LabError(f"There is no command {arguments[0]!r}; choose {', '.join(COMMANDS)}.")
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
