"""The present code of sagas, held against what was recorded of their runs."""
