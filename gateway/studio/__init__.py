"""The policy studio: a page of the admin address, and the comparison of answers that it can show."""
