"""What verify is made of: held-out tokens, the reference model, the figures, the ways through the built artifact."""
