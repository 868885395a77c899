"""Whether a build can work, before any work: what the target computes, what fits its memory, what can be cut."""
