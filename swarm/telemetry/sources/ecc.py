"""Errors in the memory of NVIDIA GPUs, which their ECC has corrected or only noticed, by NVML. No device is woken."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from swarm.telemetry.sources.power import nvidia_gpus, sleeps
from swarm.telemetry.sources.source import Readings, Source, SourceAbsent


class EccErrors(Source):
    """Of all GPUs of the host together, since the driver was loaded (`nvmlDeviceGetTotalEccErrors`, volatile)."""

    name = "gpu ecc"

    def open(self, root: Path, /) -> None:
        self._nvml: Any = None
        self._devices: list[Any] = []
        self._pci = nvidia_gpus(root)
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            raise SourceAbsent("the package nvidia-ml-py is not installed; pip install 'dask-swarm[gpu]'") from None
        if self._sleep():
            raise SourceAbsent("an NVIDIA GPU sleeps, and asking would wake it")
        try:
            nvml.nvmlInit()
            self._nvml = nvml
            cards = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        except nvml.NVMLError as error:
            raise SourceAbsent(f"the NVIDIA driver does not answer: {error}") from error
        self._devices = [card for card in cards if self._count(card, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED) is not None]
        if not self._devices:
            raise SourceAbsent("the NVIDIA driver knows no GPU whose memory has ECC switched on")

    def read(self, _: float, /) -> Readings:
        if self._sleep():
            return {}
        nvml = self._nvml
        return {
            "accelerator_ecc_corrected": self._sum(nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            "accelerator_ecc_uncorrected": self._sum(nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        }

    def close(self) -> None:
        super().close()
        nvml, self._nvml = getattr(self, "_nvml", None), None
        if nvml is not None:
            nvml.nvmlShutdown()

    def _sleep(self) -> bool:
        return any(sleeps(card) for card in self._pci)

    def _sum(self, kind: int) -> int | None:
        """A sum of which one part is missing is no sum."""
        counts = [self._count(card, kind) for card in self._devices]
        return None if None in counts else sum(count for count in counts if count is not None)

    def _count(self, card: Any, kind: int) -> int | None:
        nvml = self._nvml
        try:
            count: int = nvml.nvmlDeviceGetTotalEccErrors(card, kind, nvml.NVML_VOLATILE_ECC)
        except nvml.NVMLError:  # it has no ECC, or has fallen off the bus
            return None
        return count
