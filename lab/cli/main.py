"""The command line: `python -m lab`. One file per command beside this one, imported when it is asked for.

Exit codes: 0 done; 1 a run failed; 2 bad input, with one line "error: …" on stderr; 130 interrupted.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from lab.errors import LabError

COMMANDS = {
    "methods": "list every merging method with its source and formula",
    "train": "train a skill, a LoRA adapter, on rows of your own",
    "inspect": "tell what adapters are, what fits together, and which methods are open to them",
    "merge": "merge adapters by a static method into an adapter, or into a base model",
    "learn": "learn a merge's coefficients (or a router) on a little data",
    "evaluate": "ask a base, adapters and merges rows with answers; what a merge keeps of each skill",
    "compare": "merge adapters by several methods and ask them the same rows",
    "records": "look up what was run and measured",
    "results": "run the sections' notebooks and make the pages",
    "plan": "tell what a preset will fetch, need and take, without fetching anything",
}
EXAMPLES = """examples:
  python -m lab train maths.jsonl --base owner/base --out maths/
  python -m lab methods
  python -m lab inspect maths/ code/ --base owner/base
  python -m lab merge maths/ code/ --method ties --density 0.3 --out merged/
  python -m lab learn maths/ code/ --method cat --data maths.jsonl code.jsonl --out merged/
  python -m lab evaluate maths/ code/ merged/ --data maths=maths_test.jsonl code=code_test.jsonl --out scores/

python -m lab COMMAND --help tells each command's options."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. --help raises SystemExit(0) as argparse does."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
        print(f"usage: python -m lab COMMAND ...\n\n{listed}\n\n{EXAMPLES}")
        return 0 if arguments else 2
    command, rest = arguments[0], arguments[1:]
    try:
        if command not in COMMANDS:
            near = difflib.get_close_matches(command, COMMANDS, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise LabError(f"There is no command {command!r}; {hint}Choose {', '.join(COMMANDS)}.")
        return getattr(importlib.import_module(f"lab.cli.{command}"), command)(rest)
    except LabError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "; the same command continues where it stopped" if command in ("train", "learn", "evaluate", "compare", "results") else ""
        print(f"interrupted{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
