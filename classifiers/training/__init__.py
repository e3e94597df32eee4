"""From a forget and a retain set to a prompt classifier. Offline."""
