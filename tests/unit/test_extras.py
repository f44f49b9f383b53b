import math

import pytest

from wespeaker.errors import InputError
from wespeaker.extras import require


def test_a_module_that_is_there_is_returned():
    assert require("math", extra="export") is math


def test_one_that_is_not_there_is_named_with_its_extra():
    with pytest.raises(InputError, match=r"no_such_package is not installed.*pip install '\.\[export\]'"):
        require("no_such_package", extra="export")


def test_what_an_installed_module_lacks_is_not_blamed_on_the_module(tmp_path, monkeypatch):
    (tmp_path / "has_a_gap.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        require("has_a_gap", extra="export")
