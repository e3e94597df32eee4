"""Kubernetes objects in a file against Kubernetes' schemas and those of the operators that read them; prints kinds.

Run with the packages of `deploy/fetch-tools charts` on the path. Fails with a traceback that names the field.
"""

import sys
from pathlib import Path

import kubernetes_validate
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor

OPERATORS = {"ScaledObject": ScaledObject, "ServiceMonitor": ServiceMonitor, "PrometheusRule": PrometheusRule}

for made in filter(None, yaml.safe_load_all(Path(sys.argv[1]).read_text())):
    if model := OPERATORS.get(made["kind"]):
        # The models let fields pass that they do not know, and forget them.
        known = model.model_validate(made).model_dump(mode="json", by_alias=True, exclude_unset=True)
        assert known == made, (known, made)
    else:
        for version in ("1.30", "1.37"):
            kubernetes_validate.validate(made, version, strict=True)
    print(made["kind"])  # noqa: T201
