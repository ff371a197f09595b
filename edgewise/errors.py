"""Every error that edgewise raises on purpose.

EdgewiseError                     exit code 1: our fault, unless a leaf says otherwise
├── UserError                     exit code 2: what the user can mend
│   ├── PlanError                 (ValueError)         a plan, a budget or an option that cannot be
│   ├── DataError                 (ValueError)         a dataset that does not fit the task
│   ├── CheckpointError           (ValueError)         a model folder that is not what it should be
│   ├── BundleError               (ValueError)         a bundle that cannot be trusted or read
│   │   ├── BundleNotFoundError   (FileNotFoundError)
│   │   ├── BundleChangedError                         a file differs from the manifest
│   │   └── BundleVersionError                         written by a newer major format
│   ├── InputError                (ValueError)         an input that the model cannot take
│   ├── ProviderError             (RuntimeError)       an execution provider that does not run here
│   ├── StoreError                (ValueError)         a measurement store that cannot be read
│   ├── NoSpaceError              (OSError)            the disk is full
│   └── MissingExtraError         (ImportError)        a pip extra is not installed
├── ParityError                   (ValueError)         an exported graph does not answer as PyTorch does
├── TrainingError                 (RuntimeError)       training broke (NaN loss)
└── WorkerError                   (RuntimeError)       a measuring process died, hung or wrote garbage

Each message gives the value, the place and the remedy.
"""

from __future__ import annotations


class EdgewiseError(Exception):
    """Base of all errors raised on purpose."""

    exit_code = 1


class UserError(EdgewiseError):
    """What the user can mend: exit code 2, one line, no traceback."""

    exit_code = 2


class PlanError(UserError, ValueError):
    """A plan, a budget, a recipe name or an option that cannot be."""


class DataError(UserError, ValueError):
    """A dataset that does not fit the task."""


class CheckpointError(UserError, ValueError):
    """A model folder that is not what it should be."""


class BundleError(UserError, ValueError):
    """A bundle that cannot be trusted or read."""


class BundleNotFoundError(BundleError, FileNotFoundError):
    """No bundle at that path."""


class BundleChangedError(BundleError):
    """A file of the bundle is missing or differs from what the manifest says."""


class BundleVersionError(BundleError):
    """The bundle was written by a newer major version of the format."""


class InputError(UserError, ValueError):
    """An input that the model cannot take."""


class ProviderError(UserError, RuntimeError):
    """An execution provider was asked for and does not run here."""


class StoreError(UserError, ValueError):
    """A measurement store that cannot be read or written."""


class NoSpaceError(UserError, OSError):
    """The disk is full, or would be."""


class MissingExtraError(UserError, ImportError):
    """A part of edgewise needs packages that are not installed."""


class ParityError(EdgewiseError, ValueError):
    """An exported graph does not answer as the PyTorch model does."""


class TrainingError(EdgewiseError, RuntimeError):
    """Training broke, for instance by a loss that is not a number."""


class WorkerError(EdgewiseError, RuntimeError):
    """A measuring process died, hung or wrote what it should not."""


def need_extra(extra: str, error: ImportError) -> MissingExtraError:
    """The error for a sub-package whose extra is missing, naming the pip command."""
    return MissingExtraError(
        f"{error.name or error} is not installed: run `pip install 'edgewise[{extra}]'` for this part of edgewise"
    )


def nearest(word: str, known: list[str] | tuple[str, ...], count: int = 1) -> str:
    """'did you mean x?' for a word that is near a known one or, where `count` are asked for, a part of one's name; else
    the list of what is known."""
    import difflib

    parts = [name for name in known if count > 1 and word.lower() in name.split("_")]
    near = [repr(name) for name in dict.fromkeys([*parts, *difflib.get_close_matches(word, known, n=count)])][:count]
    if not near:
        return f"known: {', '.join(known)}"
    *others, last = near
    before = f"{', '.join(others)} or " if others else ""
    return f"did you mean {before}{last}?"
