"""Write every dashboard into `deploy/grafana/dashboards/`."""

from pathlib import Path

from deploy.grafana.engine import engine
from deploy.grafana.overview import overview
from deploy.grafana.panels import as_json
from deploy.grafana.policy import policy
from deploy.grafana.tenants import tenants

FOLDER = Path(__file__).parent / "dashboards"


def dashboards() -> dict[str, str]:
    """JSON text by file name."""
    return {f"eco-{name}.json": as_json(make()) for name, make in _DASHBOARDS.items()}


_DASHBOARDS = {"overview": overview, "policy": policy, "tenants": tenants, "engine": engine}

if __name__ == "__main__":
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text, encoding="utf-8")
