"""MUSE: what a model keeps of news and books (verbatim, as knowledge, as membership), and what forgetting cost."""
