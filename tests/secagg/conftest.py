import pytest

from fedattn.secagg.wire import Stage
from tests.secagg.harness import Round, make_spec


@pytest.fixture(scope="module")
def r():
    """A finished round, member 5 lost at upload; clients are pure, so tests share it."""
    done = Round(make_spec(5, 4, 1), gone={Stage.UPLOAD: {5}})
    done.run()
    return done
