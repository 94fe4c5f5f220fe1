"""Plain texts on their way to a model that is pretrained."""
