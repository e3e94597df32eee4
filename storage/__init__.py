"""What lies on a disk: files and folders that appear whole or not at all, their digests, and where caches are."""
