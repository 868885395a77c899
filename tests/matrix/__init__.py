"""Every family with every scheme, built, verified and generated from."""
