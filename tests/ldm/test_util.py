"""Targets resolve, params bind, and every mistake is answered with the nearest thing that would have worked."""

from collections.abc import Sequence
from typing import Any

import pytest

from basicsr.utils.errors import UserError
from ldm.util import check_arguments, get_obj_from_str, instantiate_from_config


def build(
    size: int, rate: float = 0.5, name: str | None = None, sides: Sequence[int] = (), flag: bool = False
) -> dict[str, Any]:
    """A constructor with each kind of annotation."""
    return {"size": size, "rate": rate, "name": name, "sides": sides, "flag": flag}


HERE = f"{__name__}.build"


def test_builds_with_params_and_what_is_handed_over() -> None:
    assert instantiate_from_config({"target": HERE, "params": {"size": 2}}, rate=1)["rate"] == 1
    assert instantiate_from_config({"target": "collections.OrderedDict"}) == {}


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nodots", "not a dotted name"),
        ("ldm.utill.x", "did you mean 'ldm.util'?"),
        ("ldm.util.instantiate_from_confg", "did you mean 'instantiate_from_config'?"),
        ("basicsr.data.pair_pol.Pair", "did you mean 'basicsr.data.pair_pool'?"),
    ],
)
def test_unknown_target(target: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        get_obj_from_str(target)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("params", "key", "words"),
    [
        ({"size": 1, "nmae": "x"}, "nmae", "did you mean 'name'?"),
        ({"rate": 1.0}, "", "needs 'size'"),
        ({"size": "two"}, "size", "takes int for 'size', not 'two'"),
        ({"size": True}, "size", "takes int"),
        ({"size": 1, "rate": "1e-5x"}, "rate", "takes float"),
        ({"size": 1, "name": 3}, "name", "takes str or None"),
        ({"size": 1, "sides": [1, "x"]}, "sides", "Sequence[int]"),
        ({"size": 1, "flag": 1}, "flag", "takes bool"),
    ],
)
def test_params_that_do_not_fit(params: dict[str, Any], key: str, words: str) -> None:
    wrong = check_arguments(build, params, name="build")
    assert wrong is not None and wrong[0] == key and words in wrong[1]


def test_params_that_fit() -> None:
    assert check_arguments(build, {"size": 1, "rate": 2, "name": None, "sides": [1, 2], "flag": True}, name="b") is None
    assert check_arguments(build, {}, name="b", handed_over=["size"]) is None


@pytest.mark.parametrize("config", [None, {}, {"params": {}}, 5])
def test_no_target(config: object) -> None:
    with pytest.raises(UserError, match="target"):
        instantiate_from_config(config)  # type: ignore[arg-type]  # wrong on purpose
