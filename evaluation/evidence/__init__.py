"""One document for a legal or audit reader: what a policy is to forget, how well it does, and when it acted."""
