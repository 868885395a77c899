"""From argv to a frozen Recipe: Hydra composes (here and nowhere else), a strict parser takes over."""
