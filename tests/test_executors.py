"""Ray clusters that cannot be had are told in one line."""

import sys

import pytest

from litgpt_warmstart.errors import UserError
from litgpt_warmstart.executors import carry_out_on_ray


def test_a_ray_address_that_does_not_answer_is_told():
    pytest.importorskip("ray")
    for address in ("127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"):
        with pytest.raises(UserError, match=f"--ray_address {address} does not answer"):
            carry_out_on_ray([], print, address=address)


def test_a_ray_that_does_not_start_here_is_told_without_an_address(monkeypatch):
    ray = pytest.importorskip("ray")

    def fail(**_: object) -> None:
        raise RuntimeError("no port is free")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(
        UserError, match=r"^Ray does not start here \(no port is free\): give --ray_address of a cluster"
    ):
        carry_out_on_ray([], print)


def test_without_ray_the_line_to_install_it_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'ray>=2.40'"):
        carry_out_on_ray([], print)
