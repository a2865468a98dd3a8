"""History read again: shown, folded, held against present code, or sent on at a pace."""
