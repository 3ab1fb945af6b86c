"""What stands before the first step: settled options, a memory plan, a model, an opened run."""
