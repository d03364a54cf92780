"""What is attacked: a finished round that tests share (clients are pure), or a fleet of devices."""

import pytest

from fedattn.secagg.wire import Stage
from tests.secagg.harness import Round, make_spec


@pytest.fixture(scope="session")
def finished() -> Round:
    """Five members, t = 4, one may collude; member 5 was lost at upload."""
    done = Round(make_spec(5, 4, 1), gone={Stage.UPLOAD: {5}})
    done.run()
    return done


@pytest.fixture
def fleet(tmp_path):
    """Four devices that have met; torch and flwr are imported only where it is used."""
    from tests.attacks.fleet import Fleet

    return Fleet(tmp_path)
