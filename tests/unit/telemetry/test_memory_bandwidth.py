from __future__ import annotations

from pathlib import Path

import pytest

from swarm.telemetry.sources.bandwidth import MONITORS, PERF, MemoryBandwidth
from swarm.telemetry.sources.source import SourceAbsent


def test_bytes_of_all_cache_domains_are_added_up(tmp_path: Path) -> None:
    counters = [tmp_path / MONITORS / f"mon_L3_0{domain}" / "mbm_total_bytes" for domain in range(2)]
    for counter in counters:
        counter.parent.mkdir(parents=True)
        counter.write_text("1000\n")
    source = MemoryBandwidth()
    source.open(tmp_path)
    assert source.read(10.0) == {"memory_bandwidth_bytes_per_s": None}
    counters[0].write_text("5000\n")
    counters[1].write_text("3000\n")
    assert source.read(12.0) == {"memory_bandwidth_bytes_per_s": 3000.0}
    counters[1].write_text("Unavailable\n")
    assert source.read(13.0) == {"memory_bandwidth_bytes_per_s": None}
    source.close()


def test_where_there_is_none_it_says_why(tmp_path: Path) -> None:
    with pytest.raises(SourceAbsent, match="as is usual in a virtual machine"):
        MemoryBandwidth().open(tmp_path)
    (tmp_path / PERF / "uncore_imc_0").mkdir(parents=True)
    with pytest.raises(SourceAbsent, match=r"\(uncore_imc_0\), which are for root only"):
        MemoryBandwidth().open(tmp_path)
