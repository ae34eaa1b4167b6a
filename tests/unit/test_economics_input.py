"""Bad input to the money commands: one clear line that names what is wrong, a non-zero status, nothing half-written."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys

import pytest

from inferoptim.cli.main import main
from inferoptim.economics.api_prices import ApiPrice
from inferoptim.economics.currency import Rates
from inferoptim.economics.prices import catalogue_from, load_catalogue
from inferoptim.economics.prices_import import offers_from_skypilot, offers_to_toml
from inferoptim.economics.toml_file import parse_toml
from inferoptim.errors import ConfigError, DataError

STALE = """
[[offer]]
id = "old"
provider = "P"
name = "n"
mode = "spot"
gpu = "H100 SXM"
gpus_per_node = 8
price = 16
unit = "node-hour"
currency = "USD"
seen = 2020-01-02
source = "a test"
"""


def run(capsys, *words: str) -> tuple[int, str, str]:
    status = main(list(words))
    said = capsys.readouterr()
    return status, said.out, said.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["cost", "--offer", "aws-p5-ondemand", "--tokens-per-s", "1"], "did you mean 'aws-p5-on-demand'"),
        (["cost", "--offer", "dgx-h100-purchase", "--tokens-per-s", "1"], "amortise it"),
        (["prices", "list", "--gpu", "H10O SXM"], "did you mean 'H100 SXM'"),
        (["plan", "kv", "Llama-3.1-8B", "--card", "H10O"], "H100"),
        (["lint", "--model", "Llama-3-8B", "--output-tokens", "1", "--latency-ms", "1"], "Llama-3.1-8B"),
        (["cost", "--price-per-hour", "0", "--tokens-per-s", "1"], "must be above zero"),
        (["cost", "--price-per-hour", "-1", "--tokens-per-s", "1"], "must be above zero"),
        (["cost", "--price-per-hour", "1", "--tokens-per-s", "0"], "must be above zero"),
        (["cost", "--price-per-hour", "1", "--tokens-per-s", "nan"], "finite"),
        (["cost", "--price-per-hour", "1", "--tokens-per-s", "fast"], "not a number"),
        (["cost", "--price-per-hour", "1", "--tokens-per-s", "9:8:10"], "low ≤ mode ≤ high"),
        (["cost", "--price-per-hour", "1", "--tokens-per-s", "1", "--utilisation", "1.2"], "70 % is 0.7"),
        (["cost", "--price-per-hour", "1", "--tokens-per-s", "1", "--utilisation", "0.5:0.9:1.1"], "70 % is 0.7"),
        (["cost", "--price-per-hour", "1", "--tokens-per-s", "1", "--utilisation", "0"], "above 0"),
        (["cost", "--price-per-hour", "1", "--tokens-per-s", "1", "--gpus", "0"], "must be above zero"),
        (["cost", "--price-per-hour", "1", "--tokens-per-s", "1", "--goodput", "2"], "output tokens per request"),
        (["cost", "--price-per-hour", "1", "--tokens-per-s", "1", "--demand", "1,2"], "needs a goodput"),
        (
            ["cost", "--price-per-hour", "1", "--tokens-per-s", "1", "--goodput", "2", "--output-tokens", "9", "--demand", "1,2"],
            "24 hourly values",
        ),
        (["cost", "--price-per-hour", "1", "--offer", "nebius-h100", "--tokens-per-s", "1"], "give one price"),
        (["cost", "--tokens-per-s", "1"], "no price"),
        (["cost", "--price-per-hour", "1"], "nothing to price"),
        (["cost", "/nonexistent", "--price-per-hour", "1"], "there is no such folder"),
        (["cost", "--offer", "nebius-h100", "--currency", "EUR", "--tokens-per-s", "1"], "mixed without a rate"),
        (["cost", "--price-per-hour", "1", "--tokens-per-s", "1", "--json", "--csv"], "exclude each other"),
        (["cost", "--capex", "1000", "--availability", "0", "--tokens-per-s", "1"], "availability"),
        (["cost", "--capex", "1000", "--pue", "0.9", "--tokens-per-s", "1"], "PUE is 0.9"),
        (["tco", "--offer", "nebius-h100", "--rate", "EURUSD"], "EURUSD=1.16"),
        (["tco", "--offer", "nebius-h100", "--rate", "EURUSD=1", "--rate", "USDEUR=1"], "stated twice"),
        (["tco", "--offer", "nebius-h100", "--years", "0"], "years"),
        (["tco", "--hours-per-year", "9000"], "8760"),
        (["tco", "--offer", "nebius-h100", "--power-w", "700"], "no offer is a purchase"),
        (["roi", "--set", "factr=1"], "did you mean factor"),
        (["roi", "--set", "utilisation=1.2"], "70 % is 0.7"),
        (["roi", "--set", "gpus_per_node=1.5"], "whole number"),
        (["roi", "--set", "horizon_months=12:24:36"], "cannot be a range"),
        (["roi", "--set", "factor=0.5", "--set", "factor=0.6"], "twice"),
        (["roi", "--set", "factor=0.5"], "not stated: requests_per_day"),
        (["roi", "--config", "x"], "results folder"),
        (["roi", "--by", "profit"], "npv"),
        (["roi", "--offer", "nebius-h100", "--set", "gpu_hour_price=3"], "keep one"),
        (["claims", "99"], "they go from 1 to 54"),
        (["claims", "--text-en", "x"], "--tokenizer"),
        (["plan", "kv", "Llama-3.1-8B", "--context", "0"], "context"),
        (["plan", "kv", "Llama-3.1-8B", "--usable", "1.5"], "usable"),
        (["plan", "kv", "Llama-3.1-8B", "--kv", "fp7"], "unknown precision"),
        (["lint", "--model", "Llama-3.1-8B", "--output-tokens", "10"], "nothing to check"),
    ],
)  # fmt: skip
def test_one_line_that_says_what_to_do(capsys, words, said):
    status, out, err = run(capsys, *words)
    assert status not in (0, 1)
    assert err.startswith("inferoptim: error: ")
    assert err.count("\n") == 1
    assert said in err
    assert out == ""


def test_a_stale_price_is_warned_about_with_its_date(capsys, tmp_path):
    file = tmp_path / "prices.toml"
    file.write_text(STALE + "\n[max_age_days]\nspot = 30\n", encoding="utf-8")
    status, out, _ = run(
        capsys, "cost", "--offer", "old", "--prices", str(file), "--tokens-per-s", "1000", "--json"
    )
    assert status == 0
    notes = " ".join(json.loads(out)["notes"])
    assert "2020-01-02" in notes
    assert "check it" in notes
    assert json.loads(out)["gpu_hour"]["per_gpu_hour"] == 2.0


def test_staleness_is_counted_by_mode():
    catalogue = load_catalogue()
    offer = catalogue.find("vast-h100-median")
    limit = catalogue.max_age_days["marketplace"]
    assert catalogue.warning(offer, offer.seen + dt.timedelta(days=limit)) is None
    assert str(offer.seen) in (catalogue.warning(offer, offer.seen + dt.timedelta(days=limit + 1)) or "")


def test_every_shipped_price_has_a_source_and_a_date_and_every_mode_is_there():
    offers = load_catalogue().offers.values()
    assert all(offer.source and offer.seen <= dt.date.today() for offer in offers)
    assert {offer.mode for offer in offers} == {
        "purchase",
        "on-demand",
        "reserved",
        "spot",
        "capacity-block",
        "marketplace",
    }
    assert set(load_catalogue().max_age_days) >= {offer.mode for offer in offers}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("offer = 3 4", "not a TOML file"),
        ("[[offer]]\nid = 'x'", "missing field"),
        (STALE.replace('"spot"', '"lease"'), "is not one of"),
        (STALE.replace("price = 16", "price = -16"), "must be above zero"),
        (STALE.replace("price = 16", "price = 'cheap'"), "give a number"),
        (STALE.replace('"USD"', '"dollars"'), "three-letter"),
        (STALE.replace("2020-01-02", "'soon'"), "not a date"),
        (STALE.replace("gpus_per_node = 8", "gpus_per_node = 0"), "gpus_per_node"),
        (STALE + STALE, "twice"),
        (STALE + "colour = 'red'", "unknown field colour"),
    ],
)
def test_a_price_file_that_does_not_check_names_the_offer(text, said):
    with pytest.raises(ConfigError, match=r"mine\.toml") as error:
        catalogue_from(parse_toml(text, "mine.toml"), "mine.toml")
    assert said in str(error.value)


SKYPILOT = """InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,Price,SpotPrice,Region,AvailabilityZone
p5.48xlarge,192,2048,H100,8,55.04,20.5,us-east-1,us-east-1a
p5.48xlarge,192,2048,H100,8,55.04,18.25,us-east-1,us-east-1b
m5.large,2,8,,,0.096,0.04,us-east-1,us-east-1a
g6.xlarge,4,16,L4,1,0.8,,us-east-1,us-east-1a
"""


def test_skypilot_catalogue_by_hand():
    offers = offers_from_skypilot(SKYPILOT, provider="AWS", seen=dt.date(2026, 11, 1), source="vms.csv")
    assert {(o.id, o.mode, o.price, o.gpus_per_node) for o in offers} == {
        ("aws-p5-48xlarge-us-east-1", "on-demand", 55.04, 8),
        ("aws-p5-48xlarge-us-east-1-spot", "spot", 18.25, 8),  # the cheapest zone
        (
            "aws-g6-xlarge-us-east-1",
            "on-demand",
            0.8,
            1,
        ),  # no spot price, no spot offer; the CPU machine is no offer
    }
    read_back = catalogue_from(parse_toml(offers_to_toml(offers), "x"), "x")
    assert list(read_back.offers.values()) == offers


def test_skypilot_catalogue_that_is_none():
    with pytest.raises(DataError, match="AcceleratorName"):
        offers_from_skypilot("a,b\n1,2\n", provider="P", seen=dt.date(2026, 1, 1), source="x.csv")
    with pytest.raises(DataError, match="line 2"):
        offers_from_skypilot(
            SKYPILOT.replace("55.04", "much", 1), provider="P", seen=dt.date(2026, 1, 1), source="x.csv"
        )


def test_api_price_of_a_request_by_hand():
    # 1 000 prompt tokens, half of them cached, 100 produced: 500 × 2 + 500 × 1 + 100 × 8 = 2 300 millionths.
    price = ApiPrice("p", "m", 2.0, 1.0, 8.0, "a test")
    assert price.per_request(1000, 100, 0.5) == pytest.approx(2300e-6)
    assert ApiPrice("p", "m", 2.0, None, 8.0, "a test").per_request(1000, 100, 0.5) == pytest.approx(2800e-6)


def test_api_list_prices_have_three_rates_and_unknown_models_get_near_names(capsys):
    status, out, _ = run(capsys, "prices", "api", "openai/gpt-4o-mini", "--json")
    assert status == 0
    price = json.loads(out)["models"][0]
    assert price["input"] > price["cached_input"] > 0
    assert price["output"] > price["input"]
    assert "genai-prices" in price["source"]
    status, _, err = run(capsys, "prices", "api", "openai/gpt-4o-minni")
    assert status == 2
    assert "openai/gpt-4o-mini" in err


def test_rates_are_never_built_in():
    with pytest.raises(ConfigError, match="--rate EURUSD"):
        Rates().convert(1.0, "EUR", "USD")


def test_nothing_about_money_imports_torch():
    code = (
        "import sys, inferoptim.economics.claims, inferoptim.economics.simulator, inferoptim.report.economics_section,"
        " inferoptim.report.scenario_from_run, inferoptim.report.service_level, inferoptim.economics.prices_import,"
        " inferoptim.cli.cost, inferoptim.cli.roi, inferoptim.cli.tco, inferoptim.cli.claims, inferoptim.cli.prices;"
        " from inferoptim.cli.main import main; main(['cost', '--price-per-hour', '1', '--tokens-per-s', '9:10:11']);"
        " main(['plan', 'kv', 'Llama-3.1-8B']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
