"""TOFU (Maini et al. 2024, arXiv 2401.06121): data, metrics, figures, official logs."""
