"""From checkpoints, ours and the authors', to a folder that holds a whole model, and from it to the model."""
