"""What cleaning needs is asked for before data are, or each record would be absent in silence."""

import sys

import pytest

from fedattn.config import CleanConfig
from fedattn.data import clean_language, load_partition
from fedattn.data.clean import require_cleaning
from fedattn.data.clean_file import CleanOptions, clean_file
from fedattn.data.summary import inspect
from fedattn.errors import DataError, RefusalError
from fedattn.policy import OwnData, rules
from fedattn.simulate import simulate
from tests.federation import conversations, tiny, write


@pytest.fixture
def without_package(monkeypatch):
    """Imports of a package fail, and what was loaded of it is forgotten."""

    def lose(package):
        for name in [each for each in sys.modules if each.split(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setitem(sys.modules, package, None)
        clean_language._identifier.cache_clear()

    yield lose
    clean_language._identifier.cache_clear()


NEEDS = [("phonenumbers", {"mask_pii": True}), ("py3langid", {"english": True})]


@pytest.mark.parametrize(("package", "rule"), NEEDS)
def test_without_a_package_that_cleaning_needs_nothing_starts(
    package, rule, without_package, tmp_path
):
    path = write(tmp_path / "chats.jsonl", conversations())
    plain = tiny(path).data
    config = plain.model_copy(update={"clean": CleanConfig(**rule)})
    require_cleaning(config.clean)
    without_package(package)
    for start in (
        lambda: require_cleaning(config.clean),
        lambda: load_partition(config),
        lambda: inspect(config),
        lambda: clean_file(path, tmp_path / "out", CleanOptions(rules=config.clean)),
        lambda: simulate(tiny(path, data={"clean": rule}), tmp_path / "run"),
    ):
        with pytest.raises(DataError, match=rf"{package} is missing .* pip install"):
            start()
    assert not (tmp_path / "run").exists()
    load_partition(plain)  # what asks for no cleaning needs nothing


@pytest.mark.parametrize(("package", "rule"), NEEDS)
def test_a_device_declines_before_it_spends_if_its_cleaning_cannot_run(
    package, rule, without_package
):
    config = OwnData(path="x.jsonl", clean=CleanConfig(**rule)).config
    rules.check_cleaning(config)
    without_package(package)
    with pytest.raises(RefusalError, match="missing or broken") as caught:
        rules.check_cleaning(config)
    assert caught.value.rule == "cleaning"


def test_a_region_that_nobody_knows_is_refused():
    with pytest.raises(DataError, match=r"data\.clean\.region: XX"):
        require_cleaning(CleanConfig(mask_pii=True, region="XX"))


@pytest.mark.parametrize("region", ["us", "USA", "U", "49", ""])
def test_a_region_is_two_capital_letters(region):
    with pytest.raises(ValueError, match="region"):
        CleanConfig(region=region)
