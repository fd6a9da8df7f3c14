"""Every benchmark that is named can be run."""

import importlib
import inspect

import pytest

from mlpt.bench.cases import CASES


@pytest.mark.parametrize("module", [module for modules in CASES.values() for module in modules])
def test_a_case_is_a_module_whose_run_needs_nothing(module):
    run = importlib.import_module(module).run
    assert all(parameter.default is not parameter.empty for parameter in inspect.signature(run).parameters.values())
