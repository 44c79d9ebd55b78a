"""Danger: weights of another model, or broken ones, are loaded in part or in silence."""

from __future__ import annotations

import numpy as np
import pytest
from edgewise_trainer.errors import ConfigError, FactoryError, WeightsError
from edgewise_trainer.models import build
from edgewise_trainer.weights import Weights, decode, digest, encode, load_state, state_of
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp


@pytest.fixture
def state() -> Weights:
    return state_of(build("digits_cnn", {"width": 4}, seed=1))


@given(
    st.dictionaries(
        st.from_regex(r"[pb]\.[a-z0-9.]{1,12}", fullmatch=True),
        hnp.arrays(st.sampled_from([np.float32, np.int64]), hnp.array_shapes(min_dims=0, max_dims=3, max_side=4)),
        max_size=6,
    )
)
def test_encoding_round_trips_and_is_canonical(weights: Weights) -> None:
    data = encode(weights)
    found = decode(data)
    assert found.keys() == weights.keys()
    for name, array in weights.items():
        assert found[name].shape == array.shape
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array, equal_nan=array.dtype.kind == "f")
    assert encode(dict(reversed(weights.items()))) == data


def test_the_seed_decides_the_weights(state: Weights) -> None:
    assert digest(state_of(build("digits_cnn", {"width": 4}, seed=1))) == digest(state)
    assert digest(state_of(build("digits_cnn", {"width": 4}, seed=2))) != digest(state)


def test_all_state_of_the_built_in_model_is_float(state: Weights) -> None:
    assert {array.dtype for array in state.values()} == {np.dtype(np.float32)}
    assert any(name.startswith("b.") and name.endswith("running_var") for name in state)


def test_loading_moves_the_model(state: Weights) -> None:
    model = build("digits_cnn", {"width": 4}, seed=2)
    load_state(model, state)
    assert digest(state_of(model)) == digest(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("p.head.bias"), "lack 'p.head.bias'"),
        (lambda s: s.update({"p.extra": np.zeros(1, np.float32)}), "hold 'p.extra'"),
        (lambda s: s.update({"p.head.bias": np.zeros(9, np.float32)}), r"p.head.bias is float32 \[9\]"),
        (lambda s: s.update({"p.head.bias": np.zeros(10)}), "p.head.bias is float64"),
        (lambda s: s.update({"p.head.bias": np.full(10, np.inf, np.float32)}), "not finite"),
    ],
)
def test_weights_that_do_not_fit_leave_the_model_alone(state: Weights, change: object, message: str) -> None:
    model = build("digits_cnn", {"width": 4}, seed=2)
    before = digest(state_of(model))
    change(state)  # type: ignore[operator]
    with pytest.raises(WeightsError, match=message):
        load_state(model, state)
    assert digest(state_of(model)) == before


def test_not_safetensors() -> None:
    with pytest.raises(WeightsError, match="not safetensors"):
        decode(b"\x00" * 40)


def test_unknown_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="no model 'digits_cn'"):
        build("digits_cn", {}, seed=0)
    with pytest.raises(ConfigError, match="no key 'depth'"):
        build("digits_cnn", {"depth": 3}, seed=0)
    with pytest.raises(FactoryError, match=r"not a torch\.nn\.Module"):
        build("collections:OrderedDict", {}, seed=0)
