"""numpy is imported with threads that go to sleep soon, and the environment stays the application's."""

from __future__ import annotations

import os
import subprocess
import sys

_SHOW = """
import os, sys
told = {}
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            told["at"] = os.environ.get("OPENBLAS_THREAD_TIMEOUT")
sys.meta_path.insert(0, Watch())
import edgewise.runtime.session
print(told["at"], os.environ.get("OPENBLAS_THREAD_TIMEOUT"))
"""


def _shown(code: str, **told: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "OPENBLAS_THREAD_TIMEOUT"} | told
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_variable_is_set_for_the_import_alone() -> None:
    assert _shown(_SHOW) == "16 None"


def test_what_the_application_set_stays() -> None:
    assert _shown(_SHOW, OPENBLAS_THREAD_TIMEOUT="20") == "20 20"


def test_an_application_that_imported_numpy_before_keeps_it_as_it_is() -> None:
    assert _shown(_SHOW.replace("import edgewise", "import numpy\nimport edgewise")) == "None None"
