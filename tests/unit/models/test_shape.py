"""What is said of built-in models without building them is what building them finds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elaswave.config import Model
from elaswave.errors import ConfigError
from elaswave.models.build import KNOWN, build_model
from elaswave.models.shape import shape_of
from elaswave.pipeline.layers import Layers
from elaswave.planner.profile import Profile


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(sorted(KNOWN)),
    st.integers(1, 3),
    st.sampled_from([4, 12, 64]),
    st.sampled_from([256, 300, 2000]),
    st.sampled_from([(4, 1), (16, 2), (64, 4)]),
    st.booleans(),
    st.integers(1, 11),
)
def test_the_shape_is_what_the_layers_are(name, layers, width, vocabulary, image, tied, classes):
    config = Model(
        name=name,
        layers=layers,
        width=width,
        heads=4,
        sequence_length=image[0],
        patch=image[1],
        vocabulary=vocabulary,
        tied=tied,
        classes=classes,
    )
    shape = shape_of(config)
    assert shape is not None
    built = Layers(build_model(config, 1), seed=1)
    assert (shape.costs, shape.unit_elements, shape.users) == built.profile()
    assert shape.num_layers == built.num_layers
    assert Profile(costs=shape.costs, unit_elements=shape.unit_elements, users=shape.users).num_layers == layers + 2


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_the_default_shape_of_every_model_is_known(name):
    config = Model(name=name, sequence_length=64)
    shape = shape_of(config)
    assert shape is not None
    assert (shape.costs, shape.unit_elements, shape.users) == Layers(build_model(config, 1), seed=1).profile()


def test_nothing_is_said_of_other_models():
    assert shape_of(Model(name="package.module:Class")) is None


@pytest.mark.parametrize(
    ("changes", "key"), [({"sequence_length": 65}, "model.sequence_length"), ({"patch": 3}, "model.patch")]
)
def test_sizes_without_a_model_are_refused(changes, key):
    config = Model(name="mixer").model_copy(update={"sequence_length": 64, **changes})
    with pytest.raises(ConfigError) as caught:
        shape_of(config)
    assert caught.value.key == key
    with pytest.raises(ConfigError):
        build_model(config, 1)
