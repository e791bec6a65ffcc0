"""Which of a file's factors PEFT uses, by the names and expressions of its configuration, and in bounded time.

A downloaded expression may take longer than a lifetime to match (`(a+)+b`). Python's own engine cannot be stopped; the package
`regex`, which matches alike, can. The rules are those of PEFT's `check_target_module_exists` and `get_pattern_key`.
"""

import re
import time
from collections.abc import Mapping, Sequence

import regex

from lab.errors import LabError

SECONDS = 0.25  # of processor time for all expressions of one adapter; honest ones need thousandths
_LONGEST = 20_000  # characters of one expression


class Expressions:
    """Matches names against expressions, all within one budget of time. where: names the adapter in errors."""

    def __init__(self, where: str):
        self.where = where
        self._left = SECONDS
        self._compiled: dict[str, tuple[object, bool]] = {}

    def match(self, expression: str, name: str, *, whole: bool = False):
        """What `re.match` (whole: `re.fullmatch`) finds. Raises LabError for a bad expression, or one that takes too long."""
        start = time.process_time()
        compiled, plain = self._compiled.get(expression) or self._compile(expression)
        find = compiled.fullmatch if whole else compiled.match
        if plain:
            return find(name)
        try:
            return find(name, timeout=max(self._left, 1e-3))
        except TimeoutError:
            raise self._endless(expression) from None
        finally:
            self._left -= time.process_time() - start

    def _compile(self, expression: str):
        if len(expression) > _LONGEST or self._left < 0:
            raise self._endless(expression)
        try:
            compiled = re.compile(expression)  # PEFT's engine: what it refuses is refused
            plain = re.fullmatch(r"[\w.]+", expression) is not None  # nothing repeats: cannot take long
            compiled = compiled if plain else regex.compile(expression, regex.VERSION0)
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise LabError(
                f"{self.where} has an expression that is no regular expression ({_short(expression)}: {error}); "
                f"export the adapter again."
            ) from error
        return self._compiled.setdefault(expression, (compiled, plain))

    def _endless(self, expression: str) -> LabError:
        return LabError(
            f"{self.where} has an expression that takes too long to match ({_short(expression)}); list the modules by their names."
        )


def pattern_value(table: Mapping[str, object], module: str, default: object, expressions: Expressions) -> object:
    """The entry of a rank_pattern or alpha_pattern that holds for a module: the first whose key matches an end of its name."""
    for key, value in table.items():
        if expressions.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def left_out(config: Mapping, modules: Sequence[str], expressions: Expressions) -> dict[str, list[str]]:
    """Modules whose factors PEFT drops without a word, by the setting that leaves them out. config: of checked types.

    As in PEFT, a module that target_modules lists by its whole name is in whatever its layer.
    """
    targets, excluded = config.get("target_modules"), config.get("exclude_modules")
    layers = config.get("layers_to_transform")
    layers = {layers} if isinstance(layers, int) else set(layers or ())
    found: dict[str, list[str]] = {}
    for module in modules:
        if excluded and _listed(excluded, module, expressions):
            found.setdefault("exclude_modules", []).append(module)
        elif not _targeted(targets, module, expressions):
            found.setdefault("target_modules", []).append(module)
        elif layers and module not in targets and _layer(config.get("layers_pattern"), module, expressions) not in layers:
            found.setdefault("layers_to_transform", []).append(module)
    return found


def _listed(names: str | Sequence[str], module: str, expressions: Expressions) -> bool:
    """Whether an expression, or a list of names and their ends, holds the module."""
    if isinstance(names, str):
        return bool(expressions.match(names, module, whole=True))
    parts = module.split(".")
    return any(".".join(parts[start:]) in names for start in range(len(parts)))


def _targeted(targets: str | Sequence[str], module: str, expressions: Expressions) -> bool:
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return "." in module and module.rpartition(".")[2] not in ("lm_head", "embed_out")  # the model's head is left out
    return _listed(targets, module, expressions)


def _layer(patterns: str | Sequence[str] | None, module: str, expressions: Expressions) -> int | None:
    patterns = [patterns] if isinstance(patterns, str) and patterns else patterns
    wanted = [rf"(?:^|.*?\.){pattern}\.(?P<idx>\d+)\." for pattern in patterns or ()] or [r".*?\.[^.]*\.(?P<idx>\d+)\."]
    for expression in wanted:
        found = expressions.match(expression, module)
        if found:
            return int(found.groupdict()["idx"])
    return None


def _short(expression: str) -> str:
    return repr(expression if len(expression) <= 60 else expression[:57] + "…")
