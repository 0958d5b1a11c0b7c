"""Panels, alerts and runbooks name metrics that the server really has."""

import re

import dashboards
import pytest
import small_nvml
from prometheus_client import CollectorRegistry

from neurona_server.gathered import Gathered
from neurona_server.gpus import Gpus
from neurona_server.metrics import Metrics

SUFFIXES = {
    "counter": ("_total",),
    "histogram": ("_bucket", "_sum", "_count"),
    "summary": ("_sum", "_count"),
}
