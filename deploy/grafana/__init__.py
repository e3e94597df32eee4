"""The dashboards as code: `make dashboards` writes them as JSON, for Grafana 11 and later."""
