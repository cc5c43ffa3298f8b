from __future__ import annotations

import pytest

from dreambooth_core import errors
from dreambooth_core.errors import ConfigError, DreamboothError, Problem

EXIT_CODES = {
    "DreamboothError": 1,
    "UsageError": 2,
    "ConfigError": 2,
    "InputError": 2,
    "CheckpointError": 2,
    "UnsupportedFamilyError": 2,
    "ModelNotFoundError": 2,
    "ModelExistsError": 2,
    "NewerVersionError": 2,
    "FullDiskError": 2,
    "BusyError": 2,
    "TrainingError": 1,
    "NonFiniteError": 1,
    "JobFailedError": 1,
    "OverlayError": 1,
}


def _error_classes() -> dict[str, type[DreamboothError]]:
    found = vars(errors).items()
    return {
        name: value
        for name, value in found
        if isinstance(value, type) and issubclass(value, DreamboothError)
    }


def test_every_error_has_its_exit_code() -> None:
    assert {name: cls.exit_code for name, cls in _error_classes().items()} == EXIT_CODES


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    depths = {}
    for line in errors.__doc__.splitlines():
        bare = line.lstrip(" |`-")
        name = bare.split(" ")[0]
        if name in EXIT_CODES:
            depths[name] = (len(line) - len(bare)) // 4
    base = depths["DreamboothError"]
    for name, cls in _error_classes().items():
        assert depths[name] - base == len(cls.__mro__) - len(DreamboothError.__mro__), name


def test_the_text_is_message_and_remedy() -> None:
    error = DreamboothError("It broke.", remedy="Mend it.", field="a.b")
    assert str(error) == "It broke. Mend it."
    assert (error.message, error.remedy, error.field) == ("It broke.", "Mend it.", "a.b")
    assert str(DreamboothError("It broke.")) == "It broke."


def test_a_config_error_lists_all_problems() -> None:
    error = ConfigError([Problem("a", "is 1.", "Use 2."), Problem("", "is odd.")])
    assert str(error) == "a: is 1. Use 2.\nis odd."
    assert error.field == "a"
    assert len(error.problems) == 2


def test_a_config_error_without_problems_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one"):
        ConfigError([])
