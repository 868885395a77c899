"""Recipes -> Plan. Steps are named here and nowhere else."""
