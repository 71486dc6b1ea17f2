"""The README's three examples print its figures, on the embedded digits."""

import pytest
import readme


@pytest.mark.pages
@pytest.mark.parametrize("system", readme.SYSTEMS)
def test_example_prints_the_table(system, monkeypatch):
    monkeypatch.setenv("KERAS_PNN_DATA", "digits")
    data, figures = readme.measured([system])
    assert data == "digits" and len(figures) == 2
    assert not readme.differences(data, figures)
    plain, robust = figures[system, "plain"], figures[system, "robust"]
    # On other devices robust training is ahead; without errors it costs little.
    assert robust[1] > plain[1] + 3 and robust[2] > plain[2]
    assert robust[0] > plain[0] - 3


@pytest.mark.parametrize("data", ["digits", "mnist"])
def test_the_table_says_that_robust_training_is_ahead(data):
    table = readme.stated(data)
    for system in readme.SYSTEMS:
        plain, robust = table[system, "plain"], table[system, "robust"]
        ahead = robust[1:, 0] - plain[1:, 0]
        assert (ahead > plain[1:, 1] + robust[1:, 1]).all()
