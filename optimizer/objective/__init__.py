"""What the search minimises: a metric of the guarded model, and where it should come to."""
