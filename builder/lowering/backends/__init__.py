"""What is particular to a kind of target: its machine, its passes, its machine code. Found by name."""
