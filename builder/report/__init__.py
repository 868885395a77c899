"""What people and programs are shown: lines, a live view, a table, one JSON document."""
