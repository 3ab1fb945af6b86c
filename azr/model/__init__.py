"""Models: transformers modules with our attention function, loaded or made from scratch."""
