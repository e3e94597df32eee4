"""The policy studio: a page of the admin address."""
