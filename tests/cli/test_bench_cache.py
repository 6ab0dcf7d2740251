"""`pennyweight bench cache`: the table, the figures and the drawing."""

import xml.etree.ElementTree as ET

import pytest

from pennyweight.simulators import foreign

SHORT = ("--requests", 500, "--users", 60, "--capacity", 20)


def test_bench_cache_figures(cli):
    ran = cli("bench", "cache", *SHORT, "--seed", 3, "--json", "-")
    assert ran.code == 0, ran.err
    seen = ran.json
    assert seen["capacity"] == 20
    assert len(seen["traces"]) == 11
    assert {"ours", "LRU", "ARC", "Bélády's optimum"} <= seen["hit_ratios"].keys()
    assert all(len(row) == 11 for row in seen["hit_ratios"].values())
    assert seen["missing"] == foreign.MISSING
    again, other = (cli("bench", "cache", *SHORT, "--seed", n, "--json", "-") for n in (3, 4))
    for name, row in again.json["hit_ratios"].items():
        if "theine" not in name:  # which draws lots
            assert row == seen["hit_ratios"][name]
            assert row != other.json["hit_ratios"][name]


def test_bench_cache_table_and_drawing(cli, tmp_path):
    ran = cli("bench", "cache", *SHORT, "--svg", tmp_path / "c.svg", "--json", tmp_path / "c.json")
    assert ran.code == 0, ran.err
    assert "S3-FIFO" in ran.out
    assert "ours, against the best online" in ran.out
    assert "20 of 60 users" in ran.out
    assert (tmp_path / "c.json").read_text().startswith("{")
    drawing = ET.parse(tmp_path / "c.svg").getroot()
    words = [element.text for element in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {"ours", "SIEVE", "loop"} <= set(words)


def test_bench_cache_without_packages(cli, monkeypatch):
    monkeypatch.setattr(foreign, "CONTENDERS", {})
    monkeypatch.setattr(foreign, "MISSING", ["cachetools", "theine"])
    ran = cli("bench", "cache", *SHORT)
    assert ran.code == 0, ran.err
    assert "not installed, so not compared: cachetools, theine" in ran.out


@pytest.mark.parametrize("wrong", [("--capacity", 60), ("--capacity", 0), ("--requests", 0)])
def test_bench_cache_wrong_usage(cli, wrong):
    ran = cli("bench", "cache", *SHORT, *wrong)
    assert ran.code == 2
    assert ran.err.count("\n") == 1
