"""Base models: the catalogue of cards, where a model comes from, and the cache it lands in."""
