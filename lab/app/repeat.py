"""`python -m lab.app.repeat recipe.json maths=A code=B --out DIR`: an adapter from a recipe that the app has saved."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.errors import LabError


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the adapter; 0 when done, 2 with one line on stderr for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.app.repeat", description="Make an adapter from a recipe of the app."
    )
    parser.add_argument("recipe", type=Path, help="recipe.json, as saved under Take home")
    parser.add_argument("adapters", nargs="+", metavar="NAME=FOLDER", help="the adapters, called as in the recipe")
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it exists")
    options = parser.parse_args(arguments)
    from lab.app.session import Session
    from lab.app.takehome import apply_recipe, read_recipe
    from lab.export.folders import export
    from lab.export.report import report
    from lab.lora.adapter import load

    try:
        if not options.recipe.is_file():
            raise LabError(f"There is no recipe {options.recipe}.")
        recipe = read_recipe(options.recipe.read_text(encoding="utf-8"))
        named = [pair.partition("=") for pair in options.adapters]
        adapters = [load(folder or name, name=name if folder else None) for name, _, folder in named]
        session = Session()
        session.take(adapters, None, str(recipe.get("base", "")))
        apply_recipe(session, recipe)
        column = next(iter(session.others), "merge")
        export(options.out, session.merged(column), report=report(adapters), overwrite=options.overwrite)
    except LabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"Wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
