"""What a build is made of: written down, signed, compared."""
