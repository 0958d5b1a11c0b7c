"""A fake pynvml for tests of GPU metrics on machines without a GPU.

Its functions return fixed values in the structures and errors of the real package.
"""

import pynvml


class FakeNvml:
    """The functions of pynvml that the server uses, for a number of equal GPUs."""

    NVMLError = pynvml.NVMLError

    def __init__(self, gpus=2, missing=(), init_error=None, slices=()):
        """`missing` names values that the GPUs do not support; `init_error` is the code that
        nvmlInit raises, as without a driver; `slices` are the MIG slices that each GPU has."""
        self.slices = slices
        self.gpus, self.missing, self.init_error = gpus, set(missing), init_error
        self.lost = False

    def nvmlInit(self):  # noqa: N802
        if self.init_error is not None:
            raise pynvml.NVMLError(self.init_error)

    def nvmlDeviceGetCount(self):  # noqa: N802
        if self.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNKNOWN)
        return self.gpus

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if not 0 <= index < self.gpus:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return f"device {index}"

    def nvmlDeviceGetMigMode(self, device):  # noqa: N802
        if not self.slices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [1, 1]

    def nvmlDeviceGetMaxMigDeviceCount(self, device):  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device, index):  # noqa: N802
        if index not in self.slices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return f"{device} slice {index}"

    def nvmlDeviceGetUUID(self, device):  # noqa: N802
        if "slice" in device:
            return f"MIG-{device[-1]}f00"
        return f"GPU-{device.removeprefix('device ')}f00"

    def nvmlDeviceGetUtilizationRates(self, device):  # noqa: N802
        self._check("utilization", device)
        return pynvml.c_nvmlUtilization_t(gpu=37, memory=12)

    def nvmlDeviceGetMemoryInfo(self, device):  # noqa: N802
        self._check("memory", device)
        used = 3 << 30
        return pynvml.c_nvmlMemory_t(total=16 << 30, free=(16 << 30) - used, used=used)

    def nvmlDeviceGetPowerUsage(self, device):  # noqa: N802
        self._check("power", device)
        return 71_500

    def _check(self, function, device):
        of_whole_gpus = function != "memory" and "slice" in device
        if function in self.missing or of_whole_gpus:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
