"""RWKU: what is known of real people, asked in three ways of one who is to be forgotten and in two of what is near."""
