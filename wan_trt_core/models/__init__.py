"""What a model is made of: its checkpoint, and the components that it is exported as."""
