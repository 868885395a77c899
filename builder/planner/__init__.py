"""From recipes to a Plan: what each build is made of, whether it can work, and its steps."""
