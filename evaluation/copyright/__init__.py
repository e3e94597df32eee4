"""How much of a protected text a model still writes."""
