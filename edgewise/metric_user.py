"""A user's own metric: `my_metric.py:function`, called as function(predictions, references).

It gets lists: names of labels for classification (tuples of them for multi-label), tags, texts or numbers. It returns a
number, or a dict of name -> number. Set `function.better = "lower"` where less is better.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, get_args

from edgewise.errors import DataError, nearest
from edgewise.files import sha256_file
from edgewise.units import Better

_MARK = ".py:"


def is_own(name: str) -> bool:
    """True for 'file.py:function'."""
    return _MARK in name


def own_file(name: str) -> Path:
    """The file of 'file.py:function'. Raises DataError where it is not there."""
    file = Path(name.rpartition(":")[0]).expanduser()
    if not file.is_file():
        what = "a folder" if file.is_dir() else "no such file"
        raise DataError(f"metric {name!r}: {what} {str(file)!r} (looked from {Path.cwd()}); expected a Python file")
    return file


def load_own(name: str) -> Callable[[Sequence[Any], Sequence[Any]], Any]:
    """The function of 'file.py:function'; the file is run once for each of its contents.

    Raises DataError for a file or a function that is not there, or a file that fails when it is run.
    """
    file, wanted = own_file(name), name.rpartition(":")[2]
    module = _module(name, file)
    functions = tuple(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
    found = getattr(module, wanted, None) if wanted.isidentifier() else None
    if not callable(found):
        what = "is no function" if found is not None else "is not there"
        raise DataError(f"metric {name!r}: {wanted!r} {what} in {file}: {nearest(wanted, functions)}")
    function: Callable[[Sequence[Any], Sequence[Any]], Any] = found
    return function


def better_of(function: Any, name: str) -> Better:
    """What the function's own `better` says; higher unless given."""
    given: Better = getattr(function, "better", "higher")
    if given not in get_args(Better):
        raise DataError(f"metric {name!r}: its better is {given!r}; expected 'lower' or 'higher'")
    return given


def call_own(
    name: str, function: Callable[..., Any], predictions: list[Any], references: list[Any]
) -> dict[str, float]:
    """Values by name, '' for a bare number. NaN is left to the caller.

    Raises DataError where the function raises, or returns no number.
    """
    try:
        value = function(predictions, references)
    except (Exception, SystemExit) as error:  # the user's code: anything may come
        line = _line_of(error, function)
        raise DataError(f"metric {name!r} raised {type(error).__name__}: {error}{line}") from error
    if isinstance(value, Mapping):
        if not value:
            raise DataError(f"metric {name!r} returned an empty dict; expected name -> number")
        return {str(key): _as_number(f"metric {name!r} returned {key!r}:", item) for key, item in value.items()}
    return {"": _as_number(f"metric {name!r} returned", value)}


def _module(name: str, file: Path) -> Any:
    # named by its content: a changed file is read anew, an unchanged one keeps its module
    key = f"edgewise_own_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}_{sha256_file(file)[:16]}"
    if key in sys.modules:
        return sys.modules[key]
    spec = spec_from_file_location(key, file)
    if spec is None or spec.loader is None:
        raise DataError(f"metric {name!r}: {file} is no Python file")
    module = module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[key]
        if not isinstance(error, Exception | SystemExit):
            raise
        raise DataError(f"metric {name!r}: {file} does not run: {type(error).__name__}: {error}") from error
    return module


def _line_of(error: BaseException, function: Any) -> str:
    """' (line 7)': the last line of the function's own file that the error passed through."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    line, step = None, error.__traceback__
    while step is not None:
        if step.tb_frame.f_code.co_filename == file:
            line = step.tb_lineno
        step = step.tb_next
    return f" ({file}, line {line})" if line is not None else ""


def _as_number(place: str, value: Any) -> float:
    if isinstance(value, bool | str | bytes) or value is None:
        raise DataError(f"{place} {value!r}; expected a number, or a dict of name -> number")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{place} {value!r}; expected a number, or a dict of name -> number") from error
